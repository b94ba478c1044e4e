"""What decided? Grad-CAM in each framework, for the notebooks; an occlusion map for any model, for the server.

A heat map convinces whether it is right or not. `deletion_check` asks: does the score fall more when the marked region
is covered than when another of the same shape is?
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from carspotter.models.store import Run

CELLS = 8  # on a side of the occlusion map
PLACES = [(row, column) for row in range(CELLS - 1) for column in range(CELLS - 1)]  # of its windows
Probabilities = Callable[[np.ndarray], np.ndarray]  # images uint8 (N, S, S, 3) -> (N, classes)


def occlusion_map(predict: Probabilities, image: np.ndarray, label: int) -> np.ndarray:
    """Cover the image (uint8 (S, S, 3)) piece by piece: float32 (CELLS, CELLS), by how much class `label` loses.

    A window of 2×2 cells, in the image's mean colour, takes every position; a cell gets the mean of the windows over
    it, in probability. Negative values: the class gains without it. Zeiler & Fergus 2014.
    """
    edges = np.linspace(0, len(image), CELLS + 1).round().astype(int)
    mean = image.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    whole = predict(image[np.newaxis])[0, label]
    total, windows = np.zeros((2, CELLS, CELLS), np.float32)
    for start in range(0, len(PLACES), 8):  # all at once would take a gigabyte
        places = PLACES[start : start + 8]
        covered = np.repeat(image[np.newaxis], len(places), axis=0)
        for picture, (row, column) in zip(covered, places, strict=True):
            picture[edges[row] : edges[row + 2], edges[column] : edges[column + 2]] = mean
        for drop, (row, column) in zip(whole - predict(covered)[:, label], places, strict=True):
            total[row : row + 2, column : column + 2] += drop
            windows[row : row + 2, column : column + 2] += 1
    return total / windows


def grad_cam(run: Run, image: np.ndarray, label: int) -> np.ndarray:
    """Return the Grad-CAM of class `label` on an image uint8 (S, S, 3): float32 (h, w), 0 or more, the last maps' grid.

    Channels of the maps before the last max-pool are weighted by the mean gradient of the class's logit; negative sums
    are cut off. Selvaraju et al. 2017. Where a prediction averages the mirror image in, so does the map. Raises
    ValueError for a model without max-pools and for a Keras backend without gradients, FileNotFoundError without
    checkpoint.
    """
    views = [image, image[:, ::-1]] if run.experiment.average_mirror_images else [image]
    look = _torch_maps if run.framework == "torch" else _keras_maps
    heat = 0.0
    for turn, view in zip((1, -1), views, strict=False):
        activations, gradients = look(run.model, np.ascontiguousarray(view), label)
        heat += np.einsum("nhwc,nc->hw", activations, gradients.mean(axis=(1, 2)))[:, ::turn]
    return np.maximum(heat, 0).astype(np.float32)


def deletion_check(predict: Probabilities, image: np.ndarray, heat: np.ndarray, label: int) -> tuple[float, float]:
    """Return how much class `label` drops when the hottest fifth is covered, and the mean drop of 20 random covers.

    `heat` (h, w) of any size. A random cover is the same shape moved elsewhere (it wraps around the border). A map that
    shows what decides gives a clearly larger first number. After Petsiuk et al. 2018.
    """
    size = len(image)
    places = np.arange(size) * np.array(heat.shape)[:, None] // size
    large = heat[places[0][:, None], places[1][None, :]]
    ranks = np.argsort(np.argsort(-large, axis=None, kind="stable")).reshape(large.shape)
    marked = ranks < 0.2 * size * size
    rng = np.random.default_rng(0)
    masks = [marked, *(np.roll(marked, rng.integers(1, size, 2), axis=(0, 1)) for _ in range(20))]
    covered = np.stack([np.where(mask[..., None], image.reshape(-1, 3).mean(axis=0), image) for mask in masks])
    drops = predict(image[np.newaxis])[0, label] - predict(covered.astype(np.uint8))[:, label]
    return float(drops[0]), float(drops[1:].mean())


def _keras_maps(model, image: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
    import keras

    pools = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    if not pools:
        raise ValueError(f"{model.name} has no convolution blocks of its own to look into; use occlusion_map")
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"Grad-CAM needs Keras on TensorFlow, this is {keras.backend.backend()}; set KERAS_BACKEND")
    import tensorflow as tf

    both = keras.Model(model.inputs[0], [pools[-1].input, model.outputs[0]])
    with tf.GradientTape() as tape:
        activations, logits = both(image[np.newaxis].astype(np.float32))
        score = _score(logits, label)
    return tuple(maps.numpy().astype(np.float32) for maps in (activations, tape.gradient(score, activations)))


def _torch_maps(model, image: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    pools = [layer for layer in model.modules() if isinstance(layer, torch.nn.MaxPool2d)]
    kept = []
    hook = pools[-1].register_forward_pre_hook(lambda layer, inputs: kept.append(inputs[0].requires_grad_()))
    try:
        batch = torch.from_numpy(image).to(next(model.parameters()).device)[None].permute(0, 3, 1, 2)
        score = _score(model.eval()(batch), label)
    finally:
        hook.remove()
    (gradients,) = torch.autograd.grad(score, kept[0])
    return tuple(maps.detach().permute(0, 2, 3, 1).float().cpu().numpy() for maps in (kept[0], gradients))


def _score(logits, label: int):
    """Return the class's logit; of two classes one logit speaks for the second and, negated, for the first."""
    if logits.shape[1] == 1:
        return logits[0, 0] if label else -logits[0, 0]
    return logits[0, label]
