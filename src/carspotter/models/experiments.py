"""The experiments: what is tried, as plain values. The difference between two of them is the hypothesis.

Nothing here knows a framework: the three siblings read the same spec and the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from carspotter.photos.augmentation import draw_affine


@dataclass(frozen=True)
class Experiment:
    """One recipe: an architecture and its hyperparameters.

    A convolution block is conv 3×3 (no padding) → ReLU → max-pool 2; then flatten → dense → logits. Two classes give
    one logit (sigmoid), more give one each (softmax).
    """

    name: str
    conv_channels: tuple[int, ...] = (32, 64, 128, 128)
    dense_units: int = 512
    augment: bool = False  # one affine change per training photo and epoch, drawn by photos.augmentation
    dropout_rate: float = 0.0  # on the flattened features, where 90 % of the parameters hang
    batch_norm: Literal["none", "after_relu", "before_relu"] = "none"  # in every block, and on the dense layer
    optimizer: Literal["rmsprop"] = "rmsprop"  # the original's, so that our numbers can be held against its
    learning_rate: float = 1e-4  # the original's; ten times more and the baseline without batch norm stays at chance
    batch_size: int = 20  # the original's: 2,400 training photos are 120 steps an epoch
    # The original ran 50 to 200; most of what an experiment gains is there by 30, and five seeds fit into a night.
    epochs: int = 30
    # bfloat16: products in bfloat16, weights in float32. float64 is for the proofs of equality.
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"

    def __post_init__(self):
        choices = {
            "batch_norm": ("none", "after_relu", "before_relu"),
            "optimizer": ("rmsprop",),
            "dtype": ("float32", "bfloat16", "float64"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{self.name}: {field} is {getattr(self, field)!r}; use one of {', '.join(allowed)}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"{self.name}: dropout_rate is {self.dropout_rate}; it is a share, 0 or more and below 1")
        for field in ("batch_size", "epochs", "dense_units", "learning_rate"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{self.name}: {field} is {getattr(self, field)}; it must be above 0")


BASELINE = Experiment("baseline_cnn")
AUGMENTATION = replace(BASELINE, name="augmentation", augment=True)
DROPOUT = replace(AUGMENTATION, name="dropout", dropout_rate=0.5)
BATCH_NORM = replace(DROPOUT, name="batch_norm", batch_norm="after_relu")
BATCH_NORM_BEFORE_RELU = replace(BATCH_NORM, name="batch_norm_before_relu", batch_norm="before_relu")

SERIES = {
    experiment.name: experiment for experiment in (BASELINE, AUGMENTATION, DROPOUT, BATCH_NORM, BATCH_NORM_BEFORE_RELU)
}


def describe_difference(experiment: Experiment, before: Experiment) -> str:
    """Say in one line what `experiment` changes against `before`, as in "dropout_rate: 0.0 → 0.5"."""
    changes = [
        f"{field.name}: {getattr(before, field.name)} → {getattr(experiment, field.name)}"
        for field in fields(Experiment)
        if field.name != "name" and getattr(before, field.name) != getattr(experiment, field.name)
    ]
    return ", ".join(changes) or "no difference"


def feature_side(experiment: Experiment, image_size: int) -> int:
    """Give the side, in cells, of the feature map that is flattened; raises ValueError where nothing is left of it."""
    side = image_size
    for _ in experiment.conv_channels:
        side = (side - 2) // 2
    if side < 1:
        raise ValueError(
            f"{experiment.name}: images of {image_size} px vanish in {len(experiment.conv_channels)} convolution "
            "blocks; use larger images (46 px or more for four blocks) or fewer conv_channels"
        )
    return side


def draw_epoch(
    experiment: Experiment, seed: int, epoch: int, count: int, image_size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw what chance decides in one epoch: the order of `count` photos, and one affine change for each of them.

    Returns the order, int64 (count,), and matrices, float64 (count, 3, 3), output pixel → input pixel, in that order;
    None without augmentation. A function of its arguments alone: a resumed run repeats the draws of the killed one, and
    all frameworks see the same photos. `epoch` counts from 1.
    """
    order = np.random.default_rng([seed, epoch, 0]).permutation(count)
    if not experiment.augment:
        return order, None
    return order, draw_affine(np.random.default_rng([seed, epoch, 1]), count, image_size)
