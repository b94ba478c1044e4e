"""Experiments: each is one change against the one before; the draws are a function of seed and epoch."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from carspotter.models.experiments import (
    AUGMENTATION,
    BASELINE,
    BATCH_NORM,
    BATCH_NORM_BEFORE_RELU,
    DROPOUT,
    FAST_RECIPE,
    MOBILENET_FEATURES,
    SERIES,
    VGG16_FEATURES,
    VGG16_FINE_TUNE,
    Experiment,
    convolutions,
    describe_difference,
    draw_colours,
    draw_epoch,
    feature_count,
    feature_side,
    learning_rates,
)


@pytest.mark.parametrize(
    ("experiment", "before", "difference"),
    [
        (AUGMENTATION, BASELINE, "augment: False → True"),
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
    assert feature_side(BASELINE, 150) == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_norm": "yes"},
        {"dropout_rate": 1.0},
        {"dtype": "float16"},
        {"epochs": 0},
        {"optimizer": "sgd"},
        {"backbone": "resnet"},
        {"batch_norm": "after_relu", "backbone": "vgg16"},
        {"augment": True, "backbone": "vgg16"},
        {"tuned_blocks": 1},
        {"conv_channels": ()},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_spec_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=f"mine: {next(iter(wrong))}"):
        Experiment("mine", **wrong)


def test_images_too_small_for_the_blocks_are_refused():
    assert feature_side(BASELINE, 46) == 1
    with pytest.raises(ValueError, match=r"45 px .*46 px or more"):
        feature_side(BASELINE, 45)
    assert feature_side(VGG16_FEATURES, 32) == 1
    with pytest.raises(ValueError, match=r"31 px .*32 px or more"):
        feature_side(VGG16_FEATURES, 31)


def test_vgg16_is_thirteen_convolutions_of_which_three_are_tuned():
    assert [c.channels for c in convolutions(VGG16_FEATURES)] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert [i for i, c in enumerate(convolutions(VGG16_FEATURES), 1) if c.pooled] == [2, 4, 7, 10, 13]
    assert [c.learns for c in convolutions(VGG16_FINE_TUNE)] == [False] * 10 + [True] * 3
    assert VGG16_FEATURES.frozen and not VGG16_FINE_TUNE.frozen and not BASELINE.frozen
    assert (feature_count(VGG16_FEATURES, 150), feature_count(BASELINE, 150)) == (512, 7 * 7 * 128)
    with pytest.raises(ValueError, match="Keras only"):
        feature_count(MOBILENET_FEATURES, 224)


def test_draws_are_a_function_of_seed_and_epoch():
    order, matrices = draw_epoch(AUGMENTATION, seed=3, epoch=2, count=50, image_size=64)
    again, matrices_again = draw_epoch(AUGMENTATION, seed=3, epoch=2, count=50, image_size=64)
    np.testing.assert_array_equal(order, again)
    np.testing.assert_array_equal(matrices, matrices_again)
    assert sorted(order) == list(range(50)) and matrices.shape == (50, 3, 3)
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}):
        other_order, other_matrices = draw_epoch(AUGMENTATION, count=50, image_size=64, **other)
        assert (other_order != order).any() and (other_matrices != matrices).any()


def test_without_augmentation_the_order_is_the_same_and_nothing_else_is_drawn():
    order, matrices = draw_epoch(BASELINE, seed=3, epoch=2, count=50, image_size=64)
    assert matrices is None
    np.testing.assert_array_equal(order, draw_epoch(AUGMENTATION, 3, 2, 50, 64)[0])


def test_padded_blocks_halve_the_side_and_their_last_maps_are_averaged():
    assert (
        feature_side(FAST_RECIPE, 96) == 3 and feature_count(FAST_RECIPE, 96) == feature_count(FAST_RECIPE, 64) == 256
    )
    with pytest.raises(ValueError, match="32 px or more"):
        feature_side(FAST_RECIPE, 31)


def test_fast_recipe_turns_photos_less_and_changes_colours():
    _, mild = draw_epoch(FAST_RECIPE, seed=3, epoch=2, count=500, image_size=64)
    sines = np.abs(mild[:, 1, 0] / np.hypot(mild[:, 0, 0], mild[:, 1, 0]))
    assert 0.2 < sines.max() < np.sin(np.deg2rad(15)) * 1.5  # zooms of the two axes stretch the angle
    colours = draw_colours(FAST_RECIPE, seed=3, epoch=2, count=500)
    assert colours.shape == (500, 3, 4) and np.ptp(colours[:, :, 3]) > 0.2
    assert (colours != draw_colours(FAST_RECIPE, seed=3, epoch=3, count=500)).any()
    assert draw_colours(AUGMENTATION, seed=3, epoch=2, count=500) is None
    assert draw_colours(replace(FAST_RECIPE, augment=False), seed=3, epoch=2, count=500) is None


def test_learning_rates_are_constant_or_go_up_and_down_once():
    np.testing.assert_array_equal(learning_rates(BASELINE, 7), np.full(7, 1e-4, np.float32))
    rates = learning_rates(FAST_RECIPE, 200)
    top = int(rates.argmax())
    assert rates.dtype == np.float32 and 25 <= top <= 35 and rates[top] == pytest.approx(2e-3, rel=0.01)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert 0 < rates[-1] < 1e-6 and 0 < rates[0] < 1e-4
