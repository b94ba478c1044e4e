"""When the check keeps quiet: calibrated confidence, distance to known photos, image quality, and their thresholds.

A classifier of two cars calls every picture one of the two. Four questions are asked before its answer counts: is there
a picture at all, does it resemble what people rejected, does it resemble what the model learned from, and is the model
sure? Each has a threshold that comes from validation photos and a stated risk.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RISK = 0.01  # of the accepted validation photos, at most this share is named wrongly
GOOD_PASSED = 0.98  # share of validation photos that are not too strange
NEIGHBOURS = 5
REJECTS_NEEDED = 10  # fewer examples than this teach nothing that holds on the next photo
OTHER_MODEL = "other model"  # the kind of rejects that show a car, but none of the classes
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


@dataclass(frozen=True)
class References:
    """Where known photos lie in a model's feature space, and how strange a photo may be.

    `photos` float32 (N, D): unit vectors of training photos; `rejects` float32 (M, D) the same of curated rejects,
    `reject_kinds` (M,) as in "interior" or OTHER_MODEL; `weights` (D + 2,) of the reject score, all zero without enough
    rejects; `scales` (4,): mean and deviation, on validation, of distance and score. Photos stranger than `threshold`
    are turned away.
    """

    photos: np.ndarray
    rejects: np.ndarray
    reject_kinds: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    threshold: float

    @classmethod
    def fit(
        cls, training: np.ndarray, validation: np.ndarray, rejects: np.ndarray, reject_kinds: np.ndarray
    ) -> References:
        """Fit on features (N, D) of training and validation photos and of rejects; rows of `rejects` may be none."""
        training, rejects = unit_rows(training), unit_rows(rejects).reshape(-1, training.shape[1])
        weights = np.zeros(training.shape[1] + 2, np.float32)
        if len(rejects) >= REJECTS_NEEDED:
            # A training photo must not find itself among its neighbours.
            own = nearest_distance(training, training, skip_nearest=True)
            kept = np.column_stack([training, own])
            turned_away = np.column_stack([rejects, nearest_distance(rejects, training)])
            bad = np.r_[np.zeros(len(kept)), np.ones(len(turned_away))]
            weights = fit_logistic(np.concatenate([kept, turned_away]), bad)
        kinds = np.asarray(reject_kinds, dtype=str)
        unscaled = cls(training, rejects, kinds, weights, np.array([0.0, 1.0, 0.0, 1.0]), np.inf)
        distance, score = unscaled._measure(validation)
        # Without rejects all scores are 0, and stay it.
        scales = np.array([distance.mean(), distance.std() or 1.0, score.mean(), score.std() or 1.0])
        scaled = replace(unscaled, scales=scales)
        return replace(scaled, threshold=float(np.quantile(scaled.strangeness(validation), GOOD_PASSED)))

    def strangeness(self, features: np.ndarray) -> np.ndarray:
        """Say how unlike good photos features (N, D) are: (N,), in deviations of validation photos, which average 0.

        The sum of two: the distance to the nearest training photos (Sun et al. 2022), which also meets kinds that
        nobody has seen, and a logistic regression against the curated rejects, which knows what distance misses:
        another model of the same shape.
        """
        distance, score = self._measure(features)
        return (distance - self.scales[0]) / self.scales[1] + (score - self.scales[2]) / self.scales[3]

    def kind_of(self, features: np.ndarray) -> str | None:
        """Give the kind of the rejects nearest to features (1, D); None where they resemble good photos more."""
        if self._measure(features)[1] <= 0:  # the regression's even odds, and where there are no rejects
            return None
        nearest = np.argsort(-(unit_rows(features) @ self.rejects.T)[0])[:NEIGHBOURS]
        kinds, counts = np.unique(self.reject_kinds[nearest], return_counts=True)
        return str(kinds[counts.argmax()])

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path,
            photos=self.photos.astype(np.float16),
            rejects=self.rejects.astype(np.float16),
            reject_kinds=self.reject_kinds,
            weights=self.weights,
            scales=self.scales,
            threshold=self.threshold,
        )

    @classmethod
    def load(cls, path: Path) -> References:
        """Read what `save` wrote; nothing in the file is ever executed."""
        with np.load(path, allow_pickle=False) as stored:
            photos, rejects = (stored[name].astype(np.float32) for name in ("photos", "rejects"))
            return cls(
                photos,
                rejects,
                stored["reject_kinds"],
                stored["weights"],
                stored["scales"],
                float(stored["threshold"]),
            )

    def _measure(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give distance to the training photos and reject score of features (N, D): (N,) each."""
        rows = unit_rows(features)
        distance = nearest_distance(rows, self.photos)
        return distance, np.column_stack([rows, distance, np.ones(len(distance))]) @ self.weights


