"""Calibration: reliability, its error, and the temperature that repairs most of it."""

import numpy as np
import pandas as pd
from scipy import optimize, special

from carspotter.models.metrics import SMALLEST, check_shapes
from carspotter.models.metrics import apply_temperature as apply_temperature


def reliability(labels, probabilities, bins: int = 10) -> pd.DataFrame:
    """Return the reliability diagram as a table: one row per bin of confidence that holds photos.

    `labels`: class numbers, int (N,); `probabilities`: float (N, classes). Bins are of equal width over 0 … 1. Columns:
    low, high (edges), photos, confidence, accuracy. Method: DeGroot and Fienberg 1983; Guo et al. 2017.
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


def expected_calibration_error(labels, probabilities) -> float:
    """Return the mean distance of confidence and accuracy over the bins of `reliability` (Naeini et al. 2015)."""
    table = reliability(labels, probabilities)
    return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["photos"]))


def fit_temperature(labels, probabilities) -> float:
    """Return the temperature, .05 … 20, that makes the probabilities fit best: above 1 the model was overconfident.

    `labels`: int (N,); `probabilities`: float (N, classes), of photos that the model was not trained on. A weak prior,
    ln T ~ N(0, 1), keeps it near 1 for few photos. Method: temperature scaling, Guo et al. 2017, maximum a posteriori.
    """
    labels, probabilities = _checked(labels, probabilities)
    logits = np.log(np.maximum(probabilities, SMALLEST))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        misfit = special.logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]
        return float(misfit.sum() + log_temperature**2 / 2)

    best = optimize.minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))


def _checked(labels, probabilities) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = check_shapes(labels, np.asarray(probabilities, float))
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities of a photo must add up to 1; give one column per class, for two classes too")
    return labels, probabilities
