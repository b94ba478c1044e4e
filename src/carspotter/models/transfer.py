"""Transfer: a backbone's weights, and the maps of its frozen part, computed once and kept in `data/images`."""

from __future__ import annotations

import hashlib
import http.client
import importlib
import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from carspotter.models.experiments import MOBILENET_FEATURES, Experiment
from carspotter.models.store import import_framework
from carspotter.paths import Study, atomic_write
from carspotter.photos.augmentation import RANGES, draw_affine, draw_colours
from carspotter.photos.images import PREPROCESSING
from carspotter.progress import progress_bar

# What a backbone does to pixels 0 … 255 before its first convolution; it belongs to its weights.
PIXELS = {None: "RGB / 255", "vgg16": "BGR - (103.939, 116.779, 123.68)", "mobilenet_v2": "RGB / 127.5 - 1"}
# Keras' own files without the top: where Keras gets them, and what such a file is called in a folder of weights.
PUBLISHED = "https://storage.googleapis.com/tensorflow/keras-applications"
FILES = {
    "vgg16": "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "mobilenet_v2": "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_224_no_top.h5",
}
PATTERNS = {"vgg16": "vgg16*notop*.h5", "mobilenet_v2": "mobilenet_v2_*{width}_224*no_top*.h5"}
MD5 = {"vgg16": "6d6bbae143d832006294945121d1f1fc"}  # MobileNetV2's are published without a hash
SECONDS = 30  # without an answer: offline, and said so
FEATURES_VERSION = 2  # raise this by hand when cached features and maps change meaning
BATCH = 50  # images that a frozen part sees at a time


def identify_weights(experiment: Experiment) -> str:
    """Return what names the weights in a run's id: 12 digits of the file's SHA-256, "none", "" without a backbone."""
    if experiment.backbone is None:
        return ""
    weights = str(experiment.weights)
    return weights if weights == "none" or _is_digest(weights) else hash_file(find_weights(experiment))


def hash_file(path: Path) -> str:
    """Return the first 12 digits of a file's SHA-256."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of weights; give a path, imagenet or none")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def find_weights(experiment: Experiment) -> Path | None:
    """Return the file of the backbone's weights, downloaded where needed; None for "none" or no backbone.

    "imagenet" looks into Keras' cache (`KERAS_HOME` or ~/.keras), and downloads there; a folder is searched. Raises
    FileNotFoundError, saying which file to bring.
    """
    weights = str(experiment.weights)
    if experiment.backbone is None or weights == "none":
        return None
    if _is_digest(weights):
        raise FileNotFoundError(f"{weights} names recorded runs; to train another, give the weights' file")
    file, pattern = (names[experiment.backbone].format(width=experiment.backbone_width) for names in (FILES, PATTERNS))
    if weights == "imagenet":
        path = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models" / Path(file).name
        if not path.exists():
            _download(f"{PUBLISHED}/{file}", path, MD5.get(experiment.backbone))
        return path
    if not Path(weights).is_dir():
        return Path(weights)
    if not (found := sorted(Path(weights).glob(pattern))):
        raise FileNotFoundError(f"{weights}: no file {pattern} in this folder")
    return found[0]


def width_in_name(weights: Path) -> float:
    """Read MobileNetV2's width from the name of its file, as in "mobilenet_v2_0.35_224…"."""
    found = re.search(r"mobilenet_v2_(?:weights_tf_dim_ordering_tf_kernels_)?(\d\.\d+)", Path(weights).name)
    if found is None:
        raise ValueError(f"{weights}: the name does not tell the width; name it mobilenet_v2_1.0_224…")
    return float(found[1])


@dataclass
class Learner:
    """What is trained and on what: the whole model on images, or its head, with shared weights, on maps."""

    study: Study
    spec: dict[str, Any]
    experiment: Experiment
    lesson: ModuleType
    builder: ModuleType
    model: Any
    show_progress: bool

    def __post_init__(self):
        self.body, self.trained = None, self.model
        if self.experiment.cached:
            self.body, self.trained = self.builder.split_model(self.model, self.experiment)

    def views(self, photos: pd.DataFrame, images: np.ndarray) -> list[np.ndarray]:
        """Return what `trained` sees of photos: images uint8 (N, S, S, 3), or their maps, plain and mirrored."""
        if self.body is None:
            return [images]
        views = [self._maps(photos, images, "plain")]
        if self.experiment.average_mirror_images:
            views.append(self._maps(photos, images[:, :, ::-1], "mirrored"))
        return views

    def copies(self, photos: pd.DataFrame, images: np.ndarray) -> list[np.ndarray]:
        """Return the training input: images or their maps, and maps of augmented copies; N rows each."""
        if self.body is None:
            return [images]
        copies = range(1, self.experiment.cached_copies + 1)
        return [self._maps(photos, images, "plain"), *(self._maps(photos, images, "copy", copy) for copy in copies)]

    def predict(self, views: list[np.ndarray]) -> np.ndarray:
        """Return the class probabilities of photos, by their views: float32 (N, classes)."""
        if self.body is None:
            return self.lesson.predict(self.trained, views[0], self.experiment)
        plain = replace(self.experiment, average_mirror_images=False)
        return sum(self.lesson.predict(self.trained, view, plain) for view in views) / len(views)

    def _maps(self, photos: pd.DataFrame, images: np.ndarray, what: str, copy: int = 0) -> np.ndarray:
        """Return the frozen part's maps of images, or of their augmented copy of this number, from the cache."""
        spec, names = self.spec["experiment"], ("backbone", "backbone_width", "image_size", "dtype", "weights")
        key = [spec[name] for name in (*names, "tuned_blocks", "pooling")]
        key += [self.spec["framework"], self.spec["pixels"], what, copy]
        key += [self.spec["seed"]] if spec["weights"] == "none" else []  # random weights: another draw each time
        key += [self.experiment.augmentation] if copy else []

        def compute() -> np.ndarray:
            affine = colours = None
            if copy:
                ranges, size = RANGES[self.experiment.augmentation], self.experiment.image_size
                affine = draw_affine(np.random.default_rng([copy, 1]), len(images), size, ranges).astype(np.float32)
                if ranges.colours:
                    colours = draw_colours(np.random.default_rng([copy, 2]), len(images), ranges).astype(np.float32)
            # Half the space; numpy has no bfloat16, and maps stay far below float16's limit of 65,504.
            dtype = np.float16 if self.experiment.dtype == "bfloat16" else np.float32
            return compute_maps(self.builder, self.body, images, affine, colours, dtype, self.show_progress)

        key = json.dumps([PREPROCESSING, *key])
        return cached_features(self.study.images, key, photos["sha256"], compute)


