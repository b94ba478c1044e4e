"""Intervals: textbook cases, coverage where photos come in groups, and no reward for a study without mistakes."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from carspotter.evidence.intervals import (
    _variances,
    accuracy_interval,
    clopper_pearson,
    group_means,
    paired_difference,
)


def listings(rng, count, photos=6, mean=0.85, concentration=3.0):
    """Photos of listings that differ in how hard they are: correct or not, and the listing of each photo."""
    ease = rng.beta(mean * concentration, (1 - mean) * concentration, count)
    return (rng.random((count, photos)) < ease[:, None]).ravel(), np.repeat(np.arange(count), photos)


def recipes(rng, seeds, groups, of_seeds, photos=5, mean=0.8):
    """Results of several seeds (seeds, N) whose true accuracies differ by `of_seeds`, and the group of each photo."""
    ease = np.clip(rng.normal(mean, 0.15, groups), 0, 1)
    luck = rng.normal(0, of_seeds, seeds)
    chance = np.clip(np.repeat(ease, photos) + luck[:, None], 0, 1)
    return rng.random(chance.shape) < chance, np.repeat(np.arange(groups), photos)


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", [0.85, 0.95, 0.99])
def test_the_interval_covers_the_truth_where_one_for_independent_photos_does_not(accuracy):
    rng, studies = np.random.default_rng(0), 400
    covered = independent = 0
    for _ in range(studies):
        correct, groups = listings(rng, 100, mean=accuracy)
        interval = accuracy_interval(correct, groups)
        covered += interval.low <= accuracy <= interval.high
        low, high = clopper_pearson(correct.sum(), len(correct))
        independent += low <= accuracy <= high
    assert covered / studies >= 0.93
    assert independent / studies < covered / studies - 0.05


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, table I
@pytest.mark.parametrize(
    ("right", "photos", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_the_exact_interval_is_that_of_newcombes_table(right, photos, low, high):
    assert clopper_pearson(right, photos) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert clopper_pearson(photos, photos)[1] == 1


def test_with_one_photo_a_group_the_interval_is_near_the_exact_one():
    interval = accuracy_interval(np.arange(400) < 340, np.arange(400))
    assert interval.estimate == 0.85
    assert (interval.low, interval.high) == pytest.approx(clopper_pearson(340, 400), abs=0.003)


def test_groups_of_equal_size_have_the_design_effect_of_the_textbook():
    correct, groups = listings(np.random.default_rng(3), 400)
    error = stats.sem(correct.reshape(400, 6).mean(axis=1))
    interval = accuracy_interval(correct, groups)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_a_study_with_a_mistake_more_never_has_a_higher_interval():
    groups = np.repeat(np.arange(100), 8)
    found = []
    for wrong in range(13):
        correct = np.ones(800, bool)
        correct[8 * np.arange(wrong)] = False
        found.append(accuracy_interval(correct, groups))
    for ends in ([i.low for i in found], [i.high for i in found], [i.estimate for i in found]):
        assert (np.diff(ends) <= 1e-9).all()
    mirrored = accuracy_interval(np.zeros(800, bool), groups)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found[0].high, 1 - found[0].low))


def test_differences_of_nothing_are_no_narrower_than_of_one_photo():
    groups, a = np.repeat(np.arange(100), 8), np.ones(800, bool)
    widths = []
    for lost in range(8):
        b = a.copy()
        b[8 * np.arange(lost)] = False
        interval, _ = paired_difference(a, b, groups)
        widths.append(interval.high - interval.low)
    assert (np.diff(widths) > 0).all() and widths[0] < 0.02


def test_a_paired_difference_has_the_two_way_cluster_error_of_statsmodels():
    rng = np.random.default_rng(4)
    a, groups = recipes(rng, 20, 400, 0.05)
    b, _ = recipes(rng, 20, 400, 0.05, mean=0.82)
    values = b * 1.0 - a
    fit = sm.OLS(values.ravel(), np.ones(values.size)).fit()
    both, of_seeds, of_photos = cov_cluster_2groups(fit, np.repeat(np.arange(20), len(groups)), np.tile(groups, 20))
    parts = _variances(values, groups)
    assert parts.of_photos == pytest.approx(of_photos[0, 0], rel=0.01)
    assert parts.of_photos + parts.of_seeds == pytest.approx(both[0, 0], rel=0.05)
    assert both[0, 0] > 1.2 * of_photos[0, 0] and of_seeds[0, 0] > 0
    interval, _ = paired_difference(a, b, groups)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(both[0, 0]), rel=0.12)  # t, not normal


def test_for_one_seed_the_error_is_statsmodels_cluster_error_and_scipys_bootstrap():
    rng = np.random.default_rng(5)
    a, groups = listings(rng, 300, mean=0.8)
    b, _ = listings(rng, 300, mean=0.85)
    values = b * 1.0 - a
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    interval, p = paired_difference(a, b, groups)
    half = (interval.high - interval.low) / 2
    # the two groups that are added make it a little wider, Student's t too
    assert half == pytest.approx(1.96 * float(fit.bse[0]), rel=0.02)
    assert p == pytest.approx(float(fit.pvalues[0]), rel=0.3)
    sums = values.reshape(300, 6).mean(axis=1)
    drawn = stats.bootstrap((sums,), np.mean, n_resamples=4000, method="basic", rng=rng).confidence_interval
    assert (interval.low, interval.high) == (pytest.approx(drawn.low, abs=0.004), pytest.approx(drawn.high, abs=0.004))


def test_a_difference_of_few_independent_photos_is_near_bonett_and_price():
    won, lost, count = 7, 2, 200
    a, b = np.ones(count, bool), np.ones(count, bool)
    a[:won], b[won : won + lost] = False, False
    found, p = paired_difference(a, b, np.arange(count))
    gained, dropped, all_of_them = won + 1, lost + 1, count + 2
    difference = (gained - dropped) / all_of_them
    half = 1.96 * np.sqrt(((gained + dropped) / all_of_them - difference**2) / all_of_them)
    np.testing.assert_allclose([found.low, found.high], [difference - half, difference + half], atol=0.002)
    assert found.low < 0 and p > 0.05, "nine photos show nothing"


@pytest.mark.parametrize(("groups", "sure"), [(1, False), (2, False), (5, False), (6, True), (12, True)])
def test_groups_that_all_differ_alike_are_as_sure_as_a_sign_test(groups, sure):
    assert (stats.binomtest(groups, groups).pvalue < 0.05) == sure
    names = np.repeat(np.arange(groups), 4)
    worse, better = (np.full((3, len(names)), right) for right in (False, True))
    for a, b, sign in ((worse, better, 1), (better, worse, -1)):
        found, p = paired_difference(a, b, names)
        assert found.estimate == sign and (sign * np.array([found.low, found.high]) > 0).all() == sure == (p < 0.05)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.995])
def test_p_is_below_the_level_just_where_the_interval_excludes_zero(level):
    rng = np.random.default_rng(6)
    verdicts = set()
    for _ in range(60):
        a, groups = recipes(rng, 3, 40, 0.02)
        b, _ = recipes(rng, 3, 40, 0.02, mean=0.87)
        interval, p = paired_difference(a, b, groups, level)
        assert (p < 1 - level) == (interval.low > 0 or interval.high < 0)
        verdicts.add(p < 1 - level)
    assert verdicts == {True, False}


@pytest.mark.slow
def test_a_claim_about_a_recipe_covers_the_luck_of_the_seeds_where_the_photos_alone_do_not():
    rng, covered, photos_covered, studies = np.random.default_rng(5), 0, 0, 200
    for _ in range(studies):
        a, groups = recipes(rng, 5, 100, 0.06)
        b, _ = recipes(rng, 5, 100, 0.06)
        both, _ = paired_difference(a, b, groups)
        photos, _ = paired_difference(a.mean(0), b.mean(0), groups)
        covered += both.low <= 0 <= both.high
        photos_covered += photos.low <= 0 <= photos.high
    assert covered / studies >= 0.9
    assert photos_covered / studies < 0.87


def test_seeds_that_do_not_differ_add_nothing_and_their_spread_stands_beside_the_interval():
    a, groups = recipes(np.random.default_rng(6), 1, 100, 0.0)
    same, one = accuracy_interval(np.repeat(a, 4, axis=0), groups), accuracy_interval(a[0], groups)
    assert (same.low, same.high) == pytest.approx((one.low, one.high))
    assert (same.seeds, same.seed_spread, same.seed_share) == (4, 0.0, 0.0)
    assert (one.seeds, one.seed_spread) == (1, None)
    different, groups = recipes(np.random.default_rng(7), 4, 100, 0.05)
    interval = accuracy_interval(different, groups)
    assert interval.seed_spread == pytest.approx(np.std(different.mean(axis=1), ddof=1))
    assert 0 < interval.seed_share < 1


def test_intervals_do_not_depend_on_the_names_of_groups():
    correct, groups = listings(np.random.default_rng(2), 50)
    names = [f"listing {g:03}" for g in groups]
    assert accuracy_interval(correct, groups) == accuracy_interval(correct, names)
    assert accuracy_interval(correct, groups) == accuracy_interval(correct, pd.Series(names))


def test_the_influence_of_groups_is_that_of_leaving_a_group_out():
    rng = np.random.default_rng(10)
    groups = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    values = rng.random((2, len(groups)))
    means, influences, sizes = group_means(values, groups)
    without = np.array([values[:, groups != g].mean(axis=1) for g in range(60)]).T
    jackknife = (means[:, None] - without) * (len(groups) - sizes) / len(groups)
    np.testing.assert_allclose(influences, jackknife, atol=1e-12)


@pytest.mark.parametrize(
    ("correct", "groups", "message"),
    [
        ([True, False], ["a"], "one group per photo"),
        ([1, 0], [1, 2], "give booleans"),
        ([0.5, 3.0], [1, 2], "outside 0 … 1"),
        ([1.0, np.nan], [1, 2], "1 missing values"),
        ([True, False], [1.0, np.nan], "1 photos have no group"),
        ([True, False], ["a", None], "1 photos have no group"),
        (np.array([], bool), [], "one value per photo"),
    ],
)
def test_unusable_input_is_refused_with_what_was_found(correct, groups, message):
    with pytest.raises(ValueError, match=message):
        accuracy_interval(correct, groups)
    with pytest.raises(ValueError, match=message):
        paired_difference(correct, correct, groups)
    with pytest.raises(ValueError, match="the same photos"):
        paired_difference([True], [True, False], [1])
