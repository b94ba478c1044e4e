"""Other training sets from the same photos: what they keep, and what alone they change."""

import numpy as np
import pandas as pd
import pytest

from carspotter.evidence.resampling import (
    bootstrap_sample,
    group_folds,
    log_spaced_sizes,
    nested_samples,
    over_splits,
    resplits,
)


@pytest.fixture
def splits():
    """40 listings of five photos, every fourth one for validation, the last eight photos sealed."""
    number = np.arange(200)
    group = number // 5
    table = pd.DataFrame(
        {
            "sha256": [f"{n * 7919 % 100_000:05}" for n in number],
            "label": np.where(group % 2 == 0, "swift", "wagonr"),
            "group": [f"g{g:02}" for g in group],
            "split": np.where(group % 4 == 3, "validation", "train"),
        }
    )
    table.loc[192:, ["label", "split"]] = ["", "test"]
    return table


def groups_of(splits, hashes):
    return splits.set_index("sha256").loc[hashes, "group"]


def test_sizes_double_up_to_the_largest():
    assert log_spaced_sizes(282, 5) == [18, 35, 70, 141, 282]
    assert log_spaced_sizes(20, 5) == [8, 10, 20]


@pytest.fixture(scope="module")
def uneven():
    """150 listings of 1 to 12 photos, a third of them of one class, and five sealed photos."""
    sizes = np.random.default_rng(2).integers(1, 13, 150)
    group = np.repeat(np.arange(150), sizes)
    table = pd.DataFrame({"sha256": [f"{n * 7919 % 100_000:05}" for n in range(len(group))]})
    table["label"], table["group"] = np.where(group < 50, "swift", "wagonr"), [f"listing {g}" for g in group]
    table["split"] = np.where(np.arange(len(group)) < 5, "test", "train")
    return table


def test_nested_samples_hold_whole_training_groups_and_keep_the_shares_of_the_classes(uneven):
    training = uneven[uneven["split"] == "train"].set_index("sha256")
    share, smaller = (training["label"] == "swift").mean(), set()
    for size, hashes in nested_samples(uneven, (60, 120, 240, 480, len(training)), seed=3).items():
        assert smaller <= set(hashes) <= set(training.index)
        drawn = training.loc[hashes]
        assert training["group"].isin(drawn["group"]).sum() == len(drawn)
        assert abs(len(drawn) - size) <= 6
        assert (drawn["label"] == "swift").mean() == pytest.approx(share, abs=9 / size)
        smaller = set(hashes)
    assert len(smaller) == len(training)


def test_nested_samples_do_not_depend_on_the_order_of_rows_but_on_the_seed(uneven):
    first = nested_samples(uneven, (100, 300))
    assert nested_samples(uneven.sample(frac=1, random_state=3), (100, 300)) == first
    assert nested_samples(uneven, (100,), seed=1)[100] != first[100]
    with pytest.raises(ValueError, match="sizes \\[0, 100000\\]"):
        nested_samples(uneven, (0, 50, 100_000))


def test_a_bootstrap_sample_draws_whole_groups_of_each_class_with_replacement(splits):
    hashes = bootstrap_sample(splits, seed=1)
    training = splits[splits["split"] == "train"].set_index("sha256")
    drawn = training.loc[hashes]
    assert drawn.groupby("label").size().tolist() == training.groupby("label").size().tolist()
    times = drawn.groupby(drawn.index).size()
    assert times.max() > 1, "nothing was drawn twice"
    assert times.groupby(training.loc[times.index, "group"]).nunique().eq(1).all(), "a group was torn apart"
    share = drawn["group"].nunique() / training["group"].nunique()
    assert 0.45 < share < 0.85  # 1 - 1/e = .63 is expected
    assert bootstrap_sample(splits, seed=1) == hashes != bootstrap_sample(splits, seed=2)


def test_a_bootstrap_sample_of_a_smaller_collection_draws_fewer_groups(splits):
    quarter = bootstrap_sample(splits, seed=1, share=0.25)
    assert 0.2 < len(quarter) / len(bootstrap_sample(splits, seed=1)) < 0.3
    with pytest.raises(ValueError, match="share is 0"):
        bootstrap_sample(splits, share=0)


def sides_of(splits):
    return {side: set(splits.loc[splits["split"] == side, "sha256"]) for side in ("train", "validation")}


def test_folds_by_group_use_each_photo_once_and_leave_the_sealed_ones_alone(splits):
    folds = group_folds(splits, 5, seed=2)
    held = [sides_of(fold)["validation"] for fold in folds]
    assert sum(map(len, held)) == len(set().union(*held)) == 192
    for fold in folds:
        assert set(fold["split"]) == {"train", "validation"}
        assert fold.groupby("group")["split"].nunique().eq(1).all(), "a group lies on both sides"
        validation = fold[fold["split"] == "validation"]
        assert (validation["label"] == "swift").mean() == pytest.approx((fold["label"] == "swift").mean(), abs=0.16)
    with pytest.raises(ValueError, match="class swift has 20 groups, too few for 21 folds"):
        group_folds(splits, 21)


def test_a_leaky_split_tears_groups_apart_and_a_grouped_one_does_not(splits):
    for by_group in (True, False):
        made = resplits(splits, 10, by_group)
        assert len({frozenset(sides_of(one)["validation"]) for one in made}) == 10
        for one in made:
            assert one.groupby("group")["split"].nunique().eq(1).all() == by_group
            # 50 of 192 photos are in validation now; the nearest whole fold is a quarter
            assert 40 <= len(sides_of(one)["validation"]) <= 56


@pytest.mark.slow
def test_the_interval_over_splits_covers_what_a_plain_t_interval_does_not():
    rng, covered, plain = np.random.default_rng(0), 0, 0
    truth, photos, count = 0.85, 600, 10
    for _ in range(200):
        # a nearest-mean rule on one feature: training sets overlap, as resplits do
        labels = rng.integers(2, size=photos)
        feature = rng.normal(labels * 2.0729, 1)  # the best rule is right with .85
        scores = []
        for split in range(count):
            held = np.random.default_rng(split).permutation(photos) < 120
            cut = np.mean([feature[~held & (labels == k)].mean() for k in (0, 1)])
            scores.append(np.mean((feature[held] > cut) == labels[held]))
        found = over_splits(scores, 0.2)
        covered += found.low <= truth <= found.high
        half = 2.262 * np.std(scores, ddof=1) / np.sqrt(count)
        plain += abs(np.mean(scores) - truth) <= half
    assert covered >= 170 and plain < covered - 30


def test_figures_of_two_splits_are_refused():
    with pytest.raises(ValueError, match="three or more splits"):
        over_splits([0.9, 0.8], 0.2)
