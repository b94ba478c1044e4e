"""VGG16 in PyTorch: thirteen convolutions, written out, with the head of the series.

What to see here: a network is a list of stages. Cut before the first one that learns, both halves are networks.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import nn

from carspotter.models.experiments import Experiment
from carspotter.models.torch_cnn import DEVICE, recolour, transform

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # Simonyan & Zisserman 2014, D
MEANS = (103.939, 116.779, 123.68)  # of ImageNet's blue, green and red


class Stages(nn.Sequential):
    """Stages one after another, in bfloat16 where the experiment says so."""

    def __init__(self, stages: list[nn.Module], bfloat16: bool):
        super().__init__(*stages)
        self.bfloat16 = bfloat16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = next(self.parameters()).dtype
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
            return super().forward(x.to(dtype))


class Pixels(nn.Module):
    """Pixels as VGG16's weights know them: blue, green, red, less the means of ImageNet."""

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.tensor(MEANS).reshape(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flip(1) - self.means


class Pool(nn.Module):
    """The mean of each map, and where asked for its maximum: (N, C, h, w) to (N, C or 2C, 1, 1)."""

    def __init__(self, maximum: bool):
        super().__init__()
        self.maximum = maximum

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        mean = maps.mean((2, 3), keepdim=True)
        return torch.cat([mean, maps.amax((2, 3), keepdim=True)], 1) if self.maximum else mean


class Logits(nn.Linear):
    """A last sum that is never rounded to bfloat16: probabilities near 0 and 1 would clump."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def build_model(experiment: Experiment, classes: int) -> Stages:
    """Return VGG16 with a head: images (N, 3, S, S), 0 … 255, to logits, (N, 1) for two classes, else (N, classes).

    All weights are random; `load_backbone` brings the backbone's. Its blocks but the last `tuned_blocks` are frozen.
    """
    stages, before = [Pixels()], 3
    for number, block in enumerate(CHANNELS):
        stack = []
        for channels in block:
            stack += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        learns = number >= len(CHANNELS) - experiment.tuned_blocks
        stages.append(nn.Sequential(*stack, nn.MaxPool2d(2)).requires_grad_(learns))
    stages.append(Pool(maximum=experiment.pooling != "mean"))
    features = before * (1 if experiment.pooling == "mean" else 2)
    if experiment.pooling != "mean":  # a mean over many cells is small, a maximum large
        stages.append(nn.BatchNorm2d(features, eps=1e-3, momentum=0.1, affine=False))
    stages += [nn.Flatten(), nn.Dropout(experiment.dropout_rate)]
    if experiment.dense_units:
        stages += [nn.Linear(features, experiment.dense_units), nn.ReLU()]
    stages.append(Logits(experiment.dense_units or features, 1 if classes == 2 else classes))
    model = Stages(stages, experiment.dtype == "bfloat16")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    if experiment.dtype == "float64":
        model = model.double()
    return model.to(DEVICE, memory_format=torch.channels_last)


def load_backbone(model: Stages, path: Path, experiment: Experiment) -> None:
    """Load VGG16's weights, a Keras file without the top, old form or new; raises ValueError where they do not fit."""
    h5py = import_module("h5py")
    found: list[tuple[list, torch.Tensor]] = []

    def keep(name: str, node) -> None:
        if isinstance(node, h5py.Dataset):
            # block1_conv2 before block1_conv10; a kernel, which has four axes, before its bias
            parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.rsplit("/", 1)[0])]
            found.append(([parts, -node.ndim], torch.from_numpy(np.asarray(node, dtype=np.float32))))

    try:
        with h5py.File(path) as file:
            file.visititems(keep)
    except OSError as error:
        raise ValueError(f"{path}: not a file of Keras weights (HDF5): {error}") from error
    # Keras' kernels are (3, 3, in, out), PyTorch's (out, in, 3, 3).
    arrays = [a.permute(3, 2, 0, 1) if a.ndim == 4 else a for _, a in sorted(found, key=lambda pair: pair[0])]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    weights = [weight for layer in convolutions for weight in (layer.weight, layer.bias)]
    if [array.shape for array in arrays] != [weight.shape for weight in weights]:
        raise ValueError(
            f"{path}: {len(arrays)} arrays whose shapes are not those of VGG16's {len(convolutions)} convolutions; "
            "use Keras' weights without the top (notop)"
        )
    with torch.no_grad():
        for weight, array in zip(weights, arrays, strict=True):
            weight.copy_(array)


def split_model(model: Stages, experiment: Experiment) -> tuple[Stages, Stages]:
    """Return the frozen part of a model, images to maps, and the part that learns, maps to logits."""
    stages = list(model)
    # Pixels and blocks; a frozen backbone's maps are pooled too.
    cut = 1 + len(CHANNELS) - experiment.tuned_blocks if experiment.tuned_blocks else 2 + len(CHANNELS)
    return Stages(stages[:cut], model.bfloat16), Stages(stages[cut:], model.bfloat16)


@torch.inference_mode()
def compute_maps(
    frozen: Stages, images: np.ndarray, affine: np.ndarray | None = None, colours: np.ndarray | None = None
) -> np.ndarray:
    """Return the frozen part's maps of images uint8 (B, S, S, 3), augmented as in training: float32 (B, h, w, C)."""
    frozen.eval()
    device = next(frozen.parameters()).device
    batch = torch.tensor(images, device=device).permute(0, 3, 1, 2)
    if affine is not None:
        batch = transform(batch, torch.from_numpy(affine).to(device))
    if colours is not None:
        batch = recolour(batch, torch.from_numpy(colours).to(device))
    return frozen(batch).permute(0, 2, 3, 1).float().cpu().numpy()