def reject_auroc(
    training: np.ndarray, validation: np.ndarray, rejects: np.ndarray, kinds: np.ndarray
) -> dict[str, dict[str, float]]:
    """Measure how well rejects are told from validation photos, by kind: {kind: {"seen": …, "unseen": …, "photos": …}}.

    All arguments are features (N, D) but `kinds` (M,). "seen": half of each kind's photos are examples, the other half
    is scored, and the other way round; "unseen": no photo of that kind is an example.
    """
    kinds, half = np.asarray(kinds, dtype=str), np.arange(len(rejects)) % 2

    def score(examples: np.ndarray, judged: np.ndarray) -> float:
        references = References.fit(training, validation, rejects[examples], kinds[examples])
        return auroc(references.strangeness(rejects[judged]), references.strangeness(validation))

    found = {}
    for kind in np.unique(kinds):
        of_kind = kinds == kind
        sides = [of_kind & (half == side) for side in (0, 1)]
        seen = [score(half != side, judged) for side, judged in enumerate(sides) if judged.any()]
        found[str(kind)] = {
            "photos": int(of_kind.sum()),
            "seen": float(np.mean(seen)),
            "unseen": score(~of_kind, of_kind),
        }
    return found


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


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows (N, D) to length 1, float32: how strongly features fire says more about light than about the car."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest_distance(rows: np.ndarray, references: np.ndarray, skip_nearest: bool = False) -> np.ndarray:
    """Give the mean Euclidean distance of unit rows (N, D) to their NEIGHBOURS nearest references (M, D): (N,)."""
    first = int(skip_nearest)
    count = min(NEIGHBOURS, len(references) - first)
    # BLAS wakes all its threads for a single row, and they take the cores from a server's other photos: half its speed.
    similarity = np.einsum("nd,md->nm", rows, references) if len(rows) == 1 else rows @ references.T
    similarity = np.sort(similarity, axis=1)[:, ::-1][:, first : first + count]
    return np.sqrt(np.maximum(2 - 2 * similarity, 0)).mean(axis=1)


def fit_logistic(rows: np.ndarray, bad: np.ndarray, penalty: float = 1e-3) -> np.ndarray:
    """Fit a logistic regression, both classes weighing the same: weights (D + 1,), float32, the constant last."""
    from scipy.optimize import minimize

    centre, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    standard = np.column_stack([(rows - centre) / scale, np.ones(len(rows))]).astype(np.float64)
    sign, weight = np.where(bad, 1.0, -1.0), np.where(bad, 0.5 / bad.sum(), 0.5 / (1 - bad).sum())

    def loss(w):
        margin = sign * (standard @ w)
        slope = -sign * weight / (1 + np.exp(np.minimum(margin, 500)))
        value = (weight * np.logaddexp(0, -margin)).sum() + penalty * (w[:-1] ** 2).sum()
        return value, standard.T @ slope + np.r_[2 * penalty * w[:-1], 0]

    fitted = minimize(loss, np.zeros(standard.shape[1]), jac=True, method="L-BFGS-B").x
    plain = fitted[:-1] / scale
    return np.r_[plain, fitted[-1] - plain @ centre].astype(np.float32)
