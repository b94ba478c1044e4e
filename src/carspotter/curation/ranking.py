"""Which photos look wrong for their label: a ranking by features that needs no marked photo.

Three questions are put to each photo, answered without its own group (its listing and its copies):

1. Do the others' labels agree with its label? A logistic regression out of fold: confident learning (Northcutt 2021).

2. Do its nearest look-alikes carry its label? This finds clusters of one wrong model with mixed labels.

3. How far is it from its class? Mean distance to the nearest photos of the class, whose farthest fifth is left out
(after Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors).

How far it stands apart from its listing, and doubts of models trained on the other photos, count too where known. Then
a classifier learns the worst tenth of that ranking against its better part (self-training); people's verdicts take the
place of such guesses. What one strong sign alone tells goes up all the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.svm import SVC

COMPONENTS = 100  # what 1,280 features hold beyond them is noise to a few thousand photos
FOLDS = 5
NEAREST, LOOK_ALIKES = 10, 15
SUSPECT = 0.8  # the fifth above it holds most of the junk; it does not stand for its class
# About a tenth of listing photos is junk (the original study). Its worst tenth stands in for rejects until there are
# some, and what is better than .7 for keeps.
GUESSED_REJECT, GUESSED_KEEP = 0.9, 0.7
ROUNDS = 2
ONE_SIGN = 4  # the power of ranks by which one high rank outweighs several middling ones
ALONE = 16  # the power at which one high rank is enough, however low the others are
VERDICT_WEIGHT = 2.0  # a person's word against a guess
GUESSES_SAY, EXAMPLES_SAY = 0.5, 0.7  # the classifier's share in the ranking, without rejects by a person and with
ENOUGH_SAYS = 0.5  # the share of each sign that is enough alone
LEARNT_FROM = 5000  # guesses at most: the classifier's work grows faster than their number
STEEPNESS = 3.1  # .8 ** 3.1 = .5: the worst fifth scores a half and more, which is how far a person should look
FEWEST = 30  # photos; with fewer there is no class to be far from
CHUNK = 512  # photos compared with all others at a time: bounds memory
REFERENCES = 2000  # photos at most that a likeness is ranked among: keeps the work in proportion to the photos
MATES = 40  # photos of its listing at most that one is compared with


def rank_photos(features, labels, groups, rejected=None, apart=None, listings=None, doubts=None) -> pd.DataFrame:
    """Return each photo a score, 0 (fine) … 1 (surely bad), and a reason ("another model: …"), empty below .5.

    `features`: float (N, F). `labels`, `groups`: N names each. `rejected`: float (N,), by people: 1 rejected, 0 kept,
    nan otherwise. `apart`: ranks (N, K), 0 … 1 or nan, of how far each stands apart from its listing, the most telling
    first; with `listings` (N names, "" for none) features are compared with the listing too. `doubts` in the label:
    float (N,), 0 … 1. Scores are ranks: the worst fifth has .5 and more; all are 0 below FEWEST photos or FOLDS groups.
    """
    features = np.asarray(features, dtype=np.float32)
    labels, groups = np.asarray(labels, dtype=str), np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    if not np.isfinite(features).all():
        raise ValueError("features hold nan or infinite values; compute them again for all photos")
    rejected = np.full(len(labels), np.nan) if rejected is None else np.asarray(rejected, dtype=float)
    if len(features) < FEWEST or groups.max() + 1 < FOLDS:
        return pd.DataFrame({"score": np.zeros(len(labels)), "reason": [""] * len(labels)})
    evidence = _gather(features, labels, groups, rejected == 1)
    by_labels = [evidence.unlabelled, evidence.neighbours] if len(evidence.classes) > 1 else []
    doubted = [] if doubts is None else [_rank(doubts)]
    parts = [evidence.distance, *by_labels, *doubted]
    apart = np.full((len(labels), 1), np.nan) if apart is None else apart
    if listings is not None:
        apart = np.hstack([apart, stand_apart(evidence.whitened, listings)])
    known_apart = not np.isnan(apart).all()
    blended = first = _rank(np.mean(parts, axis=0))
    if known_apart:
        # One strong sign is enough: what stands apart from its listing may be near its class, and the other way.
        signs = np.column_stack([*parts, np.nan_to_num(apart, nan=0.5)])
        blended = first = _rank((signs**ONE_SIGN).sum(axis=1))
    say = EXAMPLES_SAY if np.nansum(rejected) else GUESSES_SAY
    for _ in range(ROUNDS):
        likeness = _rank(_likeness_to_rejects(evidence.whitened, blended, rejected, evidence.folds))
        blended = _rank((1 - say) * first + say * likeness)
    if known_apart:
        alone = ENOUGH_SAYS * sum(sign**ALONE for sign in (np.nan_to_num(apart[:, 0], nan=0.5), *doubted))
        blended = _rank((1 - say) * first**ALONE + say * likeness**ALONE + alone)
    score = blended**STEEPNESS
    reasons = [""] * len(labels)
    for photo in np.flatnonzero(score >= 0.5):
        signs = (first[photo], likeness[photo], apart[photo].max())
        if doubted and doubted[0][photo] >= np.nanmax(signs):
            doubt = f"models trained on the others doubt that it is {labels[photo]} ({doubts[photo]:.2f})"
            reasons[photo] = f"another model: {doubt}"
        else:
            reasons[photo] = _say_why(photo, labels, evidence, *signs, np.nansum(rejected) > 0)
    return pd.DataFrame({"score": score, "reason": reasons})


@dataclass(frozen=True)
class _Evidence:
    """Answers to the three questions as ranks, 0 (fine) … 1, and what they were found with."""

    distance: np.ndarray
    strangeness: np.ndarray
    unlabelled: np.ndarray
    neighbours: np.ndarray
    probabilities: np.ndarray
    share: np.ndarray
    classes: np.ndarray
    whitened: np.ndarray
    folds: list


def _gather(features, labels, groups, bad) -> _Evidence:
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    components, whitened = _principal_components(unit)
    folds = list(GroupKFold(FOLDS, shuffle=True, random_state=0).split(components, groups=groups))
    distance = _distance_to_class(unit, labels, groups, ~bad)
    probabilities, classes = out_of_fold(components, labels, folds, ~bad)
    own = probabilities[np.arange(len(labels)), np.searchsorted(classes, labels)]
    share = _disagreement(whitened, labels, groups, bad)
    strangeness = _mean_distance(unit, np.arange(len(unit)), np.flatnonzero(~bad & (_rank(distance) < SUSPECT)), groups)
    ranks = map(_rank, (distance, strangeness, 1 - own, share))
    return _Evidence(*ranks, probabilities, share, classes, whitened, folds)


def out_of_fold(features, labels, folds, good) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, classes) by models that saw `good` photos (bool) of other groups, and the classes."""
    classes = np.unique(labels)
    probabilities = np.full((len(labels), len(classes)), 1 / len(classes))
    for train, test in folds:
        train = train[good[train]]
        known = np.unique(labels[train])
        if len(known) > 1:
            model = LogisticRegression(C=0.1, max_iter=300).fit(features[train], labels[train])
            probabilities[np.ix_(test, np.searchsorted(classes, known))] = model.predict_proba(features[test])
    return probabilities, classes


