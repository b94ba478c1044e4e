"""How much data: curves of accuracy over training photos, and what they say about sizes nobody has trained on.

Three forms are fitted, each error(n) = a + b·g(n): the power law that most learning curves follow, the logarithm that
never levels off (the optimist), and the exponential that soon does (the pessimist). A handful of sizes seldom tells
them apart, so a forecast averages over the forms and over all their parameters, by how well they explain what was
measured. An interval from the best fit alone would be far too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from carspotter.evidence.intervals import group_means

FORMS = ("power law", "logarithm", "exponential")
SHAPES = 60  # values tried of the one parameter that is not linear
DRAWS = 8_000


@dataclass(frozen=True)
class Forecast:
    """A median with its central 95 % interval; `high` is inf where the curve may never get there."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if max(abs(self.estimate), abs(self.low)) < 10:
            return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{_photos(self.estimate)} [{_photos(self.low)}, {_photos(self.high)}]"


@dataclass(frozen=True)
class LearningCurve:
    """What is known of a learning curve: draws of error(n) = a + b·g(n), as likely as the data make them.

    `sizes`, `errors`: float (K,), measured. `form`: int (draws,), place in `FORMS`; `shape`, `a`, `b`: float (draws,).
    """

    sizes: np.ndarray
    errors: np.ndarray
    form: np.ndarray
    shape: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def accuracies(self, size: float) -> np.ndarray:
        """Return one accuracy per draw, float (draws,), for training on `size` photos."""
        g = np.select([self.form == i for i in range(len(FORMS))], [_g(name, size, self.shape) for name in FORMS])
        return 1 - np.clip(self.a + self.b * g, 0, 1)

    def at(self, size: float) -> Forecast:
        """Forecast the accuracy after training on `size` photos."""
        return _forecast(self.accuracies(size))

    def gain(self, factor: float = 2.0) -> Forecast:
        """Forecast what `factor` times the largest measured size would buy, as a difference of accuracies."""
        largest = self.sizes.max()
        return _forecast(self.accuracies(factor * largest) - self.accuracies(largest))

    def photos_for(self, accuracy: float) -> tuple[Forecast, float]:
        """Forecast how many training photos reach an `accuracy`, and the probability that any number does."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            g = (1 - accuracy - self.a) / self.b
            out_of_reach = (g <= 0) & (self.form != FORMS.index("logarithm"))
            inverse = [np.abs(g) ** (-1 / self.shape), np.exp(-g), -self.shape * np.log(np.abs(g))]
        sizes = np.select([self.form == i for i in range(len(FORMS))], inverse)
        sizes = np.where(out_of_reach, np.inf, np.maximum(sizes, 0))
        return _forecast(sizes), float(np.isfinite(sizes).mean())


def mean_errors(correct, groups) -> tuple[np.ndarray, np.ndarray]:
    """Return the error at each training size, float (K,), and the covariance of these, float (K, K).

    `correct`: bool (K sizes, seeds, N photos) on the same validation photos; `groups`: (N,). The photos are common to
    all sizes and move all errors together; seeds move each on its own. The spread of seeds is pooled over sizes, in
    proportion to error × accuracy, since two or three seeds at one size know little. It holds some of the chance of the
    photos a second time, which errs on the safe side. Raises ValueError for fewer than two seeds.
    """
    wrong = 1.0 - np.asarray(correct, float)
    if wrong.ndim != 3 or wrong.shape[1] < 2:
        raise ValueError(f"need results of (sizes, two or more seeds, photos), found shape {wrong.shape}")
    count, seeds, photos = wrong.shape
    means, influences, sizes = group_means(wrong.reshape(count * seeds, photos), groups)
    means, influences = means.reshape(count, seeds), influences.reshape(count, seeds, -1)
    errors, influence = means.mean(axis=1), influences.mean(axis=1)
    correction = len(sizes) / max(1, len(sizes) - 1)
    scale = np.maximum(errors * (1 - errors), 0.5 / photos)
    freedom = count * (seeds - 1)
    of_seeds = (means.var(axis=1, ddof=1) / seeds / scale).mean() * scale
    if freedom > 2:
        of_seeds = of_seeds * freedom / (freedom - 2)  # the variance of Student's t: the spread itself is uncertain
    rounding = np.eye(count) * (0.3 / photos) ** 2  # keeps the matrix invertible where nothing varies
    return errors, influence @ influence.T * correction + np.diag(of_seeds) + rounding


def fit_learning_curve(
    sizes, errors, covariance, forms: Sequence[str] = FORMS, draws: int = DRAWS, seed: int = 0
) -> LearningCurve:
    """Fit all `forms` to the errors measured at `sizes` training photos, weighed by how well they explain them.

    `sizes`, `errors`: float (K,), K ≥ 3; `covariance`: float (K, K), see `mean_errors`. Errors must not rise with more
    photos: raises ValueError where they clearly do, and for fewer than three sizes.

    Method: Bayesian model averaging (Hoeting et al. 1999). Each form has one parameter that is not linear, tried on a
    grid; the other two are given by the errors at the smallest and the largest size, alike in all forms, with flat
    priors, so that evidences can be compared. Forms: Viering and Loog 2022, "The shape of learning curves: a review".
    """
    sizes, errors, covariance = (np.asarray(x, float) for x in (sizes, errors, covariance))
    if len(sizes) < 3 or errors.shape != sizes.shape or covariance.shape != (len(sizes), len(sizes)):
        raise ValueError(
            f"need three or more sizes with one error each and their covariance, found {sizes.shape}, {errors.shape} "
            f"and {covariance.shape}"
        )
    smallest, largest = sizes.min(), sizes.max()
    cells = [(name, shape) for name in forms for shape in _shapes(name, smallest, largest)]
    first, last = (np.array([_g(name, n, shape) for name, shape in cells]) for n in (smallest, largest))
    g = np.array([_g(name, sizes, shape) for name, shape in cells])
    fallen = (first[:, None] - g) / (first - last)[:, None]  # 0 at the smallest size, 1 at the largest
    design = np.stack([1 - fallen, fallen], axis=2)  # times (error at the smallest, error at the largest)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), np.eye(len(sizes)))
    x, y = whitened @ design, whitened @ errors
    spread = np.linalg.inv(x.transpose(0, 2, 1) @ x)
    centre = (spread @ (x.transpose(0, 2, 1) @ y)[:, :, None])[:, :, 0]
    residual = ((y - (x @ centre[:, :, None])[:, :, 0]) ** 2).sum(axis=1)
    evidence = -residual / 2 + np.linalg.slogdet(spread)[1] / 2

    # as many candidates from each cell, so that one whose best fit is impossible cannot crowd out the others
    rng = np.random.default_rng(seed)
    cell = np.repeat(np.arange(len(cells)), 2 * draws // SHAPES)
    ends = centre[cell] + (np.linalg.cholesky(spread)[cell] @ rng.normal(size=(len(cell), 2, 1)))[:, :, 0]
    b = (ends[:, 0] - ends[:, 1]) / (first - last)[cell]
    a = ends[:, 1] - b * last[cell]
    form = np.array([FORMS.index(name) for name, _ in cells])[cell]
    possible = (b >= 0) & (ends[:, 1] >= 0) & (ends[:, 0] <= 1) & ((a >= 0) | (form == FORMS.index("logarithm")))
    if possible.sum() < 20:
        raise ValueError(
            f"errors {np.round(errors, 4).tolist()} at {sizes.astype(int).tolist()} photos do not fall as learning "
            "curves do, beyond what chance explains: look for a mistake in the training sets"
        )
    probability = np.where(possible, np.exp(evidence - evidence[cell[possible]].max())[cell], 0)
    kept = rng.choice(len(cell), draws, p=probability / probability.sum())
    shape = np.array([shape for _, shape in cells])[cell]
    return LearningCurve(sizes, errors, form[kept], shape[kept], a[kept], b[kept])


def judge_forms(sizes, errors, covariance, held_back: int = 2, seed: int = 0) -> pd.DataFrame:
    """Fit each form, and all together, without the `held_back` largest sizes, and compare forecasts with what came.

    Arguments as in `fit_learning_curve`. Returns one row per form and held-back size: form, size, forecast, low, high
    (accuracies, at 95 %), measured, miss (forecast minus measured). The average over the forms comes last.
    """
    sizes, errors, covariance = (np.asarray(x, float) for x in (sizes, errors, covariance))
    order = np.argsort(sizes)
    fitted, later = order[: len(order) - held_back], order[len(order) - held_back :]
    rows = []
    for name, forms in [*((name, (name,)) for name in FORMS), ("average", FORMS)]:
        curve = fit_learning_curve(sizes[fitted], errors[fitted], covariance[np.ix_(fitted, fitted)], forms, seed=seed)
        for index in later:
            forecast, measured = curve.at(sizes[index]), 1 - errors[index]
            rows.append(
                {
                    "form": name,
                    "size": round(sizes[index]),
                    "forecast": forecast.estimate,
                    "low": forecast.low,
                    "high": forecast.high,
                    "measured": measured,
                    "miss": forecast.estimate - measured,
                }
            )
    return pd.DataFrame(rows)


def _g(form: str, size, shape):
    """The falling part of a form: 1 photo gives it most, many photos least."""
    if form == "power law":
        return size ** (-np.asarray(shape, float))
    if form == "logarithm":
        return -np.log(size) + 0.0 * np.asarray(shape)
    return np.exp(-size / np.asarray(shape, float))


def _shapes(form: str, smallest: float, largest: float) -> np.ndarray:
    """Values tried of the parameter that is not linear: the power, or the photos after which 63 % are learned.

    As many for each form, so that the forms start out equally likely; the logarithm has no such parameter.
    """
    if form == "power law":
        return np.geomspace(0.05, 2, SHAPES)
    return np.geomspace(smallest, 3 * largest, SHAPES) if form == "exponential" else np.ones(SHAPES)


def _forecast(values: np.ndarray) -> Forecast:
    # "nearest", as a line between a number and inf is no number
    low, middle, high = np.quantile(values, [0.025, 0.5, 0.975], method="nearest")
    return Forecast(float(middle), float(low), float(high))


def _photos(number: float) -> str:
    if number >= 1e7:
        return "more than 10 million" if np.isfinite(number) else "never"
    return f"{float(f'{number:.2g}'):,.0f} photos"
