"""The confidence from which on answers are wrong at most at a promised rate, with a bound on bad luck.

A threshold chosen where few validation photos are wrong flatters itself. Here each threshold is a hypothesis, "answers
above it are wrong more often than promised", that has to be rejected.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from carspotter.evidence.intervals import clopper_pearson

DELTA = 0.05  # how often the promise may be broken
COVERAGE = 0.6  # at least this share of photos is answered: the first threshold that is tested


@dataclass(frozen=True)
class Certificate:
    """A confidence threshold and the risk that is certified for answers at or above it.

    `risk` is certified at 1 − DELTA: the one asked for, or the lowest possible. Of `photos`, one a group,
    `answered` (share `coverage`) were answered, `wrong` of these wrongly.
    """

    threshold: float
    risk: float
    coverage: float
    photos: int
    answered: int
    wrong: int
    reason: str


def certify_risk(confidence, correct, groups, risk: float = 0.01, seed: int = 0) -> Certificate:
    """Return the lowest confidence threshold whose answers are wrong at most with probability `risk`.

    `confidence`: float (N,); `correct`: bool (N,); `groups`: (N,), of each of which one photo is drawn with `seed`. The
    photos must have chosen neither epoch, recipe nor temperature: see `models.history.halves`. The promise is broken in
    at most a share DELTA of studies.

    Method: Learn-then-Test, Angelopoulos et al. 2021, by fixed sequence: thresholds are tested by exact binomial tests,
    from that at which `COVERAGE` of the photos are answered (more, where `risk` needs more) downwards, until one is not
    rejected. MAPIE's fixed sequence has larger p-values and no lowest certifiable risk.
    """
    confidence, correct, groups = np.asarray(confidence, float), np.asarray(correct), np.asarray(groups)
    if not len(confidence) == len(correct) == len(groups) > 0 or correct.dtype != bool:
        raise ValueError(
            f"need as many confidences, booleans and groups, found {confidence.shape}, {correct.shape} of "
            f"{correct.dtype}, {groups.shape}"
        )
    if not np.isfinite(confidence).all() or not 0 < risk < 1:
        raise ValueError(f"confidences must be finite numbers, risk ({risk}) between 0 and 1")
    drawn = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(groups[drawn], return_index=True)
    drawn = drawn[first]
    order = drawn[np.argsort(-confidence[drawn], kind="stable")]
    confidence, wrong = confidence[order], np.cumsum(~correct[order])
    photos = len(order)
    # A threshold answers all photos of equal confidence, or none of them.
    ends = np.flatnonzero(np.r_[confidence[1:] != confidence[:-1], True])
    answered = ends + 1
    needed = int(np.ceil(np.log(DELTA) / np.log1p(-risk)))
    fewest = max(np.ceil(COVERAGE * photos), needed if needed <= photos else 0)
    start = int(np.searchsorted(answered, fewest))
    passed = stats.binom.cdf(wrong[ends], answered, risk)[start:] <= DELTA
    if passed[0]:
        last = start + (len(passed) if passed.all() else int(passed.argmin())) - 1
        certified, reason = risk, f"at most {_percent(risk)} of the answers are wrong"
    else:
        last = start
        certified = clopper_pearson(int(wrong[ends[start]]), int(answered[start]), 1 - 2 * DELTA)[1]
        short = f": {needed} without an error are needed" if needed > photos else f", {wrong[ends[start]]} are wrong"
        best = clopper_pearson(0, photos, 1 - 2 * DELTA)[1]
        reason = (
            f"{_percent(risk)} cannot be certified with {photos} photos of as many groups{short}; the lowest that "
            f"{photos} can certify is {_percent(best)}, if all are answered correctly, and here {_percent(certified)}"
        )
    at = ends[last]
    reason += f", with {_percent(1 - DELTA)} confidence; {answered[last]} of {photos} photos were answered, "
    reason += f"{wrong[at]} wrongly"
    coverage, counts = float(answered[last] / photos), (photos, int(answered[last]), int(wrong[at]))
    return Certificate(float(confidence[at]), float(certified), coverage, *counts, reason)


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %"
