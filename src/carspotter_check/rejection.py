"""When the check does not answer: calibrated confidence, distance to known photos, image quality, and their thresholds.

A classifier of two cars calls every picture one of the two. Four questions are asked before its answer counts: is there
a picture at all, does it resemble what people rejected, does it resemble what the model learned from, and is the model
sure? Each has a threshold that comes from validation photos and a stated risk.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from carspotter.models.metrics import apply_temperature as calibrate
from carspotter.models.metrics import softmax

if TYPE_CHECKING:
    import pandas as pd

    from carspotter.evidence.risk import Certificate
    from carspotter.paths import Study

RISK = 0.01  # at most this share of the answers is wrong
TOLERANCE = 1e-6
FLAGGED = 0.06  # of good photos, and of good listings, at least this share is called unlike; with few of them more
UNLUCKY = 0.05  # chance that fewer are
LISTINGS_NEEDED = 20  # with two photos or more, to fit their correlation; from fewer, chance decides


@dataclass(frozen=True)
class Limits:
    """Below these a picture shows nothing: figures of `quality`, and the shorter side of the file in pixels."""

    brightness: float = 12.0
    contrast: float = 8.0
    sharpness: float = 1.5
    shorter_side: int = 48


@dataclass(frozen=True)
class Rejection:
    """The thresholds of one model, and what they promise.

    `temperature` divides the logits; a photo whose calibrated confidence is below `confidence` is not answered. `risk`
    is the share of wrong answers that was asked for, `certified` the one that holds with 95 % confidence; `coverage` is
    the share answered of the `photos` that certify it, one of each group, `wrong` how many were answered wrongly.
    `reason` says it in a sentence.
    """

    temperature: float = 1.0
    confidence: float = 0.0
    risk: float = RISK
    certified: float | None = None
    coverage: float | None = None
    photos: int = 0
    wrong: int = 0
    reason: str = "nothing was certified"
    limits: Limits = Limits()

    @classmethod
    def fit(
        cls,
        probabilities: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        risk: float = RISK,
        answerable: np.ndarray | None = None,
    ) -> Rejection:
        """Fit on validation: temperature on one half of the groups, confidence certified on the other.

        `probabilities` (N, classes), class numbers `labels` (N,), `groups` (N,); `answerable` bool (N,): photos that
        would not be answered whatever the confidence are False.
        """
        from carspotter.evidence.calibration import fit_temperature  # a server needs their results alone
        from carspotter.models.history import halves

        first = halves(groups)
        temperature = fit_temperature(labels[first], probabilities[first]) if first.any() else 1.0
        calibrated = calibrate(probabilities, temperature)
        answerable = np.ones(len(labels), bool) if answerable is None else answerable
        held = ~first & answerable
        found, confidence = _certify(calibrated[held], labels[held], np.asarray(groups)[held], risk)
        coverage = found.coverage * float(answerable[~first].mean())
        return cls(temperature, confidence, risk, found.risk, coverage, found.photos, found.wrong, found.reason)

    def with_limits_of(self, images: np.ndarray, smallest: int) -> Rejection:
        """Fit the quality limits on good images uint8 (N, S, S, 3): three quarters of what 199 of 200 of them have.

        `smallest`: the shorter side of the smallest photo that training saw, in pixels.
        """
        measured = np.array([list(quality(image).values()) for image in images])
        brightness, contrast, sharpness = 0.75 * np.percentile(measured, 0.5, axis=0)
        return replace(self, limits=Limits(float(brightness), float(contrast), float(sharpness), smallest))


@dataclass(frozen=True)
class ListingRule:
    """How the answers to photos of one car are combined, and from which confidence on the verdict counts.

    Photos of one car share its colour, yard and camera, and so their errors: `correlation` is that of two photos' log
    odds, which makes n photos worth n / (1 + (n − 1) correlation) independent ones. A car whose photos are in the mean
    more unlike the known ones than `unlike` is turned away. The rest is as in `Rejection`, but counted in `listings`.
    """

    correlation: float = 0.5
    unlike: float = 0.8
    confidence: float = 0.0
    certified: float | None = None
    coverage: float | None = None
    listings: int = 0
    wrong: int = 0
    reason: str = "too few validation listings have two photos: nothing was fitted"

    @classmethod
    def fit(
        cls,
        probabilities: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray,
        rejection: Rejection,
        answerable: np.ndarray | None = None,
        unlike: np.ndarray | None = None,
    ) -> ListingRule:
        """Fit on validation: correlation and `unlike` on one half of the groups, the confidence certified on the other.

        Arguments as of `Rejection.fit`, whose result is `rejection`; `unlike` (N,): the share of good photos that are
        less unlike each photo's class. A listing is a group's photos of one class.
        """
        from carspotter.models.history import halves

        calibrated = calibrate(probabilities, rejection.temperature)
        first, answerable = halves(groups), np.ones(len(labels), bool) if answerable is None else answerable
        _, listing = np.unique(np.c_[groups.astype(str), labels.astype(str)], axis=0, return_inverse=True)
        cars = [listing == number for number in range(listing.max() + 1)]
        if sum(car.sum() > 1 for car in cars if first[car][0]) < LISTINGS_NEEDED:
            return cls(confidence=rejection.confidence)
        means = np.zeros(len(cars)) if unlike is None else np.array([unlike[car].mean() for car in cars])
        good = means[[first[car][0] for car in cars]]
        limit = float(np.quantile(good, careful_share(len(good))))
        sides: dict[bool, list[tuple[int, np.ndarray]]] = {True: [], False: []}  # label and photos of each listing
        for car, mean in zip(cars, means, strict=True):
            if mean <= limit and (car & answerable).any():
                sides[bool(first[car][0])].append((labels[car][0], calibrated[car & answerable]))

        def loss(correlation: float) -> float:
            return -float(np.mean([np.log(pool(photos, correlation)[label]) for label, photos in sides[True]]))

        correlation = float(min(np.linspace(0, 1, 21), key=loss))
        pooled = np.array([pool(photos, correlation) for _, photos in sides[False]])
        certifying = [label for label, _ in sides[False]]
        found, confidence = _certify(pooled, certifying, np.arange(len(pooled)), rejection.risk)
        reason = found.reason.replace(" photos of as many groups", " listings").replace("photos", "listings")
        answered = found.answered / len(np.unique(listing[~first]))
        return cls(correlation, limit, confidence, found.risk, answered, found.photos, found.wrong, reason)


def _certify(probabilities: np.ndarray, labels, groups: np.ndarray, risk: float) -> tuple[Certificate, float]:
    from carspotter.evidence.risk import certify_risk

    found = certify_risk(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, groups, risk)
    # The photo that sets the threshold must pass it again, whatever the last digit of another machine.
    return found, max(0.0, found.threshold - TOLERANCE)


def careful_share(count: int) -> float:
    """Return the share of `count` good photos that passes, such that at least FLAGGED of all good photos do not.

    This holds but for a chance of UNLUCKY. The fewer photos there are, the lower is the share.
    """
    from scipy.stats import binom

    return float(max(1.0, binom.ppf(UNLUCKY, count, 1 - FLAGGED)) / count)


def digits(probability: float) -> str:
    """Return a probability with two digits, near 1 with up to five: no answer is certain."""
    return f"{probability:.2f}" if probability < 0.995 else f"{min(probability, 0.99999):.5f}".rstrip("0")


def apart(value: float, limit: float, decimals: int) -> tuple[str, str]:
    """Return two numbers as text, with more decimals where they would look the same and are not."""
    while value != limit and f"{value:.{decimals}f}" == f"{limit:.{decimals}f}":
        decimals += 1
    return f"{value:.{decimals}f}", f"{limit:.{decimals}f}"


def read_rule(kind: type, values: dict[str, Any]):
    """Return the `Rejection` or `ListingRule` of a manifest; raises ValueError for an unknown threshold."""
    if unknown := set(values) - {field.name for field in fields(kind)}:
        raise ValueError(f"unknown {', '.join(sorted(unknown))} among the thresholds")
    if "limits" in values:
        values = values | {"limits": read_rule(Limits, values["limits"])}
    return kind(**values)


def pool(probabilities: np.ndarray, correlation: float) -> np.ndarray:
    """Combine calibrated probabilities (N, classes) of photos of one car to those of the car, (classes,)."""
    logs = np.log(np.maximum(probabilities, 1e-6)).mean(axis=0)
    worth = len(probabilities) / (1 + (len(probabilities) - 1) * correlation)
    return softmax(worth * logs)


def read_groups(study: Study, photos: pd.DataFrame) -> np.ndarray:
    """Return the split's group of each of `photos` (column sha256), (N,); one that it no longer has stands alone."""
    from carspotter.photos.splitting import read_splits  # a server needs no tables

    groups = photos.merge(read_splits(study)[["sha256", "group"]], on="sha256", how="left")["group"]
    return groups.replace("", np.nan).fillna(photos["sha256"]).to_numpy()


