import numpy as np
import pytest
from scipy import stats

from carspotter.evidence.selection import one_standard_error_rule, optimism_of_best


def test_the_cheapest_model_within_one_standard_error_is_chosen():
    photos = np.arange(400)
    correct = {"large": photos < 364, "small": photos < 360, "tiny": photos < 340}
    costs = {"large": 9.0, "small": 3.0, "tiny": 1.0}
    chosen, table = one_standard_error_rule(correct, photos, costs)
    # the best, .91, has a standard error of .0143: .90 lies within it, .85 does not
    assert chosen == "small"
    assert table["model"].tolist() == ["large", "small", "tiny"]
    assert table["within"].tolist() == [True, True, False]
    assert table["standard_error"][0] == pytest.approx(stats.sem(correct["large"].astype(float)))


def test_photos_that_come_in_groups_widen_the_standard_error():
    easy = np.repeat(np.arange(50) < 45, 8)
    _, alone = one_standard_error_rule({"a": easy}, np.arange(400), {"a": 1})
    _, grouped = one_standard_error_rule({"a": easy}, np.repeat(np.arange(50), 8), {"a": 1})
    assert grouped["standard_error"][0] == pytest.approx(alone["standard_error"][0] * np.sqrt(8), rel=0.02)


def test_the_standard_error_of_a_recipe_is_that_of_its_seeds_mean():
    rng = np.random.default_rng(0)
    seeds = rng.random((3, 200)) < 0.8
    _, table = one_standard_error_rule({"a": seeds}, np.arange(200), {"a": 1})
    assert table["standard_error"][0] == pytest.approx(stats.sem(seeds.mean(axis=0)))


def epochs_of_one_accuracy(rng, epochs, groups, photos, accuracy=0.9):
    """Epochs that are equally good, each right on other photos: whatever lead one has is luck."""
    return rng.random((epochs, groups * photos)) < accuracy, np.repeat(np.arange(groups), photos)


def test_the_optimism_of_the_best_of_many_equal_epochs_is_about_what_it_is():
    rng = np.random.default_rng(1)
    estimated, true = [], []
    for _ in range(20):
        correct, groups = epochs_of_one_accuracy(rng, 20, 80, 4)
        best = optimism_of_best(correct, groups, resamples=200)
        assert best.accuracy == correct[best.epoch - 1].mean() == correct.mean(axis=1).max()
        estimated.append(best.optimism)
        true.append(best.accuracy - 0.9)
    assert np.mean(true) > 0.02
    # the bootstrap sees a part of it, never nothing: chance is already in the epochs as they are
    assert 0.5 * np.mean(true) < np.mean(estimated) < 1.2 * np.mean(true)


def test_one_clear_winner_is_not_optimistic():
    rng = np.random.default_rng(2)
    correct, groups = epochs_of_one_accuracy(rng, 5, 100, 4, accuracy=0.6)
    correct[3] |= rng.random(400) < 0.8
    best = optimism_of_best(correct, groups, resamples=1_000)
    assert best.epoch == 4
    assert best.optimism < 0.002


def test_unusable_input_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match="a cost for each model"):
        one_standard_error_rule({"a": [True]}, [0], {"b": 1})
