import numpy as np
import pytest
from scipy import optimize

from carspotter.evidence.learning_curves import (
    FORMS,
    Forecast,
    fit_learning_curve,
    judge_forms,
    mean_errors,
)

SIZES = np.array([100, 200, 400, 800, 1600])


def power_law(n, a=0.03, b=2.0, c=0.5):
    return a + b * np.asarray(n, float) ** -c


def correlated(errors, of_photos=0.006, of_seeds=0.004):
    """Covariance of errors that share their photos and have seeds of their own."""
    return np.full((len(errors),) * 2, of_photos**2) + np.eye(len(errors)) * of_seeds**2


def test_a_curve_without_noise_is_found_again_and_its_form_named():
    errors = power_law(SIZES)
    curve = fit_learning_curve(SIZES, errors, np.eye(5) * 1e-7)
    assert np.mean(curve.form == FORMS.index("power law")) > 0.99
    (a, b, c), _ = optimize.curve_fit(power_law, SIZES, errors, p0=(0.01, 1, 0.6))
    assert np.median(curve.a) == pytest.approx(a, abs=0.005)
    assert np.median(curve.shape) == pytest.approx(c, abs=0.03)
    assert curve.at(6400).estimate == pytest.approx(1 - power_law(6400, a, b, c), abs=0.002)
    assert curve.gain(2).estimate == pytest.approx(power_law(1600) - power_law(3200), abs=0.001)
    photos, chance = curve.photos_for(0.95)
    assert photos.estimate == pytest.approx((b / (0.05 - a)) ** (1 / c), rel=0.1)
    assert chance == 1.0


def test_the_logarithm_gives_the_forecast_of_generalised_least_squares():
    errors = 0.5 - 0.04 * np.log(SIZES) + np.array([0.004, -0.002, 0.003, -0.005, 0.001])
    covariance = correlated(errors)
    curve = fit_learning_curve(SIZES, errors, covariance, ("logarithm",), draws=20_000)
    design = np.stack([np.ones(5), np.log(SIZES)], axis=1)
    inverse = np.linalg.inv(covariance)
    spread = np.linalg.inv(design.T @ inverse @ design)
    at = np.array([1, np.log(3200)])
    middle, deviation = at @ spread @ design.T @ inverse @ errors, np.sqrt(at @ spread @ at)
    forecast = curve.at(3200)
    assert forecast.estimate == pytest.approx(1 - middle, abs=5e-4)
    assert forecast.high - forecast.low == pytest.approx(2 * 1.96 * deviation, rel=0.04)


def test_the_odds_between_forms_are_those_of_integrating_over_all_curves():
    # by brute force: errors at both ends flat over 0 to 1, falling, and an asymptote that is not below zero
    measured, deviation = np.array([0.30, 0.25, 0.20, 0.10, 0.04]), 0.02
    first, last = np.meshgrid(np.linspace(0, 0.5, 201), np.linspace(0, 0.3, 121))
    evidence = {}
    for form, shapes in (("logarithm", [None]), ("exponential", np.geomspace(100, 4_800, 60))):
        total = 0.0
        for shape in shapes:
            g = -np.log(SIZES) if shape is None else np.exp(-SIZES / shape)
            slope = (first - last) / (g[0] - g[-1])
            rest = last - slope * g[-1]
            curves = rest[..., None] + slope[..., None] * g
            likelihood = np.exp(-(((measured - curves) / deviation) ** 2).sum(axis=-1) / 2)
            total += likelihood[(slope >= 0) & ((rest >= 0) | (shape is None))].sum() / len(shapes)
        evidence[form] = total
    expected = evidence["exponential"] / sum(evidence.values())
    curve = fit_learning_curve(SIZES, measured, np.eye(5) * deviation**2, ("logarithm", "exponential"), draws=40_000)
    assert 0.05 < expected < 0.95
    assert np.mean(curve.form == FORMS.index("exponential")) == pytest.approx(expected, abs=0.01)


