"""How often 95 % intervals hold the truth, on simulated studies whose truth is known: python benchmarks/coverage.py

Prints one line per situation: coverage (wanted: .93 or more for accuracies and differences, .90 for forecasts)
and mean width, with the share of a rival: BCa for accuracies, an oracle that knows the curve's form for forecasts. The
last lines pool the situations. `--studies 100` is quicker; the default of 400 takes some minutes on one core.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from carspotter.evidence.intervals import accuracy_interval, paired_difference
from carspotter.evidence.learning_curves import FORMS, fit_learning_curve, mean_errors

TRAINING_SIZES = np.array([100, 200, 400, 800, 1600])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=400, help="simulated studies per situation")
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    print(f"{studies} studies each; listings of 1 to 12 photos unless said otherwise\n\naccuracies")
    pooled = {name: [] for name in ("accuracies", "accuracies, skewed listings", "differences", "recipes", "forecasts")}
    widths = []
    for count in (100, 200):
        for sizes, name in (("1 to 12", "accuracies"), ("skewed", "accuracies, skewed listings")):
            for accuracy in (0.8, 0.9, 0.95, 0.97, 0.99):
                pooled[name] += simulate_accuracies(rng, studies, count, sizes, accuracy)
    print("\npaired differences of two runs")
    for count in (100, 200):
        for accuracy, won, lost in ((0.85, 0.4, 0.05), (0.9, 0.2, 0.02), (0.95, 0.3, 0.01), (0.95, 0.1, 0.01)):
            pooled["differences"] += simulate_differences(rng, studies, count, accuracy, won, lost)
    print("\npaired differences of two recipes, 150 listings of 6 photos, true difference 0")
    for seeds in (3, 5):
        for spread in (0.0, 0.01, 0.03):
            pooled["recipes"] += simulate_recipes(rng, studies // 2, seeds, spread)
    print(f"\nforecasts from {TRAINING_SIZES.tolist()} training photos, 3 seeds, 170 listings of 6 validation photos")
    for form in (*FORMS, "logistic", "stretched exponential"):
        covered, ratios = simulate_forecasts(rng, studies // 3, form)
        pooled["forecasts"] += covered
        widths += ratios
    print("\npooled")
    for name, covered in pooled.items():
        error = np.sqrt(np.mean(covered) * (1 - np.mean(covered)) / len(covered))
        print(f"  {name:64} covers {np.mean(covered):.3f} ± {1.96 * error:.3f} of {len(covered):,}")
    print(f"  forecasts are {np.mean(widths):.2f} times as wide as the oracle's, at most {np.max(widths):.2f} times")


def simulate_accuracies(rng, studies: int, count: int, sizes: str, accuracy: float) -> list[bool]:
    covered, width, bca_covered = [], [], []
    for study in range(studies):
        photos = draw_sizes(rng, count, sizes)
        # photos of a listing correlate by .25: independent photos' intervals would cover some 82 %
        right = rng.binomial(photos, rng.beta(accuracy * 3, (1 - accuracy) * 3, count))
        groups = np.repeat(np.arange(count), photos)
        interval = accuracy_interval(in_groups(right, photos), groups)
        covered.append(interval.low <= accuracy <= interval.high)
        width.append(interval.high - interval.low)
        if study < studies // 4:  # BCa is slow
            bca_covered.append(covers_with_bca(rng, right, photos, accuracy))
    report(
        f"{count} listings of {sizes} photos, {accuracy:.2f} right", covered, width, f"BCa {np.mean(bca_covered):.3f}"
    )
    return covered


def simulate_differences(rng, studies: int, count: int, accuracy: float, won: float, lost: float) -> list[bool]:
    truth = (1 - accuracy) * won - accuracy * lost
    covered, width, bca_covered = [], [], []
    for study in range(studies):
        photos = draw_sizes(rng, count, "1 to 12")
        before = rng.binomial(photos, rng.beta(accuracy * 3, (1 - accuracy) * 3, count))
        gained = rng.binomial(photos - before, rng.beta(won * 3, (1 - won) * 3, count))
        dropped = rng.binomial(before, rng.beta(lost * 3, (1 - lost) * 3, count))
        a = in_groups(before, photos)
        place = np.concatenate([np.arange(n) for n in photos])
        each_before, each_gained, each_dropped = (np.repeat(x, photos) for x in (before, gained, dropped))
        b = np.where(a, place >= each_dropped, place < each_before + each_gained)
        interval, _ = paired_difference(a, b, np.repeat(np.arange(count), photos))
        covered.append(interval.low <= truth <= interval.high)
        width.append(interval.high - interval.low)
        if study < studies // 4:
            bca_covered.append(covers_with_bca(rng, gained - dropped, photos, truth))
    disagree = ((1 - accuracy) * won + accuracy * lost) * count * 6.5
    report(
        f"{count} listings, {accuracy:.2f} against {accuracy + truth:.3f}, about {disagree:.0f} photos differ",
        covered,
        width,
        f"BCa {np.mean(bca_covered):.3f}",
    )
    return covered


def simulate_recipes(rng, studies: int, seeds: int, spread: float) -> list[bool]:
    covered, width, photos_covered = [], [], []
    groups = np.repeat(np.arange(150), 6)
    for _ in range(studies):
        ease = rng.normal(0, 0.6, 150)[groups]
        a, b = (
            rng.normal(size=(seeds, 900)) < 1.3 + ease + rng.normal(0, spread / stats.norm.pdf(1.1), (seeds, 1))
            for _ in "ab"
        )
        interval, _ = paired_difference(a, b, groups)
        of_photos, _ = paired_difference(a.mean(axis=0), b.mean(axis=0), groups)
        covered.append(interval.low <= 0 <= interval.high)
        width.append(interval.high - interval.low)
        photos_covered.append(of_photos.low <= 0 <= of_photos.high)
    report(f"{seeds} seeds, spread {spread:.2f}", covered, width, f"photos alone {np.mean(photos_covered):.3f}")
    return covered


def simulate_forecasts(rng, studies: int, form: str) -> tuple[list[bool], list[float]]:
    results = {(times, what): [] for times in (2, 4) for what in ("covered", "width", "oracle", "oracle width")}
    for study in range(studies):
        truth = draw_curve(rng, form)
        errors, covariance = mean_errors(*train_and_validate(rng, truth))
        curve = fit_learning_curve(TRAINING_SIZES, errors, covariance, seed=study)
        knowing = fit_learning_curve(TRAINING_SIZES, errors, covariance, (form,), seed=study) if form in FORMS else None
        for times in (2, 4):
            size = times * TRAINING_SIZES[-1]
            for name, fitted in (("covered", curve), ("oracle", knowing)):
                if fitted is not None:
                    forecast = fitted.at(size)
                    results[times, name].append(forecast.low <= 1 - truth(size) <= forecast.high)
                    results[times, "width" if name == "covered" else "oracle width"].append(
                        forecast.high - forecast.low
                    )
    covered, ratios = [], []
    for times in (2, 4):
        rival = "none of the three forms"
        if form in FORMS:
            width, known = (np.mean(results[times, what]) for what in ("width", "oracle width"))
            ratios.append(width / known)
            rival = f"oracle {np.mean(results[times, 'oracle']):.3f}, {width / known:.2f} times its width"
        covered += results[times, "covered"]
        report(f"{form}, {times} times the photos", results[times, "covered"], results[times, "width"], rival)
    return covered, ratios


def draw_sizes(rng, count: int, sizes: str) -> np.ndarray:
    return rng.integers(1, 13, count) if sizes == "1 to 12" else np.minimum(rng.geometric(1 / 6, count), 25)


def in_groups(right: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """Bool, one per photo: in each group the first `right` photos are right."""
    return np.concatenate([np.arange(n) < k for n, k in zip(photos, right, strict=True)])


def covers_with_bca(rng, sums: np.ndarray, photos: np.ndarray, truth: float) -> bool:
    interval = stats.bootstrap(
        (sums.astype(float), photos.astype(float)),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=1_999,
        rng=rng,
    ).confidence_interval
    return interval.low <= truth <= interval.high


def draw_curve(rng, form: str):
    """An error curve drawn at random: .15 to .40 at 100 photos, falling in the way of its form, never below zero."""
    start, rest = rng.uniform(0.15, 0.4), rng.uniform(0, 0.06)
    if form == "power law":
        power = rng.uniform(0.2, 1)
        return lambda n: rest + (start - rest) * (n / 100) ** -power
    if form == "logarithm":
        left = rng.uniform(0.35, 0.65)  # of the error, at 1,600 photos
        return lambda n: start * (1 - (1 - left) * np.log(n / 100) / np.log(16))
    if form == "exponential":
        scale = rng.uniform(150, 1_500)
        return lambda n: rest + 0.02 + (start - rest - 0.02) * np.exp(-(n - 100) / scale)
    if form == "logistic":
        power = rng.uniform(0.3, 1)
        return lambda n: rest + (start - rest) * 2 / (1 + (n / 100) ** power)
    scale = rng.uniform(200, 1_500)
    return lambda n: rest + (start - rest) * np.exp(np.sqrt(100 / scale) - np.sqrt(n / scale))


def train_and_validate(rng, truth) -> tuple[np.ndarray, np.ndarray]:
    """Results (sizes, 3 seeds, 1,020 photos): hard photos stay hard, hard listings too; seeds differ by a point."""
    errors = truth(TRAINING_SIZES)[:, None] + rng.normal(0, 0.01, (len(TRAINING_SIZES), 3))
    groups = np.repeat(np.arange(170), 6)
    hardness = 0.5 * rng.normal(size=170)[groups] + np.sqrt(0.75) * rng.normal(size=1_020)
    luck = np.sqrt(0.4) * rng.normal(size=(*errors.shape, 1_020))
    return np.sqrt(0.6) * hardness + luck > stats.norm.ppf(np.clip(errors, 1e-4, 0.9))[:, :, None], groups


def report(situation: str, covered: list, width: list, rival: str) -> None:
    print(f"  {situation:64} covers {np.mean(covered):.3f}  width {np.mean(width):.4f}  ({rival})", flush=True)


if __name__ == "__main__":
    main()
