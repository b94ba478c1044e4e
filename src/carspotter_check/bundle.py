"""A bundle on disk: a folder with a model, its manifest, the known photos' features and a card; checked before use."""

from __future__ import annotations

import hashlib
import json
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
SMALLEST_RISK = 1e-6
RANGES = {  # of the numbers in a manifest's tables; None: 0 … 100,000 for each
    "rejection": {"temperature": (1e-3, 1e3), "confidence": (0, 2), "risk": (SMALLEST_RISK, 1)},
    "listing": {"correlation": (0, 1), "unlike": (0, 1), "confidence": (0, 2)},
    "rejection.limits": None,
}

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
        require(path.stat().st_size <= LARGEST_MANIFEST, "it is larger than 1 MB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        require(isinstance(manifest, dict), "it is no JSON object")
        version = manifest.get("manifest_version")
        known = type(version) is int and version == MANIFEST_VERSION
        require(known, f"it has version {version!r}, this program reads {MANIFEST_VERSION}")
        check_manifest(manifest)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {str(error)[:200]}") from error
    for name, expected in manifest["files"].items():
        file = bundle / name
        inside = bundle.resolve() in file.resolve().parents
        require(inside, f"{path} names {name!r}, which lies outside the bundle")
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; export the run again")
        same = sha256_of(file) == expected
        require(same, f"{file} is not the file that was exported (its SHA-256 differs)")
    return manifest


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise ValueError, in one sentence, for a value that no export writes."""
    for key in ("run", "format", "preprocessing"):
        require(is_name(manifest.get(key)), f"{key} is {manifest.get(key)!r}, not a name")
    classes, size, files = (manifest.get(key) for key in ("classes", "image_size", "files"))
    names = isinstance(classes, list) and len(classes) >= 2 and all(map(is_name, classes))
    require(names, f"classes are {classes!r}, not a list of two or more names")
    require(len(set(classes)) == len(classes), f"classes are {classes!r}, of which two are equal")
    pixels = type(size) is int and 16 <= size <= LARGEST_IMAGE
    require(pixels, f"image_size is {size!r}, not a number of pixels from 16 to {LARGEST_IMAGE}")
    hashes = isinstance(files, dict) and all(is_name(name) and isinstance(value, str) for name, value in files.items())
    require(hashes, "files is no table of file names and SHA-256")
    for path, ranges in RANGES.items():
        table = manifest
        for key in path.split("."):
            table = table.get(key)
        require(isinstance(table, dict), f"{path} is missing, or no table of numbers")
        for key, (low, high) in (ranges or dict.fromkeys(table, (0, 1e5))).items():
            value = table.get(key)
            number = type(value) in (int, float) and low <= value <= high  # which NaN is not
            require(number, f"{path}.{key} is {value!r}, not a number from {low:g} to {high:g}")


def write_manifest(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write a bundle's manifest, with the SHA-256 of each of its files."""
    inside = (file for file in sorted(bundle.rglob("*")) if file.is_file() and file != bundle / MANIFEST)
    files = {file.relative_to(bundle).as_posix(): sha256_of(file) for file in inside}
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
        # Weights in another file have no hash in the manifest: they are looked for in a folder that does not exist.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path / "none"))
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        inputs = {one.name: (one.type, one.shape) for one in session.get_inputs()}
        widths = {one.name: one.shape[-1] for one in session.get_outputs()}
        written = session.get_modelmeta().custom_metadata_map
        about = {key: json.loads(written[key]) for key in ("classes", "mirrored") if key in written}
    except Exception as error:  # ONNX Runtime has its own exception for every way in which a file is no model
        raise ValueError(f"{path} is not a model that ONNX Runtime can load: {str(error).splitlines()[0]}") from error
    kind, shape = inputs.get("image", (None, ()))
    fits = kind == "tensor(uint8)" and len(shape) == 4 and {"logits", "features"} <= set(widths)
    require(fits, f"{path} does not take images and give logits and features")
    fits = image_size in (None, shape[1])
    require(fits, f"{path} takes images of {shape[1]} pixels, the manifest says {image_size}")
    width = len(classes) if classes and len(classes) > 2 else 1
    fits = classes is None or (widths["logits"] == width and about.get("classes") == classes)
    require(fits, f"{path} was made for other classes than the manifest's {classes}")
    # A batch's memory is given back after it; single photos keep theirs, for the next one.
    shrinking = onnxruntime.RunOptions()
    shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if about.get("mirrored"):
            images = np.concatenate([images, images[:, :, ::-1]])
        options = shrinking if len(images) > 2 else None
        logits, features = session.run(["logits", "features"], {"image": images}, options)
        found = probabilities_from_logits(logits), features
        if about.get("mirrored"):
            return tuple(both.reshape(2, -1, both.shape[1]).mean(axis=0) for both in found)
        return found

    return predict


def is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def require(holds: bool, sentence: str) -> None:
    """Raise ValueError with the sentence unless it holds."""
    if not holds:
        raise ValueError(sentence)
