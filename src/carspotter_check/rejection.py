"""When the check keeps quiet: calibrated confidence, distance to known photos, image quality, and their thresholds.

A classifier of two cars calls every picture one of the two. Four questions are asked before its answer counts: is there
a picture at all, does it resemble what people rejected, does it resemble what the model learned from, and is the model
sure? Each has a threshold that comes from validation photos and a stated risk.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

RISK = 0.01  # of the accepted validation photos, at most this share is named wrongly
TOLERANCE = 1e-6
NEVER = 2.0  # a confidence that no photo reaches


@dataclass(frozen=True)
class Limits:
    """Below these a picture shows nothing: figures of `quality`, and the shorter side of the file in pixels."""

    brightness: float = 12.0
    contrast: float = 8.0
    sharpness: float = 1.5
    shorter_side: int = 48


@dataclass(frozen=True)
class Rejection:
    """The thresholds of one model, and what they promise on validation; `References` adds the feature space.

    `temperature` divides the logits; a photo whose calibrated confidence is below `confidence` is not answered. `risk`
    is what was asked for; `validation_risk` and `coverage` (shares) are what the threshold gives on the `photos`
    validation photos, `risk_upper_95` the one-sided 95 % bound of that risk.
    """

    temperature: float = 1.0
    confidence: float = 0.0
    risk: float = RISK
    validation_risk: float | None = None
    risk_upper_95: float | None = None
    coverage: float | None = None
    photos: int = 0
    limits: Limits = Limits()

    @classmethod
    def fit(cls, probabilities: np.ndarray, labels: np.ndarray, risk: float = RISK) -> Rejection:
        """Fit temperature and confidence threshold on validation: probabilities (N, classes), class numbers (N,)."""
        from carspotter.evidence.calibration import fit_temperature  # a server needs its result alone

        correct = np.asarray(probabilities).argmax(axis=1) == labels
        temperature = 1.0
        # Without a mistake, or without a hit, the best temperature is an endless one, and means nothing.
        if 0 < correct.sum() < len(correct):
            temperature = fit_temperature(labels, probabilities)
        calibrated = calibrate(probabilities, temperature)
        # The photo that sets the threshold must pass it again, whatever the last digit of another machine.
        confidence = choose_threshold(calibrated.max(axis=1), correct, risk) - TOLERANCE
        accepted = calibrated.max(axis=1) >= confidence
        wrong, count = int((accepted & ~correct).sum()), int(accepted.sum())
        return cls(
            temperature,
            confidence,
            risk,
            wrong / count if count else None,
            risk_upper_bound(wrong, count) if count else None,
            float(accepted.mean()),
            len(labels),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Rejection:
        return cls(**values | {"limits": Limits(**values["limits"])})

    def with_limits_of(self, images: np.ndarray) -> Rejection:
        """Fit the quality limits on good images uint8 (N, S, S, 3): half of what 199 of 200 of them have."""
        measured = np.array([list(quality(image).values()) for image in images])
        brightness, contrast, sharpness = np.percentile(measured, 0.5, axis=0) / 2
        return replace(self, limits=Limits(float(brightness), float(contrast), float(sharpness)))


def quality(image: np.ndarray) -> dict[str, float]:
    """Measure an image uint8 (S, S, 3), in grey levels: brightness (95th percentile), contrast, sharpness.

    The 95th percentile, because a car at night has headlights and a lens cap has none. Contrast is the standard
    deviation, sharpness the standard deviation of the Laplacian (Pech-Pacheco et al. 2000).
    """
    red, green, blue = np.moveaxis(image.astype(np.float32), -1, 0)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return {
        "brightness": float(np.percentile(grey, 95)),
        "contrast": float(grey.std()),
        "sharpness": float(laplacian.std()),
    }


def quality_fault(image: np.ndarray, limits: Limits) -> str | None:
    """Say in words why an image shows nothing, or None where it may show something."""
    measured = quality(image)
    faults = {"brightness": "too dark", "contrast": "almost one single colour", "sharpness": "too blurred"}
    for name, words in faults.items():
        if measured[name] < getattr(limits, name):
            return f"{words} ({name} {measured[name]:.1f}, at least {getattr(limits, name):.1f} is needed)"
    return None


def calibrate(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits behind probabilities (N, classes) by a temperature: float64 (N, classes), rows sum to 1.

    Guo et al. 2017. Logarithms of probabilities are logits up to a constant for each photo, which cancels. In numpy
    alone, unlike `evidence.bias_variance.apply_temperature`: a server starts without SciPy.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def coverage_risk(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the coverage-risk curve: thresholds (descending), share answered, share wrong of those answered.

    One point per distinct confidence: photos of equal confidence can only be answered together. El-Yaniv & Wiener 2010.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, bool)
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last_of_its_value = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    answered = last_of_its_value + 1
    wrong = np.cumsum(~correct[order])[last_of_its_value]
    return ranked[last_of_its_value], answered / len(confidence), wrong / answered


def choose_threshold(confidence: np.ndarray, correct: np.ndarray, risk: float = RISK) -> float:
    """Give the lowest confidence at which at most a share `risk` of the answered is wrong, or NEVER."""
    thresholds, _, risks = coverage_risk(confidence, correct)
    allowed = np.flatnonzero(risks <= risk)
    return float(thresholds[allowed[-1]]) if len(allowed) else NEVER


def risk_upper_bound(wrong: int, answered: int, level: float = 0.95) -> float:
    """Give the one-sided upper bound of an error rate (Clopper & Pearson 1934); photos are taken as independent."""
    from scipy.stats import beta

    return 1.0 if wrong >= answered else float(beta.ppf(level, wrong + 1, answered - wrong))


def auroc(scores_of_bad: np.ndarray, scores_of_good: np.ndarray) -> float:
    """Give the probability that a bad photo scores higher than a good one, ties half: Mann & Whitney 1947."""
    good = np.sort(scores_of_good)
    below = np.searchsorted(good, scores_of_bad, "left") + np.searchsorted(good, scores_of_bad, "right")
    return float(below.mean() / 2 / len(good))
