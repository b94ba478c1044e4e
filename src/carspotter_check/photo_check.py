"""The photo check: which model does this photo show, and is it the one that the listing claims? Or can't it tell?"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from carspotter.models.metrics import probabilities_from_logits
from carspotter.paths import Study
from carspotter.photos.decoding import UnreadablePhoto
from carspotter.photos.images import PREPROCESSING, decode_with_facts
from carspotter_check.rejection import OTHER_MODEL, References, Rejection, calibrate, quality_fault

MANIFEST, ONNX_MODEL, REFERENCES = "manifest.json", "model.onnx", "references.npz"
MANIFEST_VERSION = 1
LARGEST_FILE = 200 * 2**20  # a file beyond this is no photo: it is not read into memory

# images uint8 (N, S, S, 3) -> probabilities float32 (N, classes), features float32 (N, D) or None
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Answer:
    """What the check says of one photo.

    `verdict`: "match" or "other_model" when a model was claimed, "named" when none was, "unusable" when there is
    nothing to see (unreadable, too dark, like photos that people rejected), "not_sure" when the model cannot tell.
    `probabilities` are calibrated; empty when the photo never reached the model. `run` and `version` name the model.
    """

    photo: str
    verdict: str
    label: str | None
    probabilities: dict[str, float]
    reason: str
    run: str
    version: str

    def __str__(self) -> str:
        return f"{self.photo}: {self.verdict}: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class PhotoCheck:
    """A model with its thresholds, ready to answer; `PhotoCheck.load` finds one."""

    def __init__(
        self,
        run_id: str,
        version: str,
        class_names: list[str],
        image_size: int,
        predict: Predict,
        rejection: Rejection,
        references: References | None = None,
    ):
        self.run_id, self.version, self.class_names, self.image_size = run_id, version, class_names, image_size
        self.predict, self.rejection, self.references = predict, rejection, references

    @classmethod
    def load(cls, source: Study | Path | str, run_id: str | None = None, threads: int = 0) -> PhotoCheck:
        """Load an exported bundle (a folder), or a run of a study: `run_id`, or else its best one on validation.

        A bundle runs on ONNX Runtime with `threads` threads (0: as many as cores) and needs no framework. A run needs
        its own framework and its checkpoint, and has no feature-space distance. Raises FileNotFoundError when
        there is no such bundle or run, ValueError for a damaged bundle.
        """
        if isinstance(source, Study):
            return _from_run(cls, source, run_id)
        return _from_bundle(cls, Path(source), threads)

    def check(self, photo: Path | bytes, claim: str | None = None) -> Answer:
        """Answer for one photo, given as a file or its bytes, and optionally the class that the listing claims.

        Raises ValueError for a claim that the model does not know. An unreadable photo is an answer, not an error.
        """
        self.know(claim)
        title = Path(photo).name if isinstance(photo, str | Path) else "photo"
        try:
            return self.judge(self.read(photo), claim, title)
        except UnreadablePhoto as error:
            return self._answer(title, "unusable", None, None, error.reason)

    def know(self, claim: str | None) -> None:
        """Raise ValueError when the model has no class of that name."""
        if claim is not None and claim not in self.class_names:
            raise ValueError(f"claim {claim!r} is not a class of {self.run_id}; it knows {', '.join(self.class_names)}")

    def read(self, photo: Path | bytes) -> np.ndarray:
        """Decode a photo as the model sees it, uint8 (S, S, 3); raises UnreadablePhoto, also for tiny pictures."""
        if isinstance(photo, str | Path):
            if Path(photo).stat().st_size > LARGEST_FILE:
                raise UnreadablePhoto(str(photo), f"larger than {LARGEST_FILE / 2**20:.0f} MB")
            photo = Path(photo).read_bytes()
        image, facts = decode_with_facts(photo, self.image_size)
        shorter = min(facts.width, facts.height)
        if shorter < self.rejection.limits.shorter_side:
            at_least = self.rejection.limits.shorter_side
            raise UnreadablePhoto("photo", f"too small (its shorter side has {shorter} pixels, {at_least} are needed)")
        return image

    def judge(self, image: np.ndarray, claim: str | None = None, title: str = "photo") -> Answer:
        """Answer for one image uint8 (S, S, 3); `check` without the decoding."""
        if fault := quality_fault(image, self.rejection.limits):
            return self._answer(title, "unusable", None, None, fault)
        plain, features = self.predict(image[np.newaxis])
        probabilities = calibrate(plain, self.rejection.temperature)[0]
        best = int(probabilities.argmax())
        label, share = self.class_names[best], f"p = {probabilities[best]:.2f}"
        if self.references is not None and features is not None:
            strangeness = float(self.references.strangeness(features)[0])
            if strangeness > self.references.threshold:
                kind = self.references.kind_of(features)
                measured = f"(strangeness {strangeness:.1f}, up to {self.references.threshold:.1f} is known ground)"
                if kind is None:
                    verdict, words = "not_sure", "unlike the photos the model learned from: another model, or not a car"
                elif kind == OTHER_MODEL:
                    verdict, words = "other_model", f"resembles models that are none of {', '.join(self.class_names)}"
                else:
                    verdict, words = "unusable", f"resembles photos that people rejected: {kind}"
                return self._answer(title, verdict, None, probabilities, f"{words} {measured}")
        if probabilities[best] < self.rejection.confidence:
            asked = self.rejection.confidence
            why = "no confidence is enough with this model" if asked > 1 else f"an answer asks for {asked:.2f}"
            reason = f"could be {label} ({share}), but {why}"
            return self._answer(title, "not_sure", None, probabilities, reason)
        if claim is None:
            return self._answer(title, "named", label, probabilities, f"looks like {label} ({share})")
        if claim == label:
            return self._answer(title, "match", label, probabilities, f"looks like {label} as claimed ({share})")
        return self._answer(
            title, "other_model", label, probabilities, f"claimed {claim}, looks like {label} ({share})"
        )

    def _answer(self, title: str, verdict: str, label: str | None, probabilities, reason: str) -> Answer:
        shares = [] if probabilities is None else [round(float(p), 6) for p in probabilities]
        named = dict(zip(self.class_names, shares, strict=False))
        return Answer(title, verdict, label, named, reason, self.run_id, self.version)


def photos_in(paths: list[Path]) -> Iterator[Path]:
    """Give the files among `paths` and below its folders, sorted by folder; raises FileNotFoundError for a wrong path.

    Hidden files and anything below hidden folders are left out: they are a system's, not a photographer's.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give photos or folders of photos")
    for path in paths:
        if path.is_dir():
            below = (file for file in sorted(path.rglob("*")) if file.is_file())
            yield from (file for file in below if not any(p.startswith(".") for p in file.relative_to(path).parts))
        else:
            yield path


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Read a bundle's manifest and hold its files against the hashes in it.

    Raises FileNotFoundError where a file is missing, ValueError where one was changed or is of another version.
    """
    path = bundle / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make a bundle with: python -m carspotter export RUN --to onnx")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, files = manifest["manifest_version"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); export the run again") from error
    if version != MANIFEST_VERSION:
        raise ValueError(f"{path} has version {version}, this program reads {MANIFEST_VERSION}; export the run again")
    for name, expected in files.items():
        file = bundle / name
        if bundle.resolve() not in file.resolve().parents:
            raise ValueError(f"{path} names {name}, which lies outside the bundle; export the run again")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; export the run again")
        if sha256_of(file) != expected:
            raise ValueError(f"{file} is not the file that was exported (its SHA-256 differs); export the run again")
    return manifest


def write_manifest(bundle: Path, manifest: dict[str, Any]) -> None:
    (bundle / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_onnx(path: Path, threads: int = 0) -> Predict:
    """Load an ONNX model with outputs `logits` and `features`; raises ValueError where the file is not one."""
    # Since 1.29 it reports every session to its makers unless this is set before it is imported; it also writes a file.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; install it with: pip install 'carspotter[serve]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # its warnings are about the graph, not for the person who checks a photo
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.get_inputs()[0].name  # noqa: B018
    except Exception as error:  # ONNX Runtime has its own exception for every way in which a file is no model
        raise ValueError(f"{path} is not a model that ONNX Runtime can load: {str(error).splitlines()[0]}") from error

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, features = session.run(["logits", "features"], {"image": images})
        return probabilities_from_logits(logits), features

    return predict


def _from_bundle(cls, bundle: Path, threads: int) -> PhotoCheck:
    manifest = read_manifest(bundle)
    if ONNX_MODEL not in manifest["files"]:
        raise ValueError(f"{bundle} holds {manifest['format']}; the check runs ONNX: export RUN --to onnx")
    if manifest["preprocessing"] != PREPROCESSING:
        raise ValueError(
            f"{bundle} was made for the preprocessing {manifest['preprocessing']}, this program does {PREPROCESSING}; "
            "export the run again"
        )
    references = References.load(bundle / REFERENCES) if REFERENCES in manifest["files"] else None
    return cls(
        manifest["run"],
        manifest["files"][ONNX_MODEL][:12],
        manifest["classes"],
        manifest["image_size"],
        load_onnx(bundle / ONNX_MODEL, threads),
        Rejection.from_dict(manifest["rejection"]),
        references,
    )


def _from_run(cls, study: Study, run_id: str | None) -> PhotoCheck:
    from carspotter.evidence.selection import choose_run  # with it come readers of tables that a server does not need
    from carspotter.models.store import load_run

    run = load_run(study, run_id) if run_id is not None else choose_run(study, with_checkpoint=True)[0]
    names = run.class_names
    labels = run.validation["label"].map({name: number for number, name in enumerate(names)}).to_numpy()
    rejection = Rejection.fit(run.validation[names].to_numpy(), labels)
    version = f"split {run.spec['split_version']}, recipe {run.spec['recipe_version']}"
    return cls(
        run.id, version, names, int(run.spec["image_size"]), lambda images: (run.predict(images), None), rejection
    )