def quality(image: np.ndarray) -> dict[str, float]:
    """Measure an image uint8 (S, S, 3), in grey levels: brightness (95th percentile), contrast, sharpness.

    The 95th percentile, because a car at night has headlights and a lens cap has none. Contrast is the standard
    deviation, sharpness the standard deviation of the Laplacian (Pech-Pacheco et al. 2000).
    """
    grey = image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    bright = int(0.95 * grey.size)
    return {
        "brightness": float(np.partition(grey, bright, axis=None)[bright]),  # percentile() takes ten times as long
        "contrast": float(grey.std()),
        "sharpness": float(laplacian.std()),
    }


def quality_fault(image: np.ndarray, limits: Limits) -> str | None:
    """Say in words why an image shows nothing, or None where it may show something."""
    measured = quality(image)
    faults = {"brightness": "too dark", "contrast": "almost one single colour", "sharpness": "too blurred"}
    for name, words in faults.items():
        if measured[name] < (limit := getattr(limits, name)):
            return "{} ({} {}, at least {} is needed)".format(words, name, *apart(measured[name], limit, 1))
    return None


def coverage_risk(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coverage-risk curve: thresholds (descending), share answered, share wrong of those answered.

    One point per distinct confidence: photos of equal confidence can only be answered together. El-Yaniv & Wiener 2010.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, bool)
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last_of_its_value = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    answered = last_of_its_value + 1
    wrong = np.cumsum(~correct[order])[last_of_its_value]
    return ranked[last_of_its_value], answered / len(confidence), wrong / answered
