import math

import numpy as np
import pytest
from scipy import special, stats

from carspotter.evidence.comparison import (
    Interval,
    accuracy_interval,
    equivalence,
    group_means,
    independent_interval,
    independent_photos_needed,
    mcnemar,
    paired_difference,
    photos_needed,
    seeds_needed,
    verdict,
)


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
        wilson = independent_interval(correct.ravel())
        wilson_covered += wilson.low <= 0.85 <= wilson.high
    # 200 studies: a true coverage of .95 gives .91 to .98 in 99 % of all repetitions
    assert 0.91 <= covered / studies <= 0.985
    assert wilson_covered / studies < 0.88


def test_the_interval_is_that_of_the_textbook_when_each_group_holds_as_many_photos():
    # groups of equal size: the mean of group means, whose error is known without any bootstrap; t on the logit scale
    correct, groups = listings(np.random.default_rng(3), 200)
    means = correct.mean(axis=1)
    half = stats.t.ppf(0.975, 199) * stats.sem(means) / (means.mean() * (1 - means.mean()))
    expected = special.expit(special.logit(means.mean()) + np.array([-half, half]))
    interval = accuracy_interval(correct.ravel(), groups)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.002)


def test_a_paired_difference_is_the_t_interval_of_the_textbook_when_each_photo_is_its_own_group():
    rng = np.random.default_rng(4)
    before, after = rng.random(500) < 0.8, rng.random(500) < 0.85
    expected = stats.ttest_1samp(after * 1.0 - before, 0).confidence_interval(0.9)
    interval = paired_difference(before, after, np.arange(500), level=0.9)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=0.002)


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


def test_two_models_that_agree_everywhere_may_still_differ_by_what_the_groups_leave_open():
    same = np.arange(60) % 2 == 0
    interval = paired_difference(same, same, np.repeat(np.arange(10), 6))
    assert (interval.low, interval.high) == (pytest.approx(-0.3085, abs=1e-4), pytest.approx(0.3085, abs=1e-4))


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


def test_a_difference_of_a_handful_of_groups_stays_between_minus_one_and_one():
    interval = paired_difference([1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 2, 3])
    assert (interval.low, interval.high) == (-1.0, 1.0)


def test_intervals_are_the_same_each_time_and_do_not_depend_on_the_names_of_groups():
    correct, groups = listings(np.random.default_rng(2), 50)
    first = accuracy_interval(correct.ravel(), groups)
    assert first == accuracy_interval(correct.ravel(), groups)
    assert first == accuracy_interval(correct.ravel(), [f"listing {g:03}" for g in groups])


def recipes(rng, seeds, groups, of_seeds, photos=5, mean=0.8):
    """Results of several seeds (seeds, N) whose true accuracies differ by `of_seeds`, and the group of each photo."""
    ease = np.clip(rng.normal(mean, 0.15, groups), 0, 1)
    luck = rng.normal(0, of_seeds, seeds)
    chance = np.clip(np.repeat(ease, photos) + luck[:, None], 0, 1)
    return rng.random(chance.shape) < chance, np.repeat(np.arange(groups), photos)


def test_a_claim_about_a_recipe_covers_the_luck_of_the_seeds_where_the_photos_alone_do_not():
    rng = np.random.default_rng(5)
    covered, photos_covered, studies = 0, 0, 150
    for _ in range(studies):
        a, groups = recipes(rng, 5, 100, 0.06)
        b, _ = recipes(rng, 5, 100, 0.06)
        both = paired_difference(a, b, groups)
        photos = paired_difference(a.mean(0), b.mean(0), groups)
        covered += both.low <= 0 <= both.high
        photos_covered += photos.low <= 0 <= photos.high
    assert covered / studies >= 0.9
    assert photos_covered / studies < 0.87


def test_seeds_that_do_not_differ_add_nothing_and_their_spread_stands_beside_the_interval():
    a, groups = recipes(np.random.default_rng(6), 1, 100, 0.0)
    same = accuracy_interval(np.repeat(a, 4, axis=0), groups)
    one = accuracy_interval(a[0], groups)
    assert (same.low, same.high) == pytest.approx((one.low, one.high))
    assert (same.seeds, same.seed_spread, same.seed_share) == (4, 0.0, 0.0)
    assert (one.seeds, one.seed_spread) == (1, None)
    different, groups = recipes(np.random.default_rng(7), 4, 100, 0.05)
    interval = accuracy_interval(different, groups)
    assert interval.seed_spread == pytest.approx(np.std(different.mean(axis=1), ddof=1))
    assert 0 < interval.seed_share < 1


