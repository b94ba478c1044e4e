"""The photo check: which model does this photo show, and is it the one that the listing claims? Or can't it tell?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from carspotter.paths import Study
from carspotter.photos.decoding import PREPROCESSING, UnreadablePhoto, decode
from carspotter_check.bundle import KNOWN, MANIFEST, ONNX_MODEL, Predict, load_onnx, read_manifest
from carspotter_check.open_world import OTHER_MODEL, Known
from carspotter_check.rejection import (
    ListingRule,
    Rejection,
    apart,
    calibrate,
    digits,
    quality_fault,
    read_groups,
    read_rule,
)


@dataclass(frozen=True)
class Answer:
    """What the check says of one photo.

    `verdict`: "match" or "other_model" when a model was claimed, "named" when none was, "unusable" when there is
    nothing to see (unreadable, too dark, like photos that people rejected), "not_sure" when the model cannot tell.
    `decided_by`: what settled it, "quality" (of the file or the picture), "likeness" to the known cars or "confidence".
    `probabilities` are calibrated, and suppose that it is one of the classes; empty when the photo never reached the
    model. `unlike`: the share of good photos that are less unlike the known ones, 0 … 1; None where it is unmeasured.
    `run` and `version` name the model.
    """

    photo: str
    verdict: str
    label: str | None
    probabilities: dict[str, float]
    reason: str
    decided_by: str
    run: str
    version: str
    unlike: float | None = None

    def __str__(self) -> str:
        return f"{self.photo}: {self.verdict}: {self.reason}"


@dataclass
class PhotoCheck:
    """A model with its thresholds, ready to answer; `PhotoCheck.load` finds one."""

    run_id: str
    version: str
    class_names: list[str]
    image_size: int
    predict: Predict
    rejection: Rejection
    known: Known | None = None
    listing: ListingRule | None = None

    def __post_init__(self):
        self.listing = self.listing or ListingRule(confidence=self.rejection.confidence)

    @classmethod
    def load(cls, source: Study | Path | str, run_id: str | None = None, threads: int = 0) -> PhotoCheck:
        """Load an exported bundle (a folder), or a run of a study: `run_id`, or else its best one on validation.

        A bundle runs on ONNX Runtime with `threads` threads (0: as many as cores) and needs no framework. A run needs
        its own framework and its checkpoint, and does not know what is unlike its photos. Raises FileNotFoundError
        when there is no such bundle or run, ValueError for a damaged bundle.
        """
        if isinstance(source, Study):
            return _from_run(source, run_id)
        try:
            return _from_bundle(Path(source), threads)
        except ValueError as error:
            raise ValueError(f"{error}; export the run again") from error

    def check(self, photo: Path | bytes, claim: str | None = None) -> Answer:
        """Answer for one photo, given as a file or its bytes, and optionally the class that the listing claims.

        Raises ValueError for a claim that the model does not know, FileNotFoundError. Any other photo that cannot be
        read is an answer, not an error.
        """
        self.know(claim)
        title = Path(photo).name if isinstance(photo, str | Path) else "photo"
        try:
            return self.judge(self.read(photo), claim, title)
        except UnreadablePhoto as error:
            return self.unusable(error.reason, title)
        except PermissionError as error:
            return self.unusable(f"cannot be opened: {error.strerror}", title)

    def know(self, claim: str | None) -> None:
        """Raise ValueError when the model has no class of that name."""
        if claim is not None and claim not in self.class_names:
            raise ValueError(f"{claim[:100]!r} is not a class of {self.run_id}; it knows {', '.join(self.class_names)}")

    def read(self, photo: Path | bytes) -> np.ndarray:
        """Decode a photo as the model sees it, uint8 (S, S, 3); raises UnreadablePhoto, also for tiny pictures."""
        image, facts = decode(photo, at_least=-(-self.image_size // 2), square=self.image_size)
        shorter, needed = min(facts.width, facts.height), self.rejection.limits.shorter_side
        if shorter < needed:
            words = f"too small (its shorter side has {shorter} pixels, {needed:.0f} are needed)"
            raise UnreadablePhoto("photo", words)
        return np.asarray(image)

    def judge(self, image: np.ndarray, claim: str | None = None, title: str = "photo") -> Answer:
        """Answer for one image uint8 (S, S, 3); `check` without the decoding."""
        if fault := quality_fault(image, self.rejection.limits):
            return self.unusable(fault, title)
        plain, features = self.predict(image[np.newaxis])
        if not np.isfinite(plain).all() or (features is not None and not np.isfinite(features).all()):
            return self._answer(title, "not_sure", None, None, None, "the model computed no number for this photo")
        probabilities = calibrate(plain, self.rejection.temperature)[0]
        best = int(probabilities.argmax())
        label, share, unlike = self.class_names[best], f"p = {digits(probabilities[best])}", None
        if self.known is not None and features is not None:
            unlike, kind = self.known.compare(features, best)
            if self.known.is_unlike(unlike, best):
                verdict, words = _unlike_words(unlike, kind, self.class_names)
                return self._answer(title, verdict, None, probabilities, unlike, words, "likeness")
        if probabilities[best] < self.rejection.confidence:
            asked = self.rejection.confidence
            found, needed = digits(probabilities[best]), digits(asked)
            if found == needed:
                found, needed = apart(probabilities[best], asked, 3)
            why = "no confidence is enough with this model" if asked > 1 else f"an answer asks for {needed}"
            verdict, reason = "not_sure", f"could be {label} (p = {found}), but {why}"
        elif claim is None:
            verdict, reason = "named", f"looks like {label} ({share})"
        elif claim == label:
            verdict, reason = "match", f"looks like {label} as claimed ({share})"
        else:
            verdict, reason = "other_model", f"claimed {claim}, looks like {label} ({share})"
        named = None if verdict == "not_sure" else label
        return self._answer(title, verdict, named, probabilities, unlike, reason)

    def unusable(self, reason: str, title: str = "photo") -> Answer:
        """Return the answer for a photo that never reached the model."""
        return self._answer(title, "unusable", None, None, None, reason, "quality")

    def describe(self) -> dict[str, Any]:
        """Return what this check is and when it answers, for `/v1/model`."""
        return {
            "run": self.run_id,
            "version": self.version,
            "classes": self.class_names,
            "image_size": self.image_size,
            "rejection": asdict(self.rejection),
            "listing": asdict(self.listing),
            "known_photos": len(self.known.photos) if self.known else 0,
        }

    def _answer(
        self, title: str, verdict: str, label: str | None, probabilities, unlike, reason: str, by: str = "confidence"
    ) -> Answer:
        named = {}
        if probabilities is not None:
            named = {name: round(float(p), 6) for name, p in zip(self.class_names, probabilities, strict=True)}
        unlike = None if unlike is None else round(unlike, 3)  # as the reason says it
        return Answer(printable(title), verdict, label, named, reason, by, self.run_id, self.version, unlike)


def printable(name: str) -> str:
    """Return a name that came with a photo without what could forge a line of output."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _unlike_words(unlike: float, kind: str | None, class_names: list[str]) -> tuple[str, str]:
    share = "than any good photo" if unlike >= 1 else f"than {100 * unlike:.1f} % of good photos"
    unlikeness = f"less like the known cars {share}"
    if kind is None:
        return "not_sure", f"unlike every car it knows ({unlikeness}): another model, or not a car"
    if kind == OTHER_MODEL:
        return "other_model", f"resembles models that are none of {', '.join(class_names)} ({unlikeness})"
    return "unusable", f"resembles photos that people rejected: {kind} ({unlikeness})"


