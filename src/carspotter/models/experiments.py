"""The experiments: what is tried, as plain values. The difference between two of them is the hypothesis.

Nothing here knows a framework: the three siblings read the same spec and the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import numpy as np

from carspotter.photos.augmentation import RANGES, draw_affine, draw_colour

# MobileNetV2's last maps at a quarter, an eighth, a sixteenth and a thirty-second of the image's side, by Keras' names.
MOBILENET_LEVELS = ("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu", "out_relu")
MOBILENET_BLOCKS = 16  # block_1 … block_16; the last convolution goes with the last block
VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


# What a run can be asked for; float64 is for the proofs of equality.
TRAINING_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Experiment:
    """One recipe: an architecture and its hyperparameters.

    A convolution block is conv 3×3 (no padding) → ReLU → max-pool 2; then flatten → dense → logits. Two classes give
    one logit (sigmoid), more give one each (softmax). A backbone comes with weights that were learned elsewhere: its
    convolutions are padded, its last maps are averaged instead of flattened, and it sees the pixels it was trained on.
    """

    name: str
    conv_channels: tuple[int | tuple[int, ...], ...] = (32, 64, 128, 128)  # per block; several convolutions: a tuple
    dense_units: int = 512  # 0: the logits hang on the features
    averaged: bool = False  # convolutions padded and the last maps averaged, as a backbone's; else flattened
    augment: bool = False  # one affine change per training photo and epoch, drawn by photos.augmentation
    ranges: Literal["original", "mild"] = "original"  # how far photos are changed: photos.augmentation.RANGES
    mirrored: bool = False  # at inference the features are the mean of the photo's and of its mirror image's
    dropout_rate: float = 0.0  # on the flattened features, where 90 % of the parameters hang
    batch_norm: Literal["none", "after_relu", "before_relu"] = "none"  # in every block, and on the dense layer
    # RMSprop at a constant rate is the original's, so that our numbers can be held against its. One cycle: see below.
    optimizer: Literal["rmsprop", "adam_one_cycle"] = "rmsprop"
    learning_rate: float = 1e-4  # the original's; ten times more and the baseline without batch norm stays at chance
    batch_size: int = 20  # the original's: 2,400 training photos are 120 steps an epoch
    # The original ran 50 to 200; most of what an experiment gains is there by 30, and five seeds fit into a night.
    epochs: int = 30
    image_size: int = 150  # pixels on a side, the original's
    backbone: Literal[None, "vgg16", "mobilenet_v2"] = None
    backbone_width: float = 1.0  # MobileNetV2's α; a run takes it from the name of the weights file
    # The head sees the mean and the maximum of MOBILENET_LEVELS, each brought to one scale, instead of the last maps'
    # means: what parts are there at every resolution, which "a car" has thrown away by the end.
    multi_level: bool = False
    tuned_blocks: int = 0  # the backbone's last blocks, learning with the head; 0: frozen, its features computed once
    starts_from: str | None = None  # the experiment from whose trained weights this one goes on
    # bfloat16: products in bfloat16, weights in float32.
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"

    def __post_init__(self):
        choices = {
            "batch_norm": ("none", "after_relu", "before_relu"),
            "ranges": tuple(RANGES),
            "optimizer": ("rmsprop", "adam_one_cycle"),
            "dtype": (*TRAINING_DTYPES, "float64"),
            "backbone": (None, "vgg16", "mobilenet_v2"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{self.name}: {field} is {getattr(self, field)!r}; use one of {', '.join(map(str, allowed))}"
                )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"{self.name}: dropout_rate is {self.dropout_rate}; it is a share, 0 or more and below 1")
        for field in ("batch_size", "epochs", "image_size", "learning_rate"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{self.name}: {field} is {getattr(self, field)}; it must be above 0")
        if self.batch_norm != "none" and self.backbone:
            raise ValueError(f"{self.name}: batch_norm is {self.batch_norm!r}; a backbone keeps its own, use 'none'")
        if not self.conv_channels and self.backbone != "mobilenet_v2":
            raise ValueError(f"{self.name}: conv_channels is empty; give one block at least")
        if self.multi_level and self.backbone != "mobilenet_v2":
            raise ValueError(f"{self.name}: multi_level is True; it is there for the backbone mobilenet_v2 only")
        if self.augment and self.frozen:
            raise ValueError(f"{self.name}: augment is True; the features of a frozen backbone are computed once")
        tunable = {None: 0, "vgg16": len(self.conv_channels), "mobilenet_v2": MOBILENET_BLOCKS}[self.backbone]
        if not 0 <= self.tuned_blocks <= tunable:
            raise ValueError(f"{self.name}: tuned_blocks is {self.tuned_blocks}; its backbone has {tunable} to tune")

    @property
    def any_size(self) -> bool:
        """Whether convolutions are padded and the last maps averaged: then the weights fit images of any size."""
        return self.averaged or self.backbone is not None

    @property
    def frozen(self) -> bool:
        """Whether a backbone is there and nothing of it learns: then its features are all that training needs."""
        return self.backbone is not None and self.tuned_blocks == 0


BASELINE = Experiment("baseline_cnn")
AUGMENTATION = replace(BASELINE, name="augmentation", augment=True)
DROPOUT = replace(AUGMENTATION, name="dropout", dropout_rate=0.5)
BATCH_NORM = replace(DROPOUT, name="batch_norm", batch_norm="after_relu")
BATCH_NORM_BEFORE_RELU = replace(BATCH_NORM, name="batch_norm_before_relu", batch_norm="before_relu")

# To learn fast from few photos: narrow, deep, padded blocks on small images (a step costs a fifth of the baseline's,
# .27 GFLOP a photo), 257 weights in the head, milder changes with colours, and the step sizes of one cycle.
FAST_RECIPE = Experiment(
    "fast_recipe",
    conv_channels=(16, 32, 64, 128, 256),
    dense_units=0,
    averaged=True,
    augment=True,
    ranges="mild",
    mirrored=True,
    batch_norm="before_relu",
    optimizer="adam_one_cycle",
    learning_rate=2e-3,
    batch_size=32,
    epochs=40,
    image_size=96,
)

# The head of Chollet's book (Deep Learning with Python, 2017), but on averaged maps: 131,585 parameters, not 2 million.
VGG16_FEATURES = Experiment(
    "vgg16_features", VGG16_CHANNELS, dense_units=256, dropout_rate=0.5, learning_rate=1e-3, backbone="vgg16"
)
# A hundredth of the head's rate: a backbone that has seen a million photos shall move a little, not forget.
VGG16_FINE_TUNE = replace(
    VGG16_FEATURES,
    name="vgg16_fine_tune",
    augment=True,
    learning_rate=1e-5,
    tuned_blocks=1,
    starts_from="vgg16_features",
)
# A linear head: 4,385 parameters. 224 px is what the weights were learned on, and the photos are larger than that.
MOBILENET_FEATURES = Experiment(
    "mobilenet_features",
    conv_channels=(),
    dense_units=0,
    mirrored=True,
    multi_level=True,
    dropout_rate=0.5,
    learning_rate=1e-3,
    image_size=224,
    backbone="mobilenet_v2",
)
# The last blocks learn with a linear head, at a rate that both can bear: what tells one sedan from another is not what
# told a thousand kinds of things apart. Eight epochs: the weights know photos already (more were not tried).
MOBILENET_FINE_TUNE = Experiment(
    "mobilenet_fine_tune",
    conv_channels=(),
    dense_units=0,
    augment=True,
    ranges="mild",
    mirrored=True,
    dropout_rate=0.3,
    optimizer="adam_one_cycle",
    learning_rate=3e-4,
    batch_size=32,
    epochs=8,
    image_size=224,
    backbone="mobilenet_v2",
    tuned_blocks=7,
)

SERIES = {
    experiment.name: experiment
    for experiment in (
        BASELINE,
        AUGMENTATION,
        DROPOUT,
        BATCH_NORM,
        BATCH_NORM_BEFORE_RELU,
        VGG16_FEATURES,
        VGG16_FINE_TUNE,
        MOBILENET_FEATURES,
        MOBILENET_FINE_TUNE,
        FAST_RECIPE,
    )
}

# What a backbone's weights want to see in place of 0 … 255; without a backbone it is x / 255. Part of a run's record.
PIXELS = {
    None: "RGB / 255",
    "vgg16": "BGR - (103.939, 116.779, 123.68)",  # Caffe's; torchvision's default weights want others
    "mobilenet_v2": "RGB / 127.5 - 1",
}
CAFFE_MEANS = (103.939, 116.779, 123.68)  # of ImageNet, blue, green, red


class Convolution(NamedTuple):
    """One convolution: its output channels, whether a max-pool follows, whether it learns."""

    channels: int
    pooled: bool
    learns: bool


def convolutions(experiment: Experiment) -> list[Convolution]:
    """Give the convolutions that a sibling builds, in order; none for MobileNetV2, which Keras brings."""
    found = []
    for number, block in enumerate(experiment.conv_channels):
        learns = experiment.backbone is None or number >= len(experiment.conv_channels) - experiment.tuned_blocks
        block = block if isinstance(block, tuple) else (block,)
        found += [Convolution(channels, i == len(block) - 1, learns) for i, channels in enumerate(block)]
    return found


def describe_difference(experiment: Experiment, before: Experiment) -> str:
    """Say in one line what `experiment` changes against `before`, as in "dropout_rate: 0.0 → 0.5"."""
    changes = [
        f"{field.name}: {getattr(before, field.name)} → {getattr(experiment, field.name)}"
        for field in fields(Experiment)
        if field.name != "name" and getattr(before, field.name) != getattr(experiment, field.name)
    ]
    return ", ".join(changes) or "no difference"


def feature_side(experiment: Experiment, image_size: int) -> int:
    """Give the side, in cells, of the last feature map; raises ValueError where nothing is left of it."""
    if experiment.any_size:
        blocks = len(experiment.conv_channels) or 5
        side, smallest = image_size // 2**blocks, 2**blocks
    else:
        side, smallest = image_size, 1
        for _ in experiment.conv_channels:
            side, smallest = (side - 2) // 2, 2 * smallest + 2
    if side < 1:
        raise ValueError(
            f"{experiment.name}: images of {image_size} px vanish in {len(experiment.conv_channels)} convolution "
            f"blocks; use larger images ({smallest} px or more) or fewer conv_channels"
        )
    return side


def feature_count(experiment: Experiment, image_size: int) -> int:
    """Give the number of features that the head sees: the last maps flattened or averaged.

    Raises ValueError for images too small, and for MobileNetV2, which only Keras has.
    """
    if experiment.backbone == "mobilenet_v2":
        raise ValueError(f"{experiment.name}: MobileNetV2 is there in Keras only; use framework keras")
    side, channels = feature_side(experiment, image_size), convolutions(experiment)[-1].channels
    return channels if experiment.any_size else side**2 * channels


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
    ranges = RANGES[experiment.ranges]
    return order, draw_affine(np.random.default_rng([seed, epoch, 1]), count, image_size, ranges)


def draw_colours(experiment: Experiment, seed: int, epoch: int, count: int) -> np.ndarray | None:
    """Draw one colour change for each of an epoch's photos: float64 (count, 3, 4), by `photos.augmentation`.

    None where the experiment changes no colours. A function of its arguments alone, as `draw_epoch`.
    """
    ranges = RANGES[experiment.ranges]
    if not (experiment.augment and ranges.colours):
        return None
    return draw_colour(np.random.default_rng([seed, epoch, 2]), count, ranges)


def learning_rates(experiment: Experiment, steps: int) -> np.ndarray:
    """Give the learning rate of each of `steps` steps: float32, because Keras keeps it so.

    One cycle (Smith & Topin 2018, with a cosine): up to `learning_rate` over the first 15 %, then down to nothing.
    """
    if experiment.optimizer == "rmsprop":
        return np.full(steps, experiment.learning_rate, np.float32)
    gone, warm = np.arange(1, steps + 1) / (steps + 1), 0.15
    down = (1 + np.cos(np.pi * (gone - warm) / (1 - warm))) / 2
    return (experiment.learning_rate * np.where(gone < warm, gone / warm, down)).astype(np.float32)
