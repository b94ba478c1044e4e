import numpy as np
import pytest
from scipy import stats

from carspotter.evidence.comparison import Interval, accuracy_interval, paired_difference, verdict


def listings(rng, count, photos=6, mean=0.85, concentration=3.0):
    """Photos of listings that differ in how hard they are: correct or not, and the listing of each photo."""
    ease = rng.beta(mean * concentration, (1 - mean) * concentration, count)
    return rng.random((count, photos)) < ease[:, None], np.repeat(np.arange(count), photos)


def test_group_bootstrap_covers_the_truth_where_an_interval_for_independent_photos_does_not():
    rng = np.random.default_rng(0)
    covered = wilson_covered = 0
    studies = 200
    for _ in range(studies):
        correct, groups = listings(rng, 100)
        interval = accuracy_interval(correct.ravel(), groups)
        covered += interval.low <= 0.85 <= interval.high
        wilson = stats.binomtest(int(correct.sum()), correct.size).proportion_ci(method="wilson")
        wilson_covered += wilson.low <= 0.85 <= wilson.high
    # 200 studies: a true coverage of .95 gives at least .91 in 99 % of all repetitions
    assert covered / studies >= 0.91
    assert wilson_covered / studies < 0.88


def test_with_one_photo_a_group_the_interval_is_near_the_exact_one():
    correct = np.arange(400) < 340
    interval = accuracy_interval(correct, np.arange(400))
    exact = stats.binomtest(340, 400).proportion_ci(method="exact")
    assert interval.estimate == 0.85
    assert interval.low == pytest.approx(exact.low, abs=0.008)
    assert interval.high == pytest.approx(exact.high, abs=0.008)


@pytest.mark.parametrize(("correct", "low", "high"), [(1, 0.6915, 1.0), (0, 0.0, 0.3085)])
def test_when_all_photos_agree_each_group_counts_as_one_photo(correct, low, high):
    # Clopper and Pearson for 10 of 10: (.025) ** (1 / 10) = .6915
    interval = accuracy_interval(np.full(60, correct), np.repeat(np.arange(10), 6))
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_paired_difference_has_the_sign_of_the_second_and_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(1)
    before, groups = listings(rng, 150)
    before = before.ravel()
    after = before | (rng.random(before.size) < 0.3)
    difference = paired_difference(before, after, groups)
    assert difference.estimate == pytest.approx(after.mean() - before.mean())
    assert 0 < difference.low < difference.estimate < difference.high
    single = accuracy_interval(before, groups)
    assert difference.high - difference.low < single.high - single.low


def test_intervals_are_the_same_each_time_and_do_not_depend_on_the_names_of_groups():
    correct, groups = listings(np.random.default_rng(2), 50)
    first = accuracy_interval(correct.ravel(), groups)
    assert first == accuracy_interval(correct.ravel(), groups)
    assert first == accuracy_interval(correct.ravel(), [f"listing {g:03}" for g in groups])


@pytest.mark.parametrize(
    ("low", "estimate", "high", "seeds", "words"),
    [
        (0.01, 0.03, 0.05, 3, "shown"),
        (-0.05, -0.03, -0.01, 3, "shown"),
        (0.01, 0.03, 0.05, 1, "not shown (the interval leaves out zero, but a claim needs 3 seeds; this is 1)"),
        (-0.02, 0.02, 0.06, 3, "not shown (about 2,400 more photos needed)"),
        (-0.02, 0.0, 0.02, 5, "not shown (no difference seen)"),
    ],
)
def test_the_verdict_is_said_in_fixed_words(low, estimate, high, seeds, words):
    assert verdict(Interval(estimate, low, high, photos=800, groups=120), seeds) == words


def test_unusable_input_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match="same photos"):
        paired_difference([True], [True, False], [1])
    with pytest.raises(ValueError, match="one group per photo"):
        accuracy_interval([True, False], ["a"])
    with pytest.raises(ValueError, match="one group per photo"):
        accuracy_interval([], [])
