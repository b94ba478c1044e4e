"""Experiments: each is one change against the one before; the draws are a function of seed and epoch."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from carspotter.models.experiments import (
    AUGMENTATION,
    BASELINE,
    BATCH_NORM,
    BATCH_NORM_BEFORE_RELU,
    CHOICES,
    DROPOUT,
    FAST_RECIPE,
    SERIES,
    Experiment,
    changed_fields,
    count_features,
    describe_difference,
    draw_epoch,
    quick,
    schedule_steps,
)
from carspotter.photos.augmentation import RANGES


@pytest.mark.parametrize(
    ("experiment", "before", "difference"),
    [
        (AUGMENTATION, BASELINE, "augmentation: none → original"),
        (DROPOUT, AUGMENTATION, "dropout_rate: 0.0 → 0.5"),
        (BATCH_NORM, DROPOUT, "batch_norm: none → after_relu"),
        (BATCH_NORM_BEFORE_RELU, BATCH_NORM, "batch_norm: after_relu → before_relu"),
        (BASELINE, replace(BASELINE, name="renamed"), "no difference"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_each_experiment_is_one_change(experiment, before, difference):
    assert describe_difference(experiment, before) == difference


def test_the_series_is_found_by_name():
    assert all(name == experiment.name for name, experiment in SERIES.items())
    with pytest.raises(FrozenInstanceError):
        SERIES["baseline_cnn"].epochs = 3


def test_the_spec_is_the_original_study():
    assert BASELINE.conv_channels == (32, 64, 128, 128) and BASELINE.dense_units == 512
    assert (BASELINE.optimizer, BASELINE.learning_rate, BASELINE.batch_size) == ("rmsprop", 1e-4, 20)
    assert count_features(BASELINE) == 7 * 7 * 128
    assert changed_fields(BASELINE) == {}
    assert changed_fields(replace(DROPOUT, epochs=3)) == {"augmentation": "original", "dropout_rate": 0.5, "epochs": 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"augmentation": "wild"},
        {"batch_norm": "yes"},
        {"dropout_rate": 1.0},
        {"dtype": "float16"},
        {"epochs": 0},
        {"optimizer": "sgd"},
        {"schedule": "cyclic"},
        {"backbone": "resnet"},
        {"batch_norm": "after_relu", "backbone": "vgg16"},
        {"pooling": "levels", "backbone": "vgg16"},
        {"tuned_blocks": 1},
        {"conv_channels": ()},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_spec_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=f"mine: {next(iter(wrong))}"):
        Experiment("mine", **wrong)


def test_every_range_of_augmentation_can_be_asked_for():
    assert CHOICES["augmentation"] == ("none", *RANGES)


def test_images_too_small_for_the_blocks_are_refused():
    assert count_features(replace(BASELINE, image_size=46)) == 128
    with pytest.raises(ValueError, match=r"45 px .*46 px or more"):
        count_features(replace(BASELINE, image_size=45))
    # Padded blocks halve the side, and their last maps are averaged.
    assert count_features(FAST_RECIPE) == count_features(replace(FAST_RECIPE, image_size=32)) == 256
    with pytest.raises(ValueError, match=r"31 px .*32 px or more"):
        count_features(replace(FAST_RECIPE, image_size=31))


def test_quick_is_small_and_never_larger_than_the_experiment():
    assert changed_fields(quick(DROPOUT), DROPOUT) == {"epochs": 2, "image_size": 64, "photo_limit": 48}
    assert quick(replace(BASELINE, image_size=48)).image_size == 48


def test_draws_are_a_function_of_seed_and_epoch():
    first, again = (draw_epoch(FAST_RECIPE, seed=3, epoch=2, count=70) for _ in range(2))
    for part, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(part, same)
    for seed, epoch in ((4, 2), (3, 3)):
        other = draw_epoch(FAST_RECIPE, seed, epoch, count=70)
        assert all((part != different).any() for part, different in zip(first, other, strict=True))


def test_an_epoch_is_whole_batches_of_different_photos():
    photos, affine, colours = draw_epoch(FAST_RECIPE, seed=3, epoch=2, count=70)
    assert photos.shape == (2, 32) and affine.shape == (2, 32, 3, 3) and colours.shape == (2, 32, 3, 4)
    assert len(set(photos.ravel())) == 64 and set(photos.ravel()) < set(range(70))
    assert sorted(draw_epoch(BASELINE, 0, 0, count=7).photos.ravel()) == list(range(7)), "fewer than a batch: one"


def test_without_augmentation_the_order_is_the_same_and_nothing_else_is_drawn():
    photos, affine, colours = draw_epoch(BASELINE, seed=3, epoch=2, count=50)
    assert affine is None and colours is None
    augmented = draw_epoch(AUGMENTATION, seed=3, epoch=2, count=50)
    np.testing.assert_array_equal(photos, augmented.photos)
    assert augmented.affine.shape == (2, 20, 3, 3) and augmented.colours is None


def test_mild_augmentation_turns_photos_less_and_changes_colours():
    draws = draw_epoch(replace(FAST_RECIPE, image_size=64), seed=3, epoch=2, count=512)
    affine = draws.affine.reshape(-1, 3, 3)
    sines = np.abs(affine[:, 1, 0] / np.hypot(affine[:, 0, 0], affine[:, 1, 0]))
    assert 0.2 < sines.max() < np.sin(np.deg2rad(15)) * 1.5  # zooms of the two axes stretch the angle
    assert np.ptp(draws.colours[..., 3]) > 0.2


def test_the_rate_rises_for_a_seventh_of_the_steps():
    assert schedule_steps(200) == (30, 170)
    assert schedule_steps(2) == schedule_steps(1) == (1, 1), "neither is ever without a step"
