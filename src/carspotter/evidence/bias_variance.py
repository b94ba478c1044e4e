"""What is wrong with a model: bias (it cannot) or variance (other photos would have given another model).

Bias shows as mistakes on the training photos, variance as the gap between training and validation. The decomposition
says the same of models trained on resampled training sets: mistakes that they share, and those in which they differ.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from carspotter.evidence.intervals import Interval, paired_difference
from carspotter.models.experiments import PRETRAINED

TARGET_ACCURACY = 0.97  # what the series aims at
WINDOW = 5  # epochs over which losses are smoothed


@dataclass(frozen=True)
class Decomposition:
    """The error of models trained on resampled training sets, taken apart: error = bias + variance.

    Both are shares of photos with intervals over groups of photos, for these models: how far others would spread is
    left out. Noise (wrong labels, photos that nobody could classify) counts as bias.
    """

    error: float
    bias: Interval
    variance: Interval
    models: int

    def __str__(self) -> str:
        of = f"{self.models} models; the intervals are for these models"
        return f"error {self.error:.3f} = bias {self.bias} + variance {self.variance} ({of})"


def decompose(labels, predictions, groups) -> Decomposition:
    """Take the 0-1 loss of several models of one recipe apart into bias and variance.

    `labels`: (N,); `predictions`: (models, N), classes predicted by models trained on different samples of the training
    photos; `groups`: (N,), for the intervals. Raises ValueError for fewer than three models or unequal numbers.

    Method: Kohavi and Wolpert 1996, "Bias plus variance decomposition for zero-one loss functions": the variance of a
    photo is (1 − Σ p²) / 2 over the shares p of the predicted classes. M models show only (M − 1) / M of it, so it is
    multiplied by M / (M − 1), and the bias is what is left of the error. It holds for any number of classes. A main
    prediction by majority (Domingos 2000) would call variance bias with few models.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if predictions.ndim != 2 or len(predictions) < 3 or predictions.shape[1:] != labels.shape:
        raise ValueError(
            f"need predictions of three or more models for each of {labels.shape} labels, found {predictions.shape}"
        )
    models = len(predictions)
    wrong = (predictions != labels).mean(axis=0)
    shares = np.stack([(predictions == name).mean(axis=0) for name in np.unique(predictions)])
    variance = (1 - (shares**2).sum(axis=0)) / 2 * models / (models - 1)
    bias, _ = paired_difference(variance, wrong, groups)
    spread, _ = paired_difference(np.zeros(len(labels)), variance, groups)
    return Decomposition(float(wrong.mean()), bias, spread, models)


def generalisation_gap(training: Interval | float, validation: Interval) -> Interval:
    """Return the accuracy on one set of photos minus that on another, such as training and validation, with interval.

    `training`: with its interval over training groups, or a bare number, such as a history holds, whose own uncertainty
    is then left out. It must be measured as validation is (no augmentation, no dropout), or the gap looks too small.
    Raises ValueError for intervals at different levels.

    Method: square-and-add of the two intervals, Newcombe 1998, "Interval estimation for the difference between
    independent proportions", method 10, with group intervals in place of Wilson's.
    """
    if not isinstance(training, Interval):
        training = Interval(training, training, training, 0, 0, validation.level)
    if not np.isclose(training.level, validation.level):
        raise ValueError(f"intervals at {training.level:.2%} and {validation.level:.2%}; compute both at one level")
    gap = training.estimate - validation.estimate
    low = np.hypot(training.estimate - training.low, validation.high - validation.estimate)
    high = np.hypot(training.high - training.estimate, validation.estimate - validation.low)
    return Interval(gap, gap - float(low), gap + float(high), validation.photos, validation.groups, validation.level)


def overfitting_start(history: pd.DataFrame) -> int | None:
    """Return the epoch from which validation loss rises for good while training loss falls, or None.

    `history`: table with epoch, train_loss, validation_loss. Losses are smoothed by a running median over five
    epochs. A rise counts when each of the last ten smoothed losses lies above the lowest by more than twice the spread
    of what the smoothing removed, measured by the median, so that a few spikes, or the rise itself, do not hide it.

    Method: early stopping read backwards, Prechelt 1998, "Early stopping, but when?".
    """
    if len(history) < 2 * WINDOW:
        return None
    smooth = history[["train_loss", "validation_loss"]].rolling(WINDOW, center=True, min_periods=1).median()
    training, validation = smooth["train_loss"].to_numpy(), smooth["validation_loss"].to_numpy()
    noise = 1.4826 * float(np.median(np.abs(history["validation_loss"].to_numpy() - validation)))
    lowest = int(validation.argmin())
    rises = (validation[-2 * WINDOW :] > validation[lowest] + 2 * noise).all() and training[-1] < training[lowest]
    return int(history["epoch"].iloc[lowest]) if rises else None


def diagnose(name: str, training: Interval | float, validation: Interval, overfits_from: int | None = None) -> str:
    """Say in a plain sentence what is wrong with an experiment, bias or variance, and what to try next.

    `training`: accuracy on the training photos, see `generalisation_gap`; `overfits_from`: see `overfitting_start`.
    What training accuracy lacks to TARGET_ACCURACY is avoidable bias, the gap is variance; the larger is the one to
    work on. To an experiment of PRETRAINED, by its `name`, no pretrained network is recommended.

    Method: Ng, "Machine Learning Yearning", 2018, ch. 20–27 (avoidable bias and variance).
    """
    gap = generalisation_gap(training, validation)
    trained = training.estimate if isinstance(training, Interval) else training
    lacking = max(0.0, TARGET_ACCURACY - trained)
    pretrained = name in {experiment.name for experiment in PRETRAINED}
    if validation.low >= TARGET_ACCURACY:
        finding = f"good enough, as even the low end of its interval reaches {TARGET_ACCURACY:.0%}"
        following = "test it on harder photos"
    elif validation.estimate >= TARGET_ACCURACY:
        finding = f"it seems to reach {TARGET_ACCURACY:.0%}, but its interval does not"
        following = "more validation photos"
    elif lacking >= gap.estimate:
        finding = f"bias, as it lacks {lacking:.1%} even on its training photos"
        model = "a larger model" if pretrained else "a larger or a pretrained model"
        following = f"{model}, more epochs, less regularisation"
    elif gap.low <= 0:
        finding = f"undetermined, as the gap's interval [{gap.low:+.3f}, {gap.high:+.3f}] contains zero"
        following = "more validation photos"
    else:
        since = f", overfitting from epoch {overfits_from}" if overfits_from is not None else ""
        finding = f"variance, a gap of {gap.estimate:.1%}{since}"
        following = "more photos, augmentation" + (" or dropout" if pretrained else ", dropout or pretrained features")
    facts = f"{name} classifies {trained:.1%} of the training and {validation.estimate:.1%} of the validation photos"
    return f"{facts} correctly: {finding}; next, {following}."
