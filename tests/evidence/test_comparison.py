"""One comparison for all: three verdicts that follow from what is printed, and refusals that say why."""

import math

import numpy as np
import pytest
from scipy import stats

from carspotter.evidence.comparison import compare, comparison_table, judge, photos_needed
from carspotter.evidence.intervals import Interval

Y = np.array(["swift", "wagonr"] * 200)


def predictions(seeds, accuracy, seed=0):
    """Predicted labels (seeds, 400) that are right with this probability."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((seeds, len(Y))) < accuracy, Y, Y[::-1])


def interval(estimate, half, level=0.95, seeds=3, **more):
    return Interval(estimate, estimate - half, estimate + half, 800, 120, level, seeds, **more)


@pytest.mark.parametrize(
    ("estimate", "half", "half_90", "seeds", "verdict", "reason"),
    [
        (0.03, 0.02, 0.017, 3, "different", "the 95 % interval excludes zero"),
        (-0.03, 0.02, 0.017, 5, "different", "the 95 % interval excludes zero"),
        (0.03, 0.02, 0.017, 1, "undetermined", "excludes zero, but that takes 3 seeds; there is 1"),
        (0.0, 0.02, 0.017, 5, "equal", "the 90 % interval lies inside ± 3 points"),
        (0.01, 0.009, 0.007, 5, "different", "excludes zero"),
        (0.0, 0.02, 0.017, 3, "undetermined", "inside ± 3 points, but that takes 5 seeds; there are 3"),
        (0.02, 0.04, 0.034, 3, "undetermined", "about 2,400 more validation photos would be needed to show a diff"),
        (0.0, 0.06, 0.06, 5, "undetermined", "about 2,400 more validation photos would be needed to show equality"),
        (0.02, 0.04, 0.034, 1, "undetermined", "2,400 more validation photos, and 3 seeds instead of 1"),
    ],
)
def test_the_verdict_follows_from_the_intervals(estimate, half, half_90, seeds, verdict, reason):
    found = judge(interval(estimate, half), interval(estimate, half_90, 0.9), seeds)
    assert found[0] == verdict and reason in found[1]


def test_where_seeds_hide_the_difference_more_seeds_are_asked_for():
    measured = interval(0.01, 0.04, seed_share=0.95)
    found = judge(measured, interval(0.01, 0.035, 0.9, seed_share=0.95), 3)
    assert found == ("undetermined", "the seeds spread too much for any number of photos; more than 3 are needed")
    assert photos_needed(measured, 0.01) == math.inf


def test_labels_with_and_without_epochs_give_one_answer():
    a, b = predictions(3, 0.7), predictions(3, 0.95, seed=1)
    found = compare(Y, a, b)
    assert (found.a.estimate, found.b.estimate) == ((a == Y).mean(), (b == Y).mean())
    assert found.verdict == "different" and found.difference.groups == 400
    assert found.wins - found.losses == pytest.approx(400 * found.difference.estimate)
    epochs = [np.repeat(side[:, np.newaxis], 5, axis=1) for side in (a, b)]
    assert compare(Y, *epochs) == found
    text = repr(compare(Y, a, b, names=("plain", "augmented")))
    assert "augmented − plain: +" in text and "different: the 95 % interval excludes zero" in text and "p = " in text


def test_what_is_printed_and_what_is_said_agree_at_every_number_of_comparisons():
    verdicts = set()
    for seed in range(12):
        a, b = predictions(3, 0.85, seed), predictions(3, 0.88, seed + 99)
        for m in (1, 5, 50):
            found = compare(Y, a, b, comparisons=m)
            assert found.difference.level == pytest.approx(1 - 0.05 / m)
            differs = found.difference.low > 0 or found.difference.high < 0
            assert (found.verdict == "different") == differs == (found.p < 0.05 / m)
            verdicts.add((m, differs))
    assert {(1, True), (50, False)} <= verdicts


def test_one_model_makes_no_claim():
    a, b = predictions(1, 0.6)[0], predictions(1, 0.95, seed=1)[0]
    assert compare(Y, a, b).verdict == "undetermined"


def test_groups_widen_the_interval():
    a, b = (np.repeat(predictions(1, accuracy, seed)[:, ::8], 8, axis=1) for accuracy, seed in ((0.8, 0), (0.9, 1)))
    a, b = (np.where(side == np.repeat(Y[::8], 8), Y, Y[::-1]) for side in (a, b))
    alone, grouped = (compare(Y, a, b, groups).difference for groups in (None, np.repeat(np.arange(50), 8)))
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)


def test_a_table_refuses_comparisons_that_share_their_error_among_another_number():
    pair = [compare(Y, predictions(3, 0.6), predictions(3, 0.95, seed), comparisons=2) for seed in (1, 2)]
    table = comparison_table(pair)
    assert table["verdict"].tolist() == ["different"] * 2 and "points [97.5 %]" in table
    with pytest.raises(ValueError, match="a table of 1 comparisons needs comparisons=1"):
        comparison_table(pair[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": np.full((400, 2), 0.5)}, r"shape \(400, 2\), but there are 400 labels"),
        ({"b": Y[:-1]}, r"shape \(399,\), but there are 400 labels"),
        ({"b": np.where(np.arange(400) == 7, None, Y.astype(object))}, "1 missing predictions"),
        ({"b": np.arange(400) % 2}, "not class numbers"),
        ({"b": Y == "swift"}, "nor whether they are correct"),
        ({"groups": np.where(np.arange(400) < 3, np.nan, 1.0)}, "3 photos have no group"),
        ({"groups": np.arange(399)}, "one group per photo"),
        ({"y": np.where(np.arange(400) < 3, None, Y.astype(object))}, "none of them missing"),
    ],
)
def test_unusable_input_is_refused_with_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        compare(**{"y": Y, "a": Y, "b": Y} | options)


def test_as_many_photos_as_it_asks_for_show_the_difference_every_other_time():
    rng = np.random.default_rng(9)

    def study(count, difference):
        shift = stats.norm.ppf(0.85) - stats.norm.ppf(0.8)
        ease, luck = rng.normal(0, 0.5, count).repeat(5), rng.normal(size=(2, count * 5))
        a, b = luck[0] < 0.9 + ease, luck[1] < 0.9 + shift + ease
        return compare(np.ones(count * 5, bool), a, b, np.arange(count).repeat(5)).difference

    measured = study(2_000, None)
    groups = int(photos_needed(measured, measured.estimate)) // 5
    shown = np.mean([study(groups, None).low > 0 for _ in range(150)])
    assert 0.35 <= shown <= 0.65