@pytest.mark.parametrize(
    ("low", "estimate", "high", "seeds", "words"),
    [
        (0.01, 0.03, 0.05, 3, "shown"),
        (-0.05, -0.03, -0.01, 3, "shown"),
        (0.01, 0.03, 0.05, 1, "not shown (the interval leaves out zero, but a claim needs 3 seeds; this is 1)"),
        (-0.02, 0.02, 0.06, 3, "not shown (about 2,400 more photos needed)"),
        (-0.02, 0.02, 0.06, 1, "not shown (about 2,400 more photos needed, and 3 seeds instead of 1)"),
        (-0.02, 0.0, 0.02, 5, "not shown (no difference seen)"),
    ],
)
def test_the_verdict_is_said_in_fixed_words(low, estimate, high, seeds, words):
    assert verdict(Interval(estimate, low, high, photos=800, groups=120), seeds) == words


@pytest.mark.parametrize(
    ("low", "estimate", "high", "seeds", "words"),
    [
        (-0.02, 0.0, 0.02, 5, "equal within 3 points"),
        (0.001, 0.01, 0.019, 5, "equal within 3 points"),
        (-0.02, 0.0, 0.02, 3, "not shown (the interval lies within ± 3 points, but equality needs 5 seeds; this is 3)"),
        (-0.06, 0.0, 0.06, 5, "not shown (about 2,400 more photos needed)"),
        (0.02, 0.04, 0.06, 5, "not shown (the difference seen is +4.0 points)"),
    ],
)
def test_equality_is_a_claim_too(low, estimate, high, seeds, words):
    assert verdict(Interval(estimate, low, high, photos=800, groups=120), seeds, equal_within=0.03) == words


def test_where_seeds_hide_the_difference_the_verdict_asks_for_seeds_and_not_for_photos():
    interval = Interval(0.01, -0.03, 0.05, photos=800, groups=120, seeds=3, seed_spread=0.03, seed_share=0.9)
    assert verdict(interval) == "not shown (seeds spread too much for any number of photos; more than 3 seeds needed)"
    assert photos_needed(interval, 0.01) == math.inf
    assert 800 < photos_needed(interval, 0.01, seeds=200) < math.inf


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(8)
    answers = set()
    for margin in (0.01, 0.02, 0.03, 0.05, 0.1):
        a, b = (rng.random((1, 600)) < 0.9), (rng.random((1, 600)) < 0.9)
        a, b = np.repeat(a, 5, axis=0), np.repeat(b, 5, axis=0)
        difference = b[0] * 1.0 - a[0]
        above = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(difference, margin, alternative="less").pvalue
        interval, words = equivalence(a, b, np.arange(600), margin)
        assert interval.level == pytest.approx(0.9)
        assert words.startswith("equal within") == (max(above, below) < 0.05)
        answers.add(words.startswith("equal within"))
    assert answers == {True, False}


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, table I
@pytest.mark.parametrize(
    ("method", "right", "photos", "low", "high"),
    [
        ("wilson", 81, 263, 0.2553, 0.3662),
        ("wilson", 15, 148, 0.0624, 0.1605),
        ("wilson", 0, 20, 0.0, 0.1611),
        ("wilson", 1, 29, 0.0061, 0.1718),
        ("exact", 81, 263, 0.2527, 0.3676),
        ("exact", 15, 148, 0.0578, 0.1617),
        ("exact", 0, 20, 0.0, 0.1684),
        ("exact", 1, 29, 0.0009, 0.1776),
    ],
)
def test_intervals_for_independent_photos_are_those_of_newcombes_table(method, right, photos, low, high):
    interval = independent_interval(np.arange(photos) < right, method=method)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (4, 0), (9, 3), (6, 6), (25, 31)])
def test_mcnemar_counts_coin_tosses(won, lost):
    a = np.r_[np.zeros(won, bool), np.ones(lost, bool), np.ones(50, bool)]
    b = np.r_[np.ones(won, bool), np.zeros(lost, bool), np.ones(50, bool)]
    tosses = won + lost
    tail = sum(math.comb(tosses, k) for k in range(max(won, lost), tosses + 1)) / 2**tosses
    assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(("difference", "disagreement"), [(0.05, 0.1), (0.02, 0.06), (0.1, 0.3)])
