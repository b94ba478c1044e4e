import numpy as np
import pandas as pd
import pytest
from scipy import stats

from carspotter.evidence.selection import best_epoch_luck, best_epoch_optimism, group_folds, one_standard_error_rule


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
        best = best_epoch_optimism(correct, groups, resamples=200)
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
    best = best_epoch_optimism(correct, groups)
    assert best.epoch == 4
    assert best.optimism < 0.002
    assert best.corrected == pytest.approx(best.accuracy - best.optimism)


def test_a_history_alone_bounds_the_luck_by_the_lead_over_the_neighbours():
    history = pd.DataFrame({"validation_accuracy": [0.6, 0.8, 0.85, 0.86, 0.91, 0.87, 0.86, 0.86]})
    assert best_epoch_luck(history) == pytest.approx(0.91 - 0.86)
    assert best_epoch_luck(pd.DataFrame({"validation_accuracy": [0.9, 0.9, 0.9]})) == 0


@pytest.fixture(scope="module")
def small_set():
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 40)
    return np.repeat(np.where(np.arange(40) % 3 == 0, "swift", "wagonr"), sizes), np.repeat(np.arange(40), sizes)


def test_folds_keep_groups_whole_use_each_photo_once_and_balance_the_classes(small_set):
    labels, groups = small_set
    folds = group_folds(labels, groups, folds=4)
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(len(labels)))
    for training, validation in folds:
        assert not set(groups[training]) & set(groups[validation])
        assert len(training) + len(validation) == len(labels)
        assert np.mean(labels[validation] == "swift") == pytest.approx(np.mean(labels == "swift"), abs=0.08)
    again = group_folds(labels, groups, folds=4)
    assert all((a[1] == b[1]).all() for a, b in zip(folds, again, strict=True))


def test_unusable_input_is_refused_with_what_was_found(small_set):
    labels, groups = small_set
    with pytest.raises(ValueError, match="class swift has 14 groups, too few for 20 folds"):
        group_folds(labels, groups, folds=20)
    with pytest.raises(ValueError, match="a cost for each model"):
        one_standard_error_rule({"a": [True]}, [0], {"b": 1})