def _principal_components(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return components of total variance 40, which C = .1 goes with, and half-whitened ones of length 1."""
    # exact and in float64: the randomised solver's rounding, and so the scores, would differ with the number of threads
    pca = PCA(min(COMPONENTS, unit.shape[1], len(unit) - 1), svd_solver="covariance_eigh")
    components = pca.fit_transform(unit.astype(np.float64))
    variance = pca.explained_variance_
    whitened = components / np.sqrt(variance + variance.mean() + 1e-12)  # small directions are mostly noise
    whitened /= np.maximum(np.linalg.norm(whitened, axis=1, keepdims=True), 1e-12)
    return components * np.sqrt(40 / max(variance.sum(), 1e-12)), whitened


def _find_nearest(vectors, rows, columns, groups, count) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, chunk by chunk, rows, their nearest columns of other groups, and the similarity (-inf: there is none)."""
    count = min(count, len(columns))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        similarity = vectors[part] @ vectors[columns].T
        similarity[groups[part][:, None] == groups[columns]] = -np.inf
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        yield part, columns[nearest], np.take_along_axis(similarity, nearest, axis=1)


def _distance_to_class(unit, labels, groups, good) -> np.ndarray:
    distance = np.zeros(len(unit))
    trusted = good
    for _ in range(3):
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            standing = rows[trusted[rows]]
            distance[rows] = _mean_distance(unit, rows, standing if len(standing) else rows, groups)
        trusted = good & (_rank(distance) < SUSPECT)
    return distance


def _mean_distance(unit, rows, columns, groups) -> np.ndarray:
    """Return the mean distance of the rows to their nearest columns of other groups; 2, the most, without any."""
    found = [np.empty(0)]
    for _, _, similarity in _find_nearest(unit, rows, columns, groups, NEAREST):
        there = np.isfinite(similarity)
        mean = np.where(there, similarity, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        found.append(1 - np.where(there.any(axis=1), mean, -1))
    return np.concatenate(found)


def _disagreement(whitened, labels, groups, bad) -> np.ndarray:
    """Return the share of look-alikes, near ones counting more, that have another label or were rejected."""
    share = np.zeros(len(labels))
    everyone = np.arange(len(labels))
    for part, nearest, similarity in _find_nearest(whitened, everyone, everyone, groups, LOOK_ALIKES):
        weight = np.exp(5 * (similarity - 1))
        other = (labels[nearest] != labels[part][:, None]) | bad[nearest]
        share[part] = (weight * other).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-12)
    return share


def _likeness_to_rejects(whitened, blended, rejected, folds) -> np.ndarray:
    """Return how far on the rejects' side each photo is, learned out of fold from verdicts, else guesses."""
    reviewed = ~np.isnan(rejected)
    target = np.where(reviewed, rejected, blended > GUESSED_REJECT).astype(bool)
    guessed = np.flatnonzero(~reviewed & ((blended > GUESSED_REJECT) | (blended < GUESSED_KEEP)))
    used = reviewed.copy()
    used[np.random.default_rng(0).permutation(guessed)[:LEARNT_FROM]] = True
    weight = np.where(reviewed, VERDICT_WEIGHT, 1.0)
    side = np.zeros(len(whitened))
    for train, test in folds:
        train = train[used[train]]
        if len(np.unique(target[train])) > 1:
            model = SVC(C=1.0, gamma=1.0, class_weight="balanced")
            model.fit(whitened[train], target[train], weight[train])
            side[test] = model.decision_function(whitened[test])
    return side


def _rank(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0 (lowest) to 1 (highest); equal values share one."""
    return (pd.Series(values).rank().to_numpy() - 1) / max(len(values) - 1, 1)


def _say_why(photo, labels, evidence, first, likeness, apart, known) -> str:
    own, best = labels[photo], evidence.classes[evidence.probabilities[photo].argmax()]
    if likeness > GUESSED_REJECT > first:
        return f"like rejects: looks like what {'people rejected' if known else 'is ranked worst'}"
    doubt = max(evidence.unlabelled[photo], evidence.neighbours[photo]) if len(evidence.classes) > 1 else 0
    if apart > max(doubt, evidence.distance[photo]):
        return "unlike its listing: neither colours nor content are those of the listing's other photos"
    # What looks like no class at all is no other model of them, whatever the labels of its look-alikes.
    if max(evidence.strangeness[photo], evidence.distance[photo]) >= doubt:
        return f"unlike its class: farther from other {own} photos than {evidence.distance[photo]:.0%} of all photos"
    if best != own:
        chance = evidence.probabilities[photo].max()
        return f"another model: the other photos say {best} ({chance:.2f}), the label says {own}"
    return f"label in doubt: {evidence.share[photo]:.0%} of its look-alikes are not listed as {own}"


def stand_apart(
    vectors: np.ndarray,
    listings: Sequence[str],
    summaries: Sequence[Callable[[np.ndarray], float]] = (np.median, np.max),
) -> np.ndarray:
    """Rank photos by how little they are like the other photos of their listing: float (N, summaries), 0 … 1 or nan.

    `vectors` (N, D): likeness is their inner product. `listings` names each photo's listing, "" for none. A column per
    summary of the likenesses: the median is that to a typical photo of the listing, the maximum that to the nearest.
    """
    apart = np.full((len(vectors), len(summaries)), np.nan)
    rng = np.random.default_rng(0)
    references = rng.permutation(len(vectors))[:REFERENCES]
    known = vectors[references].astype(np.float32)
    for rows in _listings_of(2, listings):
        own = vectors[rows].astype(np.float32)
        # A rank among all photos: some things are like everything, and that says nothing.
        among = np.sort(own @ known.T, axis=1)
        alike = own @ own.T
        ranks = np.stack([np.searchsorted(*pair) for pair in zip(among, alike, strict=True)]) / len(references)
        for place, row in enumerate(rows):
            others = np.delete(np.arange(len(rows)), place)
            others = others if len(others) <= MATES else rng.choice(others, MATES, replace=False)
            both = np.concatenate([ranks[place, others], ranks[others, place]])
            apart[row] = [-summary(both) for summary in summaries]
    return pd.DataFrame(apart).rank(pct=True).to_numpy()


def first_listings(listings: Iterable[Sequence[str]]) -> list[str]:
    """Return the first listing of each photo, "" where it has none."""
    return [next(iter(names), "") for names in listings]


def median_of_mates(values: np.ndarray, listings: Sequence[str]) -> np.ndarray:
    """Return, for each of `values` (N,), the median of those of its listing's other photos, nan with fewer than two."""
    medians = np.full(len(values), np.nan)
    for rows in _listings_of(3, listings):
        for place, row in enumerate(rows):
            medians[row] = np.median(values[np.delete(rows, place)])
    return medians


def _listings_of(least: int, listings: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield, for each listing of that many photos or more, the places of its photos."""
    members = pd.Series(np.arange(len(listings))).groupby(np.asarray(listings, dtype=str)).agg(list)
    members = members.drop("", errors="ignore")
    yield from map(np.array, members[members.map(len) >= least])