def compute_maps(
    builder: ModuleType,
    frozen: Any,
    images: np.ndarray,
    affine: np.ndarray | None = None,
    colours: np.ndarray | None = None,
    dtype: type = np.float32,
    show_progress: bool = True,
) -> np.ndarray:
    """Return the frozen part's maps of images uint8 (N, S, S, 3), changed first where asked: (N, h, w, C)."""
    maps = None
    with progress_bar(len(images), "maps", "photos", show_progress) as progress:
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            batch = np.ascontiguousarray(images[rows])
            of_batch = builder.compute_maps(frozen, batch, *(None if x is None else x[rows] for x in (affine, colours)))
            if maps is None:
                maps = np.empty((len(images), *of_batch.shape[1:]), dtype)
            maps[rows] = of_batch
            progress.update(len(of_batch))
    return maps


def cached_features(cache: Path, key: str, photos: Iterable[str], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return features (N, …) of the photos with these hashes from the folder `cache`, or compute and keep them.

    `key` names all else that they depend on. A .txt file names the photos, so that `forget` finds their features.
    """
    photos = list(photos)
    digest = hashlib.sha256("\n".join([key, str(FEATURES_VERSION), *photos]).encode()).hexdigest()[:32]
    path = cache / f"{digest}.npy"
    if not path.exists():
        features = compute()
        with atomic_write(path.with_suffix(".txt")) as part:
            part.write_text("\n".join(photos) + "\n")
        with atomic_write(path) as part:
            np.save(part, features)
    return np.load(path, mmap_mode="r")


def extract_features(images: np.ndarray, weights: Path, show_progress: bool = True) -> np.ndarray:
    """Return MobileNetV2's pooled features of images: float32 (N, 1280); the name of `weights` tells the width."""
    if not len(images):
        return np.empty((0, 1280), np.float32)
    import_framework("keras")
    builder = importlib.import_module("carspotter.models.keras_transfer")
    experiment = replace(
        MOBILENET_FEATURES, backbone_width=width_in_name(weights), pooling="mean", image_size=images.shape[1]
    )
    model = builder.build_model(experiment, 2)
    builder.load_backbone(model, weights, experiment)
    body, _ = builder.split_model(model, experiment)
    return compute_maps(builder, body, images, show_progress=show_progress).reshape(len(images), -1)


def read_features(framework: str, model: Any, images: np.ndarray, mirrored: bool = False) -> np.ndarray:
    """Return what a model's last layer sees of images, or on average of both mirror images: float32 (N, features)."""
    if mirrored:
        both = (read_features(framework, model, view) for view in (images, images[:, :, ::-1]))
        return sum(both) / 2
    if framework != "torch":
        keras = importlib.import_module("keras")
        features = keras.Model(model.inputs, model.layers[-1].input).predict(images, batch_size=BATCH, verbose=0)
        return np.asarray(features).astype(np.float32)
    torch, seen = importlib.import_module("torch"), []
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].float().cpu().numpy()))
    try:
        with torch.inference_mode():
            model.eval()
            for start in range(0, len(images), BATCH):
                batch = torch.tensor(np.ascontiguousarray(images[start : start + BATCH]), device=last.weight.device)
                model(batch.permute(0, 3, 1, 2))
    finally:
        hook.remove()
    return np.concatenate(seen)


def _is_digest(weights: str | Path) -> bool:
    return re.fullmatch("[0-9a-f]{12}", str(weights)) is not None


def _download(url: str, path: Path, md5: str | None) -> None:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            size = int(answer.headers.get("Content-Length", 0)) / 1e6
            print(f"downloading {path.name}, {size:.0f} MB", file=sys.stderr, flush=True)
            content = answer.read()
    except (OSError, http.client.IncompleteRead) as error:
        raise FileNotFoundError(
            f"the weights are not on this machine and cannot be downloaded ({error}). On a machine with internet fetch "
            f"{url}, and give its path with --weights FILE or put it at {path}; --weights none takes random ones"
        ) from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 and digest != md5:
        raise ValueError(f"{url}: the file came damaged (MD5 {digest}, not {md5}); try again")
    with atomic_write(path) as part:
        part.write_bytes(content)
