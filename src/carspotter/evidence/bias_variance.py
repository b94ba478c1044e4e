"""What is wrong with a model: bias (it cannot), variance (other photos would), or unearned confidence.

Bias shows as mistakes on the training photos, variance as the gap between training and validation. The decomposition
says the same of single photos: those that nearly every training gets wrong, and those on which trainings disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, special

from carspotter.evidence.comparison import Interval, accuracy_interval

TARGET_ACCURACY = 0.97  # what the series aims at
EDGE = 1e-12  # probabilities are kept this far from 0 before their logarithm is taken


@dataclass(frozen=True)
class Decomposition:
    """The error of models trained on resampled training sets, taken apart: error = bias + variance.

    `bias`: share of photos that the models' majority names wrongly, with its interval over groups; unlearnable photos
    and wrong labels count here. `unbiased_variance`: what disagreement costs on the other photos; `biased_variance`:
    what it wins back on those. `variance` is the first less the second. All are shares of photos.
    """

    error: float
    bias: Interval
    unbiased_variance: float
    biased_variance: float
    models: int

    @property
    def variance(self) -> float:
        return self.unbiased_variance - self.biased_variance

    def __str__(self) -> str:
        return f"error {self.error:.3f} = bias {self.bias} + variance {self.variance:+.3f} ({self.models} models)"


def decompose(labels, predictions, groups) -> Decomposition:
    """Take the 0-1 loss of several models of one recipe apart into bias and variance.

    `labels`: (N,); `predictions`: (models, N), classes named by models trained on different samples of the training
    photos; `groups`: (N,), for the interval. Ties for the majority go to the lower class. With M models the variance is
    seen at about (M − 1) / M of its size. Raises ValueError for fewer than three models or unequal numbers of photos.

    Method: Domingos 2000, "A unified bias-variance decomposition", with zero noise. It holds for any number of classes.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if predictions.ndim != 2 or len(predictions) < 3 or predictions.shape[1:] != labels.shape:
        raise ValueError(
            f"need predictions of three or more models for each of {labels.shape} labels, found {predictions.shape}"
        )
    classes = np.unique(predictions)
    votes = (predictions == classes[:, None, None]).sum(axis=1)
    majority = classes[votes.argmax(axis=0)]
    right = (predictions == labels).mean(axis=0)
    unbiased = majority == labels
    bias_free = accuracy_interval(unbiased, groups)
    bias = Interval(1 - bias_free.estimate, 1 - bias_free.high, 1 - bias_free.low, bias_free.photos, bias_free.groups)
    return Decomposition(
        error=float(1 - right.mean()),
        bias=bias,
        unbiased_variance=float(np.where(unbiased, 1 - right, 0).mean()),
        biased_variance=float(np.where(unbiased, 0, right).mean()),
        models=len(predictions),
    )


def generalisation_gap(training: Interval | float, validation: Interval) -> Interval:
    """Give training accuracy minus validation accuracy, two separate sets of photos, with its interval.

    `training`: with its interval over training groups, or a bare number, such as a history holds, whose own uncertainty
    is then left out. It must be measured as validation is (no augmentation, no dropout), or the gap looks too small.

    Method: square-and-add of the two intervals, Newcombe 1998, "Interval estimation for the difference between
    independent proportions", method 10, with group intervals in place of Wilson's.
    """
    if not isinstance(training, Interval):
        training = Interval(training, training, training, 0, 0, validation.level)
    gap = training.estimate - validation.estimate
    low = np.hypot(training.estimate - training.low, validation.high - validation.estimate)
    high = np.hypot(training.high - training.estimate, validation.estimate - validation.low)
    return Interval(gap, gap - float(low), gap + float(high), validation.photos, validation.groups, validation.level)


def overfitting_start(history: pd.DataFrame, window: int = 5) -> int | None:
    """Give the epoch from which validation loss rises for good while training loss falls, or None where it does not.

    `history`: table with epoch, train_loss, validation_loss. Losses are smoothed by a running median over `window`
    epochs. A rise counts when the last smoothed loss lies above the lowest by more than twice the standard deviation of
    what the smoothing took away: noise alone does not.

    Method: early stopping read backwards, Prechelt 1998, "Early stopping, but when?".
    """
    if len(history) < 2 * window:
        return None
    smooth = history[["train_loss", "validation_loss"]].rolling(window, center=True, min_periods=1).median()
    training, validation = smooth["train_loss"].to_numpy(), smooth["validation_loss"].to_numpy()
    noise = float(np.std(history["validation_loss"].to_numpy() - validation))
    lowest = int(validation.argmin())
    rises = validation[-1] > validation[lowest] + 2 * noise and training[-1] < training[lowest]
    return int(history["epoch"].iloc[lowest]) if rises else None


