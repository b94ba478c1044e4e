import numpy as np
import pytest
from scipy import stats

from carspotter.evidence.selection import one_standard_error_rule, pareto_front


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


def test_the_front_is_what_no_other_beats_by_brute_force():
    rng = np.random.default_rng(0)
    costs, accuracies = rng.integers(1, 12, 40), rng.integers(1, 12, 40)  # many ties
    expected = [
        not any(
            (c <= cost and a >= accuracy) and (c < cost or a > accuracy) for c, a in zip(costs, accuracies, strict=True)
        )
        for cost, accuracy in zip(costs, accuracies, strict=True)
    ]
    assert pareto_front(costs, accuracies).tolist() == expected
    assert 0 < sum(expected) < 40
    assert pareto_front([1, 1], [0.9, 0.9]).tolist() == [True, True]
