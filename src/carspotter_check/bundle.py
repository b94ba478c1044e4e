"""A bundle on disk: a folder with a model, its manifest, the known photos' features and a card; checked before use."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from carspotter.models.metrics import probabilities_from_logits

MANIFEST, ONNX_MODEL, KNOWN = "manifest.json", "model.onnx", "known.npz"
MANIFEST_VERSION = 4
LARGEST_MANIFEST = 2**20  # bytes
LARGEST_IMAGE = 1_024  # pixels on a side

# images uint8 (N, S, S, 3) -> probabilities float32 (N, classes), features float32 (N, D) or None
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Read a bundle's manifest, check its values, and hold its files against the hashes in it.

    Raises FileNotFoundError where a file is missing, ValueError, in one sentence, for anything else.
    """
    path = bundle / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make a bundle with: python -m carspotter export RUN --to onnx")
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ValueError("it is larger than 1 MB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _require(isinstance(manifest, dict), "it is no JSON object")
        version = manifest.get("manifest_version")
        _require(
            type(version) is int and version == MANIFEST_VERSION,
            f"it has version {version!r}, this program reads {MANIFEST_VERSION}",
        )
        check_manifest(manifest)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {str(error)[:200]}; export the run again") from error
    for name, expected in manifest["files"].items():
        file = bundle / name
        if bundle.resolve() not in file.resolve().parents:
            raise ValueError(f"{path} names {name!r}, which lies outside the bundle; export the run again")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; export the run again")
        if sha256_of(file) != expected:
            raise ValueError(f"{file} is not the file that was exported (its SHA-256 differs); export the run again")
    return manifest


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise ValueError, in one sentence, for a value that no export writes."""
    for key in ("run", "format", "preprocessing"):
        _require(_is_name(manifest.get(key)), f"{key} is {manifest.get(key)!r}, not a name")
    classes, size, files = (manifest.get(key) for key in ("classes", "image_size", "files"))
    _require(
        isinstance(classes, list) and len(classes) >= 2 and all(map(_is_name, classes)),
        f"classes are {classes!r}, not a list of two or more names",
    )
    _require(len(set(classes)) == len(classes), f"classes are {classes!r}, of which two are equal")
    _require(
        type(size) is int and 16 <= size <= LARGEST_IMAGE,
        f"image_size is {size!r}, not a number of pixels from 16 to {LARGEST_IMAGE}",
    )
    _require(
        isinstance(files, dict) and all(isinstance(value, str) for value in files.values()),
        "files is no table of file names and SHA-256",
    )
    rejection = manifest.get("rejection")
    _require(isinstance(rejection, dict), "rejection, the table of thresholds, is missing")
    ranges = {"temperature": (1e-3, 1e3), "confidence": (0, 2), "risk": (1e-6, 1)}
    for key, (low, high) in ranges.items():
        _require_number(f"rejection.{key}", rejection.get(key), low, high)
    listing = manifest.get("listing")
    _require(isinstance(listing, dict), "listing, the rule for the photos of one car, is missing")
    for key, high in {"correlation": 1, "unlike": 1, "confidence": 2}.items():
        _require_number(f"listing.{key}", listing.get(key), 0, high)
    limits = rejection.get("limits")
    _require(isinstance(limits, dict), "rejection.limits, the table of the smallest brightness and so on, is missing")
    for key, value in limits.items():
        _require_number(f"rejection.limits.{key}", value, 0, 1e5)


def write_manifest(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write a bundle's manifest, with the SHA-256 of each of its files."""
    files = {
        file.relative_to(bundle).as_posix(): sha256_of(file) for file in sorted(bundle.rglob("*")) if file.is_file()
    }
    files.pop(MANIFEST, None)
    text = json.dumps(manifest | {"manifest_version": MANIFEST_VERSION, "files": files}, indent=2, ensure_ascii=False)
    (bundle / MANIFEST).write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_onnx(path: Path, threads: int = 0, classes: list[str] | None = None, image_size: int | None = None) -> Predict:
    """Load an ONNX model with outputs `logits` and `features`; `threads` 0: as many as cores.

    Raises ValueError where the file is not one, or is of other classes or another image size than given.
    """
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
        inputs = {one.name: (one.type, one.shape) for one in session.get_inputs()}
        widths = {one.name: one.shape[-1] for one in session.get_outputs()}
        written = session.get_modelmeta().custom_metadata_map
        about = {key: json.loads(written[key]) for key in ("classes", "mirrored") if key in written}
    except Exception as error:  # ONNX Runtime has its own exception for every way in which a file is no model
        raise ValueError(f"{path} is not a model that ONNX Runtime can load: {str(error).splitlines()[0]}") from error
    kind, shape = inputs.get("image", (None, ()))
    _require(
        kind == "tensor(uint8)" and len(shape) == 4 and {"logits", "features"} <= set(widths),
        f"{path} does not take images and give logits and features; export the run again",
    )
    side = shape[1]
    _require(
        image_size is None or side == image_size,
        f"{path} takes images of {side} pixels, the manifest says {image_size}; export the run again",
    )
    width = len(classes) if classes and len(classes) > 2 else 1
    _require(
        classes is None or (widths["logits"] == width and about.get("classes") == classes),
        f"{path} was made for other classes than the manifest's {classes}; export the run again",
    )
    # A batch's memory is given back after it; single photos keep theirs, for the next one.
    shrinking = onnxruntime.RunOptions()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if about.get("mirrored"):
            images = np.concatenate([images, images[:, :, ::-1]])
        logits, features = session.run(
            ["logits", "features"], {"image": images}, shrinking if len(images) > 2 else None
        )
        probabilities = probabilities_from_logits(logits)
        if about.get("mirrored"):
            probabilities, features = (
                both.reshape(2, -1, both.shape[1]).mean(axis=0) for both in (probabilities, features)
            )
        return probabilities, features

    return predict


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


def _require_number(name: str, value: Any, low: float, high: float) -> None:
    _require(
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high,
        f"{name} is {value!r}, not a number from {low:g} to {high:g}",
    )
