"""The experiments as plain values: the difference between two of them is the hypothesis."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from carspotter.photos.augmentation import RANGES, draw_affine, draw_colours

TRAINING_DTYPES = ("float32", "bfloat16")
BLOCKS = {None: 0, "vgg16": 5, "mobilenet_v2": 16}  # of a backbone, those that `tuned_blocks` counts from the end


@dataclass(frozen=True)
class Experiment:
    """One recipe: everything that makes a run this run, except framework, seed and study.

    A convolution block is convolution 3×3 → ReLU → max-pool 2; then flatten → dense → logits. Two classes have one
    logit (sigmoid), more have one each (softmax). A backbone takes the place of the convolution blocks.
    """

    name: str
    # The network
    conv_channels: tuple[int, ...] = (32, 64, 128, 128)  # one block each
    global_pooling: bool = False  # convolutions padded and the last maps averaged; else not padded, and flattened
    dense_units: int = 512  # 0: no dense layer before the logits
    dropout_rate: float = 0.0  # on the flattened features, where 90 % of the parameters are
    batch_norm: Literal["none", "after_relu", "before_relu"] = "none"  # in every block, and on the dense layer
    # Training. RMSprop at a constant rate is the original's, so that our numbers can be compared with its numbers.
    augmentation: Literal["none", "original", "mild"] = "none"  # a new change per photo and epoch, in these ranges
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: float = 1e-4  # the original's; ten times more and the baseline without batch norm stays at chance
    schedule: Literal["constant", "warmup_cosine"] = "constant"
    batch_size: int = 20  # the original's: 2,400 training photos are 120 steps an epoch
    epochs: int = 100
    # Pixels and numbers
    image_size: int = 150  # pixels on a side, the original's
    average_mirror_images: bool = False  # a prediction is the mean of the photo's and of its mirror image's
    # bfloat16: products in it, weights in float32; float64 is for the proofs that the siblings are equal
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    # Transfer: `models.transfer`
    backbone: Literal[None, "vgg16", "mobilenet_v2"] = None
    backbone_width: float = 1.0  # MobileNetV2's α
    weights: str = "imagenet"  # of the backbone: "imagenet", the path of a file, or "none" (random)
    tuned_blocks: int = 0  # the backbone's last blocks, which learn with the head; 0: frozen
    pooling: Literal["mean", "mean_max", "levels"] = "mean"  # of the last maps; "levels": mean_max at four resolutions
    starts_from: str | None = None  # the experiment from whose trained weights this one goes on
    cached_copies: int = 0  # augmented copies of each photo, drawn once, whose maps before the learning blocks are kept
    # The photos
    training_subset: tuple[str, ...] | None = None  # sha256 of training photos, each as often as it counts; None: all
    photo_limit: int | None = None  # at most this many photos, three training photos to one for validation

    def __post_init__(self):
        for field, allowed in CHOICES.items():
            if (value := getattr(self, field)) not in allowed:
                raise ValueError(f"{self.name}: {field} is {value!r}; use one of {', '.join(map(str, allowed))}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"{self.name}: dropout_rate is {self.dropout_rate}; it is a share, 0 or more and below 1")
        for field in ("batch_size", "epochs", "image_size", "learning_rate"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{self.name}: {field} is {getattr(self, field)}; it must be above 0")
        if self.batch_norm != "none" and self.backbone:
            raise ValueError(f"{self.name}: batch_norm is {self.batch_norm!r}; a backbone keeps its own, use 'none'")
        if not self.conv_channels and not self.backbone:
            raise ValueError(f"{self.name}: conv_channels is empty; give one block at least")
        if self.pooling == "levels" and self.backbone != "mobilenet_v2":
            raise ValueError(f"{self.name}: pooling is 'levels'; it is there for the backbone mobilenet_v2 only")
        if self.cached_copies and (self.augmentation == "none" or not self.cached):
            raise ValueError(
                f"{self.name}: cached_copies is {self.cached_copies}; copies are cached where they are augmented and "
                "something frozen stands before what learns"
            )
        if not 0 <= self.tuned_blocks <= BLOCKS[self.backbone]:
            raise ValueError(
                f"{self.name}: tuned_blocks is {self.tuned_blocks}; its backbone has {BLOCKS[self.backbone]} to tune"
            )

    @property
    def cached(self) -> bool:
        """Return whether the maps before the first layer that learns are computed once for all epochs."""
        if self.tuned_blocks == BLOCKS[self.backbone] or (self.pooling == "levels" and self.tuned_blocks):
            return False  # nothing stands before what learns, or the head sees some of it
        return self.augmentation == "none" or self.cached_copies > 0


CHOICES = {name: get_args(kind) for name, kind in get_type_hints(Experiment).items() if get_origin(kind) is Literal}

BASELINE = Experiment("baseline_cnn")
AUGMENTATION = replace(BASELINE, name="augmentation", augmentation="original")
DROPOUT = replace(AUGMENTATION, name="dropout", dropout_rate=0.5)
BATCH_NORM = replace(DROPOUT, name="batch_norm", batch_norm="after_relu")
BATCH_NORM_BEFORE_RELU = replace(BATCH_NORM, name="batch_norm_before_relu", batch_norm="before_relu")

# To learn fast from few photos: narrow, deep, padded blocks on small images (a step costs a fifth of the baseline's,
# .27 GFLOP a photo), 257 weights in the head, milder changes with colours, and a rate that rises once and falls.
FAST_RECIPE = Experiment(
    "fast_recipe",
    conv_channels=(16, 32, 64, 128, 256),
    global_pooling=True,
    dense_units=0,
    batch_norm="before_relu",
    augmentation="mild",
    optimizer="adam",
    learning_rate=2e-3,
    schedule="warmup_cosine",
    batch_size=32,
    epochs=40,
    image_size=96,
    average_mirror_images=True,
)
# For a few hundred photos: dropout, so that it memorises them less, and three times the epochs.
FAST_RECIPE_DROPOUT = replace(FAST_RECIPE, name="fast_recipe_dropout", dropout_rate=0.3, epochs=120)

# A linear head on the mean and the maximum of each of the last 512 maps: 1,025 parameters. 224 px is what VGG16's
# weights were learned on.
VGG16_FEATURES = Experiment(
    "vgg16_features",
    conv_channels=(),
    dense_units=0,
    dropout_rate=0.5,
    optimizer="adam",
    learning_rate=1e-3,
    epochs=30,
    image_size=224,
    average_mirror_images=True,
    backbone="vgg16",
    pooling="mean_max",
)
# The head goes on from where it was, and block 5 moves with it, a little: a tenth of the head's rate. Blocks 1 to 4 are
# computed once, for each photo and five changed copies of it.
VGG16_FINE_TUNE = replace(
    VGG16_FEATURES,
    name="vgg16_fine_tune",
    augmentation="mild",
    learning_rate=1e-4,
    schedule="warmup_cosine",
    batch_size=32,
    epochs=20,
    tuned_blocks=1,
    starts_from="vgg16_features",
    cached_copies=5,
)
# A linear head: 4,385 parameters.
MOBILENET_FEATURES = replace(
    VGG16_FEATURES, name="mobilenet_features", optimizer="rmsprop", backbone="mobilenet_v2", pooling="levels"
)
# The last blocks learn with a linear head, at a rate that suits both: what distinguishes two hatchbacks is not what
# distinguishes a thousand kinds of things. Eight epochs: the weights know photos already (more were not tried).
MOBILENET_FINE_TUNE = replace(
    MOBILENET_FEATURES,
    name="mobilenet_fine_tune",
    dropout_rate=0.3,
    augmentation="mild",
    optimizer="adam",
    learning_rate=3e-4,
    schedule="warmup_cosine",
    batch_size=32,
    epochs=8,
    pooling="mean",
    tuned_blocks=7,
)

CNNS = (BASELINE, AUGMENTATION, DROPOUT, BATCH_NORM, BATCH_NORM_BEFORE_RELU)
PRETRAINED = (VGG16_FEATURES, VGG16_FINE_TUNE, MOBILENET_FEATURES, MOBILENET_FINE_TUNE)
SERIES = {experiment.name: experiment for experiment in (*CNNS, *PRETRAINED, FAST_RECIPE, FAST_RECIPE_DROPOUT)}


def quick(experiment: Experiment) -> Experiment:
    """Return the version for trying things out: 36 training and 12 validation photos, 64 px at most, 2 epochs."""
    return replace(experiment, photo_limit=48, image_size=min(experiment.image_size, 64), epochs=2)


def changed_fields(experiment: Experiment, before: Experiment | None = None) -> dict:
    """Return the fields, except the name, that `experiment` changes against `before`, or against the defaults."""
    before = before or Experiment(experiment.name)
    names = [field.name for field in fields(Experiment) if field.name != "name"]
    return {name: getattr(experiment, name) for name in names if getattr(experiment, name) != getattr(before, name)}


def describe_difference(experiment: Experiment, before: Experiment) -> str:
    """Return in one line what `experiment` changes against `before`, as in "dropout_rate: 0.0 → 0.5"."""
    changes = changed_fields(experiment, before).items()
    return ", ".join(f"{name}: {getattr(before, name)} → {value}" for name, value in changes) or "no difference"


def count_features(experiment: Experiment) -> int:
    """Return the number of features after the convolution blocks: the last maps, flattened or averaged."""
    side, smallest = experiment.image_size, 1
    for _ in experiment.conv_channels:
        side, smallest = (side // 2, 2 * smallest) if experiment.global_pooling else ((side - 2) // 2, 2 * smallest + 2)
    if side < 1:
        raise ValueError(
            f"{experiment.name}: images of {experiment.image_size} px vanish in {len(experiment.conv_channels)} "
            f"convolution blocks; use larger images ({smallest} px or more) or fewer conv_channels"
        )
    return experiment.conv_channels[-1] * (1 if experiment.global_pooling else side**2)


def schedule_steps(steps: int) -> tuple[int, int]:
    """Return in how many of `steps` steps the rate of "warmup_cosine" rises (15 %), and in how many it falls."""
    rising = max(1, int(0.15 * steps))
    return rising, max(1, steps - rising)


class Draws(NamedTuple):
    """The random choices of one epoch, cut into batches: the first axis is the step, the second the photo in it."""

    photos: np.ndarray  # int64 (steps, B): the photos' numbers
    affine: np.ndarray | None  # float32 (steps, B, 3, 3): output pixel → input pixel; None without augmentation
    colours: np.ndarray | None  # float32 (steps, B, 3, 4): (R, G, B, 1) → RGB, for 0 … 1; None where colours are kept


def draw_epoch(experiment: Experiment, seed: int, epoch: int, count: int) -> Draws:
    """Draw the order of `count` photos in an epoch (counted from 0), and a change for each of them.

    An incomplete last batch is dropped; fewer photos than `batch_size` are one batch. A function of its arguments
    alone, so a resumed run repeats the draws. With cached copies `count` is that of all copies, each a block of photos,
    and an epoch takes one random copy of each photo.
    """
    count //= 1 + experiment.cached_copies
    batch_size = min(experiment.batch_size, count)
    steps = count // batch_size
    drawn = steps * batch_size
    photos = np.random.default_rng([seed, epoch, 0]).permutation(count)[:drawn].reshape(steps, batch_size)
    if experiment.cached_copies:
        copies = np.random.default_rng([seed, epoch, 3]).integers(1 + experiment.cached_copies, size=photos.shape)
        photos = photos + count * copies
    affine = colours = None
    if experiment.augmentation != "none" and not experiment.cached_copies:
        ranges = RANGES[experiment.augmentation]
        affine = draw_affine(np.random.default_rng([seed, epoch, 1]), drawn, experiment.image_size, ranges)
        affine = affine.reshape(steps, batch_size, 3, 3).astype(np.float32)
        if ranges.colours:
            colours = draw_colours(np.random.default_rng([seed, epoch, 2]), drawn, ranges)
            colours = colours.reshape(steps, batch_size, 3, 4).astype(np.float32)
    return Draws(photos, affine, colours)
