"""From a run to a bundle that others can run: Keras, SavedModel, ONNX or LiteRT, with its thresholds and a model card.

A bundle is a folder: the model, `manifest.json` (classes, preprocessing, temperature, thresholds, hashes), for ONNX
`references.npz` (the feature space of known photos), and `model_card.md`. It is written beside its place and moved
there only when the parity gate has let it through: a bundle that is there is one that answers as its run does.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carspotter import __version__
from carspotter.models import runs
from carspotter.models.metrics import accuracy, probabilities_from_logits
from carspotter.paths import Study
from carspotter.photos.images import PREPROCESSING, load_images
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import kind_of, read_curation, read_photos
from carspotter_check.model_card import write_card
from carspotter_check.onnx_graph import build_graph, read_layers
from carspotter_check.photo_check import (
    MANIFEST,
    MANIFEST_VERSION,
    ONNX_MODEL,
    REFERENCES,
    load_onnx,
    sha256_of,
    write_manifest,
)
from carspotter_check.rejection import OTHER_MODEL, RISK, References, Rejection, reject_auroc

# What each framework can write by itself; ONNX is written from the weights alone, and so from all three.
FORMATS = {
    "keras": ("onnx", "keras", "savedmodel", "litert"),
    "tensorflow": ("onnx", "savedmodel", "litert"),
    "torch": ("onnx",),
}
FILES = {"onnx": ONNX_MODEL, "keras": "model.keras", "savedmodel": "savedmodel", "litert": "model.tflite"}
PARITY_PHOTOS = 200
INT8_LOSS = 0.01  # of validation accuracy, at most
PARITY = 1e-3  # largest difference of a probability, and how near to the threshold a label may flip
REFERENCE_PHOTOS = 5_000  # of each sort: enough neighbours, and a search of a few milliseconds
NOT_EXAMPLES = {"duplicate", "unreadable", "label conflict"}  # rejected, but not for what they show


class ParityError(RuntimeError):
    """The exported model does not answer as its run does; nothing was exported."""


def export_run(
    study: Study,
    run_id: str,
    to: str = "onnx",
    out: Path | None = None,
    *,
    risk: float = RISK,
    int8: bool = False,
    rejects: pd.DataFrame | None = None,
    show_progress: bool = True,
) -> Path:
    """Export a recorded run to a bundle and give its folder, `data/bundles/<run>-<format>` unless `out` says otherwise.

    `to`: "onnx", "keras", "savedmodel" or "litert"; with `int8`, for ONNX only, dense layers in whole numbers: about a
    quarter of the size, and a gate of its own (INT8_LOSS). `risk`: of the answered validation photos, at most this
    share may be wrong. `rejects` (columns sha256, path, kind) are examples of what to turn away; by default
    `curated_rejects`.
    Models of precision bfloat16 or float64 are exported, and compared, in float32. A bundle that is already at `out` is
    replaced. Raises ValueError for a format that the run's framework cannot write, FileNotFoundError without photos
    or checkpoint, FileExistsError where `out` is something else, ParityError when the gate closes.
    """
    run = runs.load_run(study, run_id)
    framework = run.spec["framework"]
    if to not in FORMATS[framework]:
        raise ValueError(f"a {framework} run cannot be exported to {to!r}; use one of {', '.join(FORMATS[framework])}")
    if int8 and to != "onnx":
        raise ValueError(f"int8 is for onnx, not for {to}")
    out = Path(out) if out else study.data / "bundles" / f"{run.id}-{to}{'-int8' if int8 else ''}"
    if out.exists() and not (out / MANIFEST).is_file():
        raise FileExistsError(f"{out} exists and is not a bundle; name another folder")
    siblings = runs.import_framework(framework)
    model = _in_float32(run, siblings)
    photos = _validation_photos(study, run)
    images = load_images(study.data, photos, run.spec["image_size"], show_progress)
    plain = siblings.predict_probabilities(model, images)
    labels = photos["label"].map({name: number for number, name in enumerate(run.class_names)}).to_numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as building:
        bundle = Path(building) / "bundle"
        bundle.mkdir()
        path = bundle / FILES[to]
        predict = _write_model(run, model, to, path)
        sample = np.linspace(0, len(images) - 1, min(PARITY_PHOTOS, len(images))).astype(int)
        parity = check_parity(plain[sample], predict(images[sample])[0])
        facts: dict[str, Any] = {"parity": parity}
        if int8:
            predict = _quantise(path, images[sample])
            exported = np.concatenate([predict(images[start : start + 50])[0] for start in range(0, len(images), 50)])
            facts["int8"] = check_int8(labels, plain, exported)
            plain = exported  # its thresholds are its own
        rejection = Rejection.fit(plain, labels, risk).with_limits_of(images)
        if to == "onnx":
            found = curated_rejects(study, run.class_names) if rejects is None else rejects
            references, facts["reject_auroc"] = _fit_references(study, run, predict, images, found, show_progress)
            references.save(bundle / REFERENCES)
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "run": run.id,
            "study": study.name,
            "format": to,
            "framework": framework,
            "classes": run.class_names,
            "image_size": run.spec["image_size"],
            "preprocessing": PREPROCESSING,
            "input": f"images (N, {run.spec['image_size']}, {run.spec['image_size']}, 3), RGB, 0 … 255",
            "output": "logits: (N, 1) for two classes, the second class's; else (N, classes). Divide by temperature",
            "split_version": run.spec["split_version"],
            "rejection": rejection.as_dict(),
            "versions": f"carspotter {__version__}, {run.row['versions']}",
            "exported_time": datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
        }
        write_card(bundle / "model_card.md", study, run, manifest)
        manifest["files"] = {
            file.relative_to(bundle).as_posix(): sha256_of(file) for file in sorted(bundle.rglob("*")) if file.is_file()
        }
        write_manifest(bundle, manifest)
        if out.exists():
            os.replace(out, Path(building) / "before")
        os.replace(bundle, out)
    return out


def check_parity(of_run: np.ndarray, of_export: np.ndarray) -> dict[str, float]:
    """Compare probabilities (N, classes) of the run and of the exported model on the same photos.

    Gives photos, the largest difference and the number of flipped labels. Raises ParityError when a probability differs
    by more than PARITY, or is not a number, or a label flips that is not within PARITY of a tie.
    """
    difference = np.abs(of_run - of_export)
    largest = float(difference.max())
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


def check_int8(labels: np.ndarray, of_run: np.ndarray, of_int8: np.ndarray) -> dict[str, float]:
    """Compare accuracies of the run and of its int8 export on all validation photos.

    `labels`: class numbers (N,); the others: probabilities (N, classes). Raises ParityError when more than INT8_LOSS is
    lost; a gain is no fault.
    """
    before, after = accuracy(labels, of_run), accuracy(labels, of_int8)
    if before - after > INT8_LOSS + 1e-9:
        raise ParityError(
            f"int8 takes accuracy on {len(labels)} validation photos from {before:.3f} to {after:.3f}; at most "
            f"{INT8_LOSS} may be lost, so nothing was exported. Export it in float32"
        )
    return {"photos": len(labels), "accuracy_float32": before, "accuracy_int8": after}


def curated_rejects(study: Study, class_names: list[str]) -> pd.DataFrame:
    """Give photos that are no photo of the classes, with columns sha256, path, kind; no rows where nothing is curated.

    Photos that curation rejected for what they show (kind as the reviewer named it), and photos of other classes
    ("other model"). None of them is in the study's training, validation or test photos.
    """
    columns = ["sha256", "path", "kind"]
    if not study.curation.exists():
        return pd.DataFrame(columns=columns)
    table = read_curation(study).merge(read_photos(study.data)[["sha256", "path"]], on="sha256")
    splits = read_splits(study)
    used = splits.loc[splits["split"] != "excluded", "sha256"]
    table = table[~table["sha256"].isin(used)]
    table["kind"] = table["reason"].str.removeprefix("reviewed:").str.strip().map(kind_of)
    rejected = (table["verdict"] == "reject") & ~table["kind"].isin(NOT_EXAMPLES)
    other_class = (table["verdict"] == "keep") & ~table["label"].isin([*class_names, ""])
    table.loc[other_class, "kind"] = OTHER_MODEL
    return table.loc[rejected | other_class, columns].sort_values("sha256", ignore_index=True)


def _in_float32(run: runs.Run, siblings) -> Any:
    run.model  # noqa: B018  says what to do where there is no checkpoint
    weights = next(iter(run.folder.glob("checkpoint.*")))
    experiment = replace(run.experiment, dtype="float32")
    return siblings.build_model(experiment, len(run.class_names), run.spec["image_size"], weights=weights)


def _validation_photos(study: Study, run: runs.Run) -> pd.DataFrame:
    photos = run.validation[["sha256", "label"]].merge(
        read_photos(study.data)[["sha256", "path"]], on="sha256", how="left"
    )
    missing = photos["path"].isna().sum()
    if missing:
        raise FileNotFoundError(
            f"{study.data}: {missing} of {len(photos)} validation photos are not on this machine; the parity gate "
            "needs them: scrape or import them, or pass --data"
        )
    return photos


def _write_model(run: runs.Run, model: Any, to: str, path: Path) -> Callable[[np.ndarray], tuple]:
    """Write the model to `path` and give a function that answers with what was written."""
    if to == "onnx":
        layers = read_layers(run.spec["framework"], model)
        path.write_bytes(build_graph(run.experiment, layers, run.spec["image_size"]))
        return load_onnx(path, threads=1)
    write = _write_keras if run.spec["framework"] == "keras" else _write_tensorflow
    logits = write(model, to, path)
    return lambda images: (probabilities_from_logits(logits(images)), None)


def _write_keras(model, to: str, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import keras

    if to == "keras":
        model.save(path)
        loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
        return loaded.predict_on_batch
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"{to} needs Keras on TensorFlow, this is {keras.backend.backend()}; set KERAS_BACKEND")
    if to == "savedmodel":
        model.export(path, format="tf_saved_model", verbose=False)
        return _load_savedmodel(path, "serve", np.float32)
    model.export(path, format="litert", verbose=False)
    return _load_litert(path)


def _write_tensorflow(model, to: str, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    if to == "savedmodel":
        tf.saved_model.save(model, str(path), signatures={"serving_default": model.predict})
        return _load_savedmodel(path, "predict", np.uint8)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.predict.get_concrete_function()], model)
    path.write_bytes(converter.convert())
    return _load_litert(path)


def _load_savedmodel(path: Path, function: str, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: getattr(loaded, function)(tf.constant(images, dtype=dtype)).numpy()


def _load_litert(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

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


def _quantise(path: Path, images: np.ndarray) -> Callable[[np.ndarray], tuple]:
    """Replace the ONNX model at `path` by its int8 form, with ranges measured on images uint8 (N, S, S, 3).

    The dense layers alone, which hold nine tenths of the weights: convolutions in int8 cost a tiny model with batch
    norm 17 to 32 points of accuracy, dense layers none.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Photos(CalibrationDataReader):
        def __init__(self):
            self.batches = iter({"image": images[start : start + 1]} for start in range(len(images)))

        def get_next(self) -> dict | None:
            return next(self.batches, None)

    whole = path.with_suffix(".float32")
    os.replace(path, whole)
    quantize_static(str(whole), str(path), Photos(), per_channel=True, op_types_to_quantize=["Gemm"])
    whole.unlink()
    return load_onnx(path, threads=1)


def _fit_references(
    study: Study, run: runs.Run, predict, validation_images: np.ndarray, rejects: pd.DataFrame, show_progress: bool
) -> tuple[References, dict]:
    splits = read_splits(study)
    training = splits[(splits["split"] == "train") & splits["label"].isin(run.class_names)].sort_values("sha256")
    training = training.merge(read_photos(study.data)[["sha256", "path"]], on="sha256").head(REFERENCE_PHOTOS)

    def features(images: np.ndarray) -> np.ndarray:
        batches = [predict(np.asarray(images[start : start + 50]))[1] for start in range(0, len(images), 50)]
        return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)

    def features_of(photos: pd.DataFrame) -> np.ndarray:
        if photos.empty:
            return np.zeros((0, 0), np.float32)
        return features(load_images(study.data, photos, run.spec["image_size"], show_progress))

    known, validation = features_of(training), features(validation_images)
    rejects = rejects.sort_values("sha256", ignore_index=True).head(REFERENCE_PHOTOS)
    rejected, kinds = features_of(rejects), rejects["kind"].to_numpy(dtype=str)
    measured = reject_auroc(known, validation, rejected, kinds) if len(rejects) else {}
    return References.fit(known, validation, rejected, kinds), measured