def diagnose(
    name: str,
    training: Interval | float,
    validation: Interval,
    overfits_from: int | None = None,
    target: float = TARGET_ACCURACY,
) -> str:
    """Say in a plain sentence what is wrong with an experiment, bias or variance, and what to try next.

    `training`: accuracy on the training photos, see `generalisation_gap`; `overfits_from`: see `overfitting_start`.
    Bias is what training accuracy lacks to `target`, variance is the gap; the larger is the one to work on.

    Method: Ng, "Machine Learning Yearning", 2018, ch. 20–27 (avoidable bias and variance).
    """
    gap = generalisation_gap(training, validation)
    trained = training.estimate if isinstance(training, Interval) else training
    bias = max(0.0, target - trained)
    if validation.low >= target:
        finding = f"good enough, as even the low end of its interval reaches {target:.0%}"
        following = "test it on harder photos"
    elif validation.estimate >= target:
        finding = f"it seems to reach {target:.0%}, but its interval does not"
        following = "more validation photos"
    elif bias >= gap.estimate:
        finding = f"bias, as it lacks {bias:.1%} even on what it has seen"
        following = "a larger or a pretrained model, more epochs, less regularisation"
    elif gap.low <= 0:
        finding = (
            f"neither bias nor variance is shown, as the gap's interval [{gap.low:+.3f}, {gap.high:+.3f}] holds zero"
        )
        following = "more validation photos"
    else:
        since = f", overfitting from epoch {overfits_from}" if overfits_from is not None else ""
        finding = f"variance, a gap of {gap.estimate:.1%}{since}"
        following = "more photos, augmentation, dropout or pretrained features"
    facts = f"{name} names {trained:.1%} of the training and {validation.estimate:.1%} of the validation photos rightly"
    return f"{facts}: {finding}; next, {following}."


def reliability(labels, probabilities, bins: int = 10) -> pd.DataFrame:
    """Give the reliability diagram as a table: one row per bin of confidence that holds photos.

    `labels`: class numbers, int (N,); `probabilities`: float (N, classes). Confidence is the probability of the named
    class; bins are of equal width over 0 … 1. Columns: low, high (edges), photos, confidence, accuracy (means).

    Method: DeGroot and Fienberg 1983; Guo et al. 2017, "On calibration of modern neural networks".
    """
    labels, probabilities = _checked(labels, probabilities)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # a bin holds its upper edge
    table = pd.DataFrame({"bin": number, "confidence": confidence, "accuracy": right.astype(float)}).groupby("bin")
    rows = table.agg(photos=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean"))
    rows.insert(0, "low", edges[rows.index])
    rows.insert(1, "high", edges[rows.index + 1])
    return rows.reset_index(drop=True)


def expected_calibration_error(labels, probabilities, bins: int = 10) -> float:
    """Give the mean distance between confidence and accuracy over the bins of `reliability`, weighted by photos.

    Arguments as there. Even a perfect model scores above zero on few photos. Method: Naeini et al. 2015.
    """
    table = reliability(labels, probabilities, bins)
    return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["photos"]))


def fit_temperature(labels, probabilities) -> float:
    """Give the temperature that makes the probabilities fit best: above 1 the model was too sure, below 1 too timid.

    `labels`: int (N,); `probabilities`: float (N, classes), of photos that the model was not trained on. Between .05
    and 20. A weak prior, ln T ~ N(0, 1), keeps it near 1 where the photos say nothing: without a mistake among them the
    likelihood alone would want an endless sharpening. With hundreds of photos and some mistakes it is not noticed.

    Method: temperature scaling, Guo et al. 2017, with a maximum a posteriori estimate.
    """
    labels, probabilities = _checked(labels, probabilities)
    logits = np.log(np.maximum(probabilities, EDGE))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        misfit = special.logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]
        return float(misfit.sum() + log_temperature**2 / 2)

    best = optimize.minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))


def apply_temperature(probabilities, temperature: float) -> np.ndarray:
    """Soften (above 1) or sharpen (below 1) probabilities, float (N, classes); the named class stays the same."""
    return special.softmax(np.log(np.maximum(np.asarray(probabilities, float), EDGE)) / temperature, axis=1)


def _checked(labels, probabilities) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, float)
    if len(labels) == 0 or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise ValueError(
            f"need a label and a row of probabilities per photo, found {labels.shape} and {probabilities.shape}"
        )
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities of a photo must add up to 1; give one column per class, for two classes too")
    return labels, probabilities
