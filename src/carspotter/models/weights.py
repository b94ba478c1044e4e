"""Weights that a backbone learned elsewhere: which file, where it comes from, what is in it.

`weights` is "imagenet" (a file known by name, downloaded where it can be), the path of a file, the first twelve
digits of a file's SHA-256 (finds the runs that were recorded with it), or "none" (random ones, for trying things out).
Whatever it was: a finished run's checkpoint holds the whole model and needs the file no more.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from carspotter.progress import progress_bar

if TYPE_CHECKING:
    from carspotter.models.experiments import Experiment

# Keras' own, without the top: where Keras gets them, and its name for them in its cache.
PUBLISHED = "https://storage.googleapis.com/tensorflow/keras-applications"
FILES = {
    "vgg16": "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "mobilenet_v2": "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_224_no_top.h5",
}
MD5 = {"vgg16": "6d6bbae143d832006294945121d1f1fc"}  # MobileNetV2's are published without a hash
SECONDS = 30  # without an answer: offline, and said so


def identify_weights(weights: str | Path) -> str:
    """Give what names these weights in a run's id: "imagenet", "none", or the start of the file's SHA-256."""
    if str(weights) in ("imagenet", "none") or _is_digest(weights):
        return str(weights)
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights}: no such file of weights; give a path, imagenet or none")
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:12]


def find_weights(experiment: Experiment, weights: str | Path) -> Path | None:
    """Give the file of `weights` for the experiment's backbone, downloaded where that is needed; None for "none".

    Keras' cache (`KERAS_HOME` or ~/.keras, folder models) is looked into first and written to. Raises
    FileNotFoundError, saying which file to bring, where it cannot be had.
    """
    if str(weights) == "none":
        return None
    if _is_digest(weights):
        raise FileNotFoundError(f"{weights} names runs that are recorded; to train another give the weights' file")
    if str(weights) != "imagenet":
        return Path(weights)
    name = FILES[experiment.backbone].format(width=experiment.backbone_width)
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    path = cache / name.split("/")[1]
    if not path.exists():
        _download(f"{PUBLISHED}/{name}", path, MD5.get(experiment.backbone))
    return path


def _is_digest(weights: str | Path) -> bool:
    return re.fullmatch("[0-9a-f]{12}", str(weights)) is not None


def width_in_name(weights: Path) -> float:
    """Read MobileNetV2's width from the name of its file, as in "mobilenet_v2_0.35_224…"; raises ValueError."""
    found = re.search(r"mobilenet_v2_(?:weights_tf_dim_ordering_tf_kernels_)?(\d\.\d+)", Path(weights).name)
    if found is None:
        raise ValueError(f"{weights}: the name does not tell the width; pass alpha, or name it mobilenet_v2_1.0_224…")
    return float(found[1])


def read_vgg16(path: Path, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Read kernel and bias of each convolution from a Keras file without the top, in the order of the layers: float32.

    Both of Keras' forms (.h5 and .weights.h5). `shapes` are those that the model has; raises ValueError for others.
    """
    h5py = import_module("h5py")
    found: list[tuple[list, np.ndarray]] = []

    def keep(name: str, node) -> None:
        if isinstance(node, h5py.Dataset):
            # block1_conv2 before block1_conv10; a kernel, which has four axes, before its bias
            parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.rsplit("/", 1)[0])]
            found.append(([parts, -node.ndim], np.asarray(node, dtype=np.float32)))

    try:
        with h5py.File(path) as file:
            file.visititems(keep)
    except OSError as error:
        raise ValueError(f"{path}: not a file of Keras weights (HDF5): {error}") from error
    arrays = [array for _, array in sorted(found, key=lambda pair: pair[0])]
    if [array.shape for array in arrays] != list(shapes):
        raise ValueError(
            f"{path}: {len(arrays)} arrays whose shapes are not those of VGG16's {len(shapes) // 2} convolutions; "
            "use Keras' weights without the top (notop)"
        )
    return arrays


def _download(url: str, path: Path, md5: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer, open(partial, "wb") as file:
            size = int(answer.headers.get("Content-Length", 0))
            with progress_bar(size, path.name, "bytes") as progress:
                while chunk := answer.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
                    progress.update(len(chunk))
        if size and partial.stat().st_size != size:
            raise OSError(f"only {partial.stat().st_size:,} of {size:,} bytes came")
        if md5 and digest.hexdigest() != md5:
            raise ValueError(f"{url}: the file came damaged (MD5 {digest.hexdigest()}, not {md5}); try again")
        os.replace(partial, path)
    except OSError as error:
        raise FileNotFoundError(
            f"the weights are not on this machine and cannot be downloaded ({error}). On a machine with internet fetch "
            f"{url}, and give its path with --weights FILE or put it at {path}; --weights none takes random ones"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
