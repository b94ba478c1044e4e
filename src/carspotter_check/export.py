"""From a run to a bundle that others can run: Keras, SavedModel, ONNX or LiteRT, with its thresholds and a model card.

A bundle is a folder: the model, `manifest.json` (classes, preprocessing, temperature, thresholds, hashes), for ONNX
`known.npz` (the feature space of known photos), and `model_card.md`. It is written beside its place and moved there
after the parity gate: every bundle on disk answers as its run does.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carspotter import __version__
from carspotter.models import store
from carspotter.models.metrics import probabilities_from_logits
from carspotter.paths import Study
from carspotter.photos.decoding import PREPROCESSING
from carspotter.photos.images import load_images
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import kind_of, read_curation, read_photos
from carspotter_check.bundle import KNOWN, MANIFEST, ONNX_MODEL, SMALLEST_RISK, Predict, load_onnx, write_manifest
from carspotter_check.model_card import write_card
from carspotter_check.onnx_graph import build_graph
from carspotter_check.open_world import OTHER_MODEL, Known, measure_kinds
from carspotter_check.rejection import RISK, ListingRule, Rejection, read_groups

# What each framework can write by itself; ONNX is written layer by layer, and so from all three.
FILES = {"onnx": ONNX_MODEL, "keras": "model.keras", "savedmodel": "savedmodel/1", "litert": "model.tflite"}
FORMATS = {"keras": (*FILES,), "tensorflow": (*FILES,), "torch": ("onnx",)}
PARITY_PHOTOS = 200
PARITY = 1e-3  # largest difference of a probability, and how near to the threshold a label may flip
KNOWN_PHOTOS = 1_000  # of each sort: enough neighbours, and a search of less than a millisecond
NOT_EXAMPLES = {"duplicate", "unreadable", "label conflict"}  # rejected, but not for what they show


class ParityError(RuntimeError):
    """The exported model does not answer as its run does; nothing was exported."""


def export_run(
    study: Study, run_id: str, to: str = "onnx", out: Path | None = None, *, risk: float = RISK, show_progress=True
) -> Path:
    """Export a recorded run to a bundle and return its folder, `data/bundles/<run>-<format>` unless `out` is given.

    `to`: "onnx", "keras", "savedmodel" or "litert". `risk`: at most this share of the answers may be wrong; what can be
    certified stands in the manifest. Models of precision bfloat16 or float64 are exported, and compared, in float32. A
    bundle that is already at `out` is replaced. Raises ValueError for a format that the run's framework cannot write
    and for a risk that is no share, FileNotFoundError without photos or checkpoint, FileExistsError where `out` is
    something else, ParityError when the gate closes.
    """
    if not SMALLEST_RISK <= risk < 1:
        raise ValueError(f"risk is {risk:g}, not a share from {SMALLEST_RISK:g} to 1; 0.01 is one wrong answer in 100")
    run = store.load_run(study, run_id)
    if to not in FORMATS[run.framework]:
        formats = ", ".join(FORMATS[run.framework])
        raise ValueError(f"a {run.framework} run cannot be exported to {to!r}; use one of {formats}")
    out = Path(out) if out else study.data / "bundles" / f"{run.id}-{to}"
    if out.exists() and not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} exists and is not a bundle; name another folder")
    experiment = replace(run.experiment, dtype="float32")
    run.model  # noqa: B018 - says what to do where there is no checkpoint
    model = store.import_builder(experiment, run.framework).build_model(experiment, len(run.class_names))
    store.load_weights(run.framework, model, run.checkpoint)
    photos = _validation_photos(study, run)
    images = load_images(study.data, photos, run.image_size, show_progress)
    plain = store.import_framework(run.framework).predict(model, images, experiment)
    labels = photos["label"].map(run.class_names.index).to_numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as building:
        bundle = Path(building) / "bundle"
        path = bundle / FILES[to]
        path.parent.mkdir(parents=True)
        predict = _write_model(run, model, experiment, to, path)
        sample = np.linspace(0, len(images) - 1, min(PARITY_PHOTOS, len(images))).astype(int)
        facts: dict[str, Any] = {"parity": check_parity(plain[sample], predict(images[sample])[0])}
        answerable, unlike = np.ones(len(images), bool), None
        if to == "onnx":
            features, guesses = _features(predict, images), plain.argmax(axis=1)
            known, facts["kinds"] = _fit_known(study, run, predict, features, labels, show_progress)
            known.save(bundle / KNOWN)
            unlike = np.array([known.compare(features[[n]], guess)[0] for n, guess in enumerate(guesses)])
            answerable = np.array([not known.is_unlike(*pair) for pair in zip(unlike, guesses, strict=True)])
        groups = read_groups(study, photos)
        rejection = Rejection.fit(plain, labels, groups, risk, answerable)
        listing = ListingRule.fit(plain, labels, groups, rejection, answerable, unlike)
        smallest = _training_photos(study, run)[["width", "height"]].min(axis=None)
        rejection = rejection.with_limits_of(images, int(smallest))
        views = "; a prediction is the mean of the photo's and its mirror image's" * experiment.average_mirror_images
        manifest = {
            "run": run.id,
            "study": study.name,
            "format": to,
            "framework": run.framework,
            "classes": run.class_names,
            "image_size": run.image_size,
            "preprocessing": PREPROCESSING,
            "input": f"images (N, {run.image_size}, {run.image_size}, 3), RGB, 0 … 255",
            "output": f"logits: (N, 1) for two classes, the second's; else (N, classes){views}. Divide by temperature",
            "split_version": run.spec["split_version"],
            "rejection": asdict(rejection),
            "listing": asdict(listing),
            "versions": f"carspotter {__version__}, {run.row['versions']}",
            "exported_time": datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
        }
        write_card(bundle / "model_card.md", study, run, manifest)
        write_manifest(bundle, manifest)
        if out.exists():
            os.replace(out, Path(building) / "before")
        os.replace(bundle, out)
    return out


def check_parity(of_run: np.ndarray, of_export: np.ndarray) -> dict[str, float]:
    """Compare probabilities (N, classes) of the run and of the exported model on the same photos.

    Returns photos, the largest difference and the number of flipped labels. Raises ParityError when a probability
    differs by more than PARITY, or is not a number, or a label flips that is not within PARITY of a tie.
    """
    largest = float(np.abs(of_run - of_export).max())
    if not largest <= PARITY:
        raise ParityError(
            f"the exported model's probabilities differ by up to {largest:.2g} from the run's on {len(of_run)} photos; "
            f"at most {PARITY} is allowed, so nothing was exported. Weights, layer order or preprocessing differ"
        )
    flipped = of_run.argmax(axis=1) != of_export.argmax(axis=1)
    two_best = np.sort(of_run, axis=1)[:, -2:]
    clear = flipped & (two_best[:, 1] - two_best[:, 0] > 2 * PARITY)
    if clear.any():
        raise ParityError(f"{clear.sum()} of {len(of_run)} labels flip in the exported model; nothing was exported")
    return {"photos": len(of_run), "largest_difference": largest, "flipped_labels": int(flipped.sum())}


def other_photos(study: Study, class_names: list[str]) -> pd.DataFrame:
    """Return photos that are no photo of the classes, with columns sha256, path, kind.

    What was imported as other models or as unusable, what curation rejected for what it shows (kind as the reviewer
    named it), and photos of other classes. None of them is in the study's training, validation or test photos.
    """
    table = read_photos(study.data)
    splits = read_splits(study)
    table = table[~table["sha256"].isin(splits.loc[splits["split"] != "excluded", "sha256"])]
    kinds = table["kind"].where(table["kind"].fillna("") != "", None)
    other_class = ~table["label"].fillna("").isin([*class_names, ""])
    if study.curation.exists():
        curated = read_curation(study).set_index("sha256").reindex(table["sha256"])
        reason = curated["reason"].fillna("").str.removeprefix("reviewed:").str.strip().map(kind_of).to_numpy()
        rejected = (curated["verdict"] == "reject").to_numpy()
        kinds = kinds.mask(rejected & ~np.isin(reason, list(NOT_EXAMPLES)), pd.Series(reason, table.index))
        other_class &= ~rejected
    kinds = kinds.mask(kinds.isna() & other_class, OTHER_MODEL)
    found = table.assign(kind=kinds)[kinds.notna()]
    return found[["sha256", "path", "kind"]].sort_values("sha256", ignore_index=True)


def _validation_photos(study: Study, run: store.Run) -> pd.DataFrame:
    table = read_photos(study.data)[["sha256", "path"]]
    photos = run.validation[["sha256", "label"]].merge(table, on="sha256", how="left")
    missing = photos["path"].isna().sum()
    if missing:
        raise FileNotFoundError(
            f"{study.data}: {missing} of {len(photos)} validation photos are not on this machine; the parity gate "
            "needs them: scrape or import them, or pass --data"
        )
    return photos


def _training_photos(study: Study, run: store.Run) -> pd.DataFrame:
    splits = read_splits(study)
    training = splits[(splits["split"] == "train") & splits["label"].isin(run.class_names)].sort_values("sha256")
    return training.merge(read_photos(study.data).drop(columns="label"), on="sha256")


def _write_model(run: store.Run, model: Any, experiment, to: str, path: Path) -> Predict:
    """Write the model to `path` and return a function that answers with what was written."""
    if to == "onnx":
        path.write_bytes(build_graph(run.framework, model, experiment, run.class_names))
        return load_onnx(path, threads=1)
    logits = _write_keras(model, to, path)

    def predict(images: np.ndarray) -> tuple[np.ndarray, None]:
        views = [images, images[:, :, ::-1]] if experiment.average_mirror_images else [images]
        return np.mean([probabilities_from_logits(logits(view)) for view in views], axis=0), None

    return predict


def _write_keras(model, to: str, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import keras

    if to == "keras":
        model.save(path)
        return keras.saving.load_model(path, compile=False, safe_mode=True).predict_on_batch
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"{to} needs Keras on TensorFlow, this is {keras.backend.backend()}; set KERAS_BACKEND")
    import tensorflow as tf

    model.export(path, format="tf_saved_model" if to == "savedmodel" else to, verbose=False)
    if to == "savedmodel":
        loaded = tf.saved_model.load(str(path))
        return lambda images: loaded.serve(tf.constant(images, dtype=tf.float32)).numpy()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it recommends a package of its own
        interpreter = tf.lite.Interpreter(str(path), num_threads=1)
    entry, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def logits(images: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(entry["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], images.astype(entry["dtype"]))
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return logits


def _features(predict: Predict, images: np.ndarray) -> np.ndarray:
    """Return the features (N, D) of many images, 50 at a time; (0, 0) of none."""
    parts = [predict(np.asarray(images[start : start + 50]))[1] for start in range(0, len(images), 50)]
    return np.concatenate(parts or [np.zeros((0, 0), np.float32)])


def _fit_known(
    study: Study, run: store.Run, predict: Predict, validation: np.ndarray, labels: np.ndarray, show_progress: bool
) -> tuple[Known, dict]:
    """Return the known photos, and what `measure_kinds` says; `validation`: the features of the validation photos."""

    def features_of(photos: pd.DataFrame) -> np.ndarray:
        return _features(predict, load_images(study.data, photos, run.image_size, show_progress) if len(photos) else [])

    training = _training_photos(study, run).sample(frac=1, random_state=0).head(KNOWN_PHOTOS)
    others = other_photos(study, run.class_names).sample(frac=1, random_state=0).head(KNOWN_PHOTOS)
    numbers = training["label"].map(run.class_names.index).to_numpy()
    known = features_of(training), numbers, validation, labels, features_of(others), others["kind"].to_numpy(dtype=str)
    return Known.fit(*known), measure_kinds(*known) if len(others) else {}