def test_the_number_of_independent_photos_gives_the_promised_power(difference, disagreement):
    photos = independent_photos_needed(difference, disagreement)
    # exact: as many photos as disagree, and among them as many as B wins; the test without continuity correction
    power = 0.0
    for disagreeing in range(1, photos + 1):
        won = np.arange(disagreeing + 1)
        rejects = np.abs(2 * won - disagreeing) / np.sqrt(disagreeing) > 1.95996
        share = (disagreement + difference) / 2 / disagreement
        power += (
            stats.binom.pmf(disagreeing, photos, disagreement) * stats.binom.pmf(won, disagreeing, share)[rejects].sum()
        )
    assert power == pytest.approx(0.8, abs=0.03)


def test_as_many_photos_as_it_asks_for_show_the_difference_four_times_in_five():
    rng = np.random.default_rng(9)

    def study(count):
        a, groups = recipes(rng, 1, count, 0.0, mean=0.8)
        b, _ = recipes(rng, 1, count, 0.0, mean=0.85)
        return paired_difference(a[0], b[0], groups)

    measured = study(400)
    truth = 0.05  # both sides are clipped at 1, which takes off a little
    groups = int(photos_needed(measured, truth)) // 5
    shown = np.mean([study(groups).low > 0 for _ in range(150)])
    assert 0.65 <= shown <= 0.92


def test_the_pulls_of_groups_are_those_of_leaving_a_group_out():
    rng = np.random.default_rng(10)
    groups = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    values = rng.random((2, len(groups)))
    means, pulls, sizes = group_means(values, groups)
    without = np.array([values[:, groups != g].mean(axis=1) for g in range(60)]).T
    jackknife = (means[:, None] - without) * (len(groups) - sizes) / len(groups)
    np.testing.assert_allclose(pulls, jackknife, atol=1e-12)
    np.testing.assert_allclose(pulls.sum(axis=1), 0, atol=1e-12)


def test_unusable_input_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match="same photos"):
        paired_difference([True], [True, False], [1])
    with pytest.raises(ValueError, match="one group per photo"):
        accuracy_interval([True, False], ["a"])
    with pytest.raises(ValueError, match="one group per photo"):
        accuracy_interval([], [])
    with pytest.raises(ValueError, match="same photos"):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="as often as they differ"):
        independent_photos_needed(0.05, 0.01)
    with pytest.raises(ValueError, match="one truth value per photo"):
        independent_interval([])


def test_the_seeds_needed_are_the_fewest_for_which_the_photos_at_hand_suffice():
    measured = Interval(0.02, -0.01, 0.05, photos=800, groups=130, seeds=3, seed_spread=0.02, seed_share=0.6)
    seeds = seeds_needed(measured, 0.03)
    assert photos_needed(measured, 0.03, seeds=int(seeds)) <= 800 < photos_needed(measured, 0.03, seeds=int(seeds) - 1)
    # 1.96 + .84 half-widths of .0153: .0429² × .6 × 3 / (.03² − .0429² × .4)
    assert seeds == 21
    assert seeds_needed(measured, 0.02) == np.inf


def test_a_difference_of_few_photos_has_the_interval_of_bonett_and_price():
    won, lost, count = 7, 2, 200
    a, b = np.ones(count, bool), np.ones(count, bool)
    a[:won], b[won : won + lost] = False, False
    found = paired_difference(a, b, np.arange(count))
    # Their adjusted Wald interval: one more photo on each side.
    gained, dropped, all_of_them = won + 1, lost + 1, count + 2
    difference = (gained - dropped) / all_of_them
    error = np.sqrt(((gained + dropped) / all_of_them - difference**2) / all_of_them)
    half = stats.norm.ppf(0.975) * error
    assert found.estimate == pytest.approx(0.025)
    np.testing.assert_allclose([found.low, found.high], [difference - half, difference + half], atol=0.002)
    assert found.low < 0, "nine photos show nothing"


@pytest.mark.parametrize(("groups", "sure"), [(1, False), (2, False), (5, False), (6, True), (12, True)])
def test_groups_that_all_differ_alike_are_as_sure_as_a_sign_test(groups, sure):
    assert (stats.binomtest(groups, groups).pvalue < 0.05) == sure
    names = np.repeat(np.arange(groups), 4)
    worse, better = (np.full((3, len(names)), right) for right in (False, True))
    for a, b, sign in ((worse, better, 1), (better, worse, -1)):
        found = paired_difference(a, b, names)
        assert found.estimate == sign and (sign * np.array([found.low, found.high]) > 0).all() == sure