def photos_in(paths: list[Path]) -> Iterator[Path]:
    """Yield the files among `paths` and below its folders, sorted by folder; raises FileNotFoundError for a wrong path.

    Hidden and system files and folders are left out, as in an import.
    """
    from carspotter.photos.folders import is_system_name  # with it comes pandas, which no server needs

    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; name photos or folders of photos")
    for path in paths:
        if path.is_dir():
            below = (file for file in sorted(path.rglob("*")) if file.is_file())
            yield from (file for file in below if not any(map(is_system_name, file.relative_to(path).parts)))
        else:
            yield path


def _from_bundle(bundle: Path, threads: int) -> PhotoCheck:
    manifest = read_manifest(bundle)
    if ONNX_MODEL not in manifest["files"]:
        raise ValueError(f"{bundle} holds {manifest['format']}, the check needs --to onnx")
    if manifest["preprocessing"] != PREPROCESSING:
        raise ValueError(
            f"{bundle} was made for the preprocessing {manifest['preprocessing']}, this program does {PREPROCESSING}"
        )
    classes, size = manifest["classes"], manifest["image_size"]
    try:
        rejection = read_rule(Rejection, manifest["rejection"])
        listing = read_rule(ListingRule, manifest["listing"])
    except ValueError as error:
        raise ValueError(f"{bundle / MANIFEST} cannot be used: {error}") from error
    version, predict = manifest["files"][ONNX_MODEL][:12], load_onnx(bundle / ONNX_MODEL, threads, classes, size)
    known = Known.load(bundle / KNOWN, len(classes)) if KNOWN in manifest["files"] else None
    check = PhotoCheck(manifest["run"], version, classes, size, predict, rejection, known, listing)
    # A picture of noise is judged, so that what is wrong with a bundle shows now, and the first answer is not slow.
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    try:
        plain, features = check.predict(picture[np.newaxis])
        if not (np.isfinite(plain).all() and np.isfinite(features).all()):
            raise ValueError("it computes no number for a picture of noise")
        check.judge(picture)
    except Exception as error:  # ONNX Runtime's, numpy's and ours: the bundle is at fault
        raise ValueError(f"{bundle} does not work: {str(error).splitlines()[0][:200]}") from error
    return check


def _from_run(study: Study, run_id: str | None) -> PhotoCheck:
    from carspotter.evidence.selection import choose_run  # with it come readers of tables that a server does not need
    from carspotter.models.store import load_run

    run = load_run(study, run_id) if run_id is not None else choose_run(study, with_checkpoint=True)[0]
    names, version = run.class_names, f"split {run.spec['split_version']}, recipe {run.spec['recipe_version']}"
    labels = run.validation["label"].map(names.index).to_numpy()
    fitted = run.validation[names].to_numpy(), labels, read_groups(study, run.validation)
    rejection = Rejection.fit(*fitted)
    listing = ListingRule.fit(*fitted, rejection)

    def predict(images: np.ndarray) -> tuple[np.ndarray, None]:
        return run.predict(images), None

    return PhotoCheck(run.id, version, names, run.image_size, predict, rejection, None, listing)