def test_forecasts_cover_the_truth_and_cost_at_most_three_times_the_width_of_knowing_the_form():
    rng = np.random.default_rng(0)
    truths = {
        "power law": lambda n: power_law(n, a=0.04, b=3.0, c=0.55),
        "logarithm": lambda n: 0.55 - 0.055 * np.log(n),
        "exponential": lambda n: 0.05 + 0.25 * np.exp(-n / 600),
    }
    covered, width, width_of_oracle = [], [], []
    for form, truth in truths.items():
        for _ in range(25):
            covariance = correlated(SIZES)
            errors = rng.multivariate_normal(truth(SIZES), covariance)
            forecast = fit_learning_curve(SIZES, errors, covariance, draws=2_000).at(6400)
            oracle = fit_learning_curve(SIZES, errors, covariance, (form,), draws=2_000).at(6400)
            covered.append(forecast.low <= 1 - truth(6400) <= forecast.high)
            width.append(forecast.high - forecast.low)
            width_of_oracle.append(oracle.high - oracle.low)
    assert np.mean(covered) >= 0.88  # 75 fits: a true coverage of .95 falls below this once in a hundred
    assert np.mean(width) <= 3 * np.mean(width_of_oracle)
    assert np.mean(width) > np.mean(width_of_oracle)


def test_the_photos_for_an_accuracy_are_where_the_curve_gets_there():
    curve = fit_learning_curve(SIZES, power_law(SIZES), correlated(SIZES))
    photos, chance = curve.photos_for(0.95)
    for size in (1_000, 5_000, 20_000):
        assert np.mean(curve.accuracies(size) >= 0.95) <= chance
    assert np.mean(curve.accuracies(photos.estimate) >= 0.95) == pytest.approx(0.5, abs=0.01)
    assert 1_600 < photos.low < photos.estimate
    never, chance = curve.photos_for(0.999)
    assert chance < 0.7
    assert never.high == np.inf
    assert str(never).endswith(", never]")


def test_forms_are_judged_on_the_sizes_held_back():
    table = judge_forms(SIZES, power_law(SIZES), np.eye(5) * 1e-6)
    assert table["form"].unique().tolist() == ["power law", "logarithm", "exponential", "average"]
    assert table["size"].unique().tolist() == [800, 1600]
    assert np.allclose(table["measured"], 1 - power_law(table["size"]))
    misses = table.groupby("form")["miss"].agg(lambda miss: miss.abs().max())
    assert misses.idxmin() == "power law"
    # fitted on the small sizes, the logarithm promises too much and the exponential too little
    assert table.query("form == 'logarithm'")["miss"].min() > 0.01
    assert table.query("form == 'exponential'")["miss"].max() < -0.005


def test_errors_share_the_chance_of_the_photos_and_have_seeds_of_their_own():
    rng = np.random.default_rng(1)
    count, photos = 80, 5
    groups = np.repeat(np.arange(count), photos)
    one = rng.random((3, 1, count * photos)) < np.array([0.7, 0.8, 0.9])[:, None, None]
    errors, covariance = mean_errors(np.repeat(one, 2, axis=1), groups)  # two seeds that do not differ
    np.testing.assert_allclose(errors, 1 - one.mean((1, 2)))
    means = one[:, 0].reshape(3, count, photos).mean(axis=2)
    np.testing.assert_allclose(covariance, np.cov(means) / count, atol=1e-6)
    seeds = rng.random((3, 4, count * photos)) < np.array([0.7, 0.8, 0.9])[:, None, None]
    _, with_seeds = mean_errors(seeds, groups)
    pooled = seeds.mean(axis=2).var(axis=1, ddof=1) / 4
    means = seeds.mean(axis=1).reshape(3, count, photos).mean(axis=2)
    of_seeds = np.diag(with_seeds - np.cov(means) / count)
    scale = seeds.mean((1, 2)) * (1 - seeds.mean((1, 2)))
    np.testing.assert_allclose(of_seeds / scale, (pooled / scale).mean() * 9 / 7, rtol=0.01)  # 9 degrees of freedom


def test_a_forecast_reads_as_an_accuracy_or_as_photos():
    assert str(Forecast(0.9512, 0.93, 0.97)) == "0.951 [0.930, 0.970]"
    assert str(Forecast(4_321, 1_950, np.inf)) == "4,300 photos [2,000 photos, never]"


def test_unusable_input_is_refused_with_what_was_found():
    with pytest.raises(ValueError, match="three or more sizes"):
        fit_learning_curve([1, 2], [0.2, 0.1], np.eye(2))
    with pytest.raises(ValueError, match="do not fall as learning curves do"):
        fit_learning_curve(SIZES, [0.1, 0.15, 0.2, 0.25, 0.3], np.eye(5) * 1e-5)
    with pytest.raises(ValueError, match="two or more seeds"):
        mean_errors(np.ones((3, 1, 10)), np.arange(10))


def test_curves_as_flat_as_chance_still_fit():
    flat = fit_learning_curve([12, 24, 48], [0.5, 0.51, 0.5], np.eye(3) * 0.05**2)
    assert flat.at(96).low < 0.5 < flat.at(96).high
