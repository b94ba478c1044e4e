"""Features of a frozen backbone: what a network that has seen a million photos says of ours. Computed once, cached.

MobileNetV2 (Sandler et al. 2018) from Keras, for curation's look-alikes, the photo check's reject option and quick
heads. The weights are a file that the caller names; nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from carspotter.models.experiments import MOBILENET_FEATURES
from carspotter.models.records import import_framework
from carspotter.models.weights import width_in_name
from carspotter.progress import progress_bar

# Raise this by hand when features change meaning: cached ones are then computed anew.
FEATURES_VERSION = 1


def extract_features(
    images: np.ndarray,
    weights: Path,
    alpha: float | None = None,
    cache: Path | None = None,
    batch_size: int = 64,
    show_progress: bool = True,
) -> np.ndarray:
    """Give MobileNetV2's pooled features of images uint8 (N, S, S, 3): float32 (N, 1280).

    `weights` is a Keras file without the top; `alpha`, the width, is read from its name where it is not given
    ("mobilenet_v2_0.35_224…"). Pixels are scaled to x / 127.5 - 1, which belongs to these weights. `cache` is a folder
    for features already computed. Raises FileNotFoundError for missing weights, ValueError when they do not fit, when
    no width can be told, or for images of another type.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; give the path of MobileNetV2 weights without the top")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images are {images.dtype} {images.shape}; features need uint8 (N, S, S, 3)")
    alpha = width_in_name(weights) if alpha is None else alpha
    path = cache / f"{_digest(images, weights, alpha)}.npy" if cache else None
    if path and path.exists():
        return np.load(path)
    features = _compute(images, weights, alpha, batch_size, show_progress)
    if path:
        _save(path, features)
    return features


def cached_features(cache: Path, key: str, photos: Iterable[str], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Give the features (N, F) of the photos with these hashes from the folder `cache`, or compute and keep them.

    `key` says all else that they depend on: weights, preprocessing, image size. They lie beside the image arrays and
    name their photos as those do, so that a forgotten photo's features go with it.
    """
    photos = list(photos)
    digest = hashlib.sha256("\n".join([key, str(FEATURES_VERSION), *photos]).encode()).hexdigest()[:32]
    path = cache / f"{digest}.npy"
    if not path.exists():
        features = compute()
        cache.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text("\n".join(photos) + "\n")
        _save(path, features)
    return np.load(path)


def _compute(images: np.ndarray, weights: Path, alpha: float, batch_size: int, show_progress: bool) -> np.ndarray:
    siblings = import_framework("keras")
    experiment = replace(MOBILENET_FEATURES, backbone_width=alpha, multi_level=False, mirrored=False)
    model = siblings.build_model(experiment, 2, images.shape[1])
    siblings.load_backbone(model, weights)
    features = [np.empty((0, model.get_layer("features").output.shape[1]), np.float32)]
    with progress_bar(len(images), "features", "photos", show_progress) as progress:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            features.append(siblings.compute_features(model, batch))
            progress.update(len(batch))
    return np.concatenate(features)


def _save(path: Path, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part.npy")
    np.save(partial, features)
    os.replace(partial, path)


def _digest(images: np.ndarray, weights: Path, alpha: float) -> str:
    digest = hashlib.sha256(f"{FEATURES_VERSION} {alpha} {images.shape}".encode())
    digest.update(hashlib.sha256(weights.read_bytes()).digest())
    for image in images:  # one at a time: a memory-mapped array stays on disk
        digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()[:32]
