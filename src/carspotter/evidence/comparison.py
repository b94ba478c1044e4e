"""Compare two recipes or anybody's predictions, with one of three verdicts.

*different*: the interval at 1 − .05/m excludes zero, where m, the comparisons of a table, is fixed beforehand. *equal*:
not different, and the 90 % interval lies inside ± 3 points, with five seeds. *undetermined*: neither. A claim needs
three seeds at least.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from carspotter.evidence.intervals import Interval, accuracy_interval, as_shares, paired_difference

MARGIN = 0.03  # smaller differences count as none
SEEDS_FOR_A_CLAIM, SEEDS_FOR_EQUALITY = 3, 5


@dataclass(frozen=True)
class Comparison:
    """Two recipes or models on the same photos: accuracies, difference (B − A), wins and losses, p, verdict.

    `difference` is at level 1 − .05/m. `wins`: photos that B alone classifies correctly, `losses`: A alone (means over
    seeds). `reason` explains the verdict in a sentence.
    """

    name_a: str
    name_b: str
    a: Interval
    b: Interval
    difference: Interval
    wins: float
    losses: float
    p: float
    comparisons: int
    verdict: str
    reason: str

    @property
    def row(self) -> dict[str, str]:
        """Return the comparison as a row of a table of text."""
        points = self.difference
        return {
            "comparison": f"{self.name_b} − {self.name_a}",
            "seeds": str(points.seeds),
            f"points [{_percent(points.level)}]": points.in_points,
            "wins / losses": f"{self.wins:.4g} / {self.losses:.4g}",
            "p": f"{self.p:.3f}" if self.p >= 0.001 else "< .001",
            "verdict": self.verdict,
        }

    def __repr__(self) -> str:
        photos, level = self.difference.photos, _percent(self.difference.level)
        return "\n".join(
            [
                f"{self.name_a} {self.a}, {self.name_b} {self.b} ({photos} photos, {self.difference.groups} groups)",
                f"{self.name_b} − {self.name_a}: {self.difference.in_points} points at {level}, p = {self.p:.3g}, "
                f"{self.wins:.4g} photos won and {self.losses:.4g} lost",
                f"{self.verdict}: {self.reason}",
            ]
        )


def compare(y, a, b, groups=None, comparisons: int = 1, names=("A", "B")) -> Comparison:
    """Compare two models' predictions on the same photos.

    `y`: labels (N,). `a`, `b`: predicted labels (N,), (seeds, N) or (seeds, epochs, N). `groups`: (N,); without them
    each photo stands alone. `comparisons`: m.
    """
    y = np.asarray(y)
    if y.ndim != 1 or len(y) == 0 or pd.isna(y).any():
        raise ValueError(f"y has shape {y.shape}; give one label per photo, none of them missing")
    correct_a, correct_b = (_correct(y, np.asarray(side), name) for side, name in zip((a, b), names, strict=True))
    groups = np.arange(len(y)) if groups is None else groups
    level = 1 - 0.05 / comparisons
    difference, p = paired_difference(correct_a, correct_b, groups, level)
    within, _ = paired_difference(correct_a, correct_b, groups, 0.9)
    gained = as_shares(correct_b, names[1]) - as_shares(correct_a, names[0])
    verdict, reason = judge(difference, within, difference.seeds)
    return Comparison(
        name_a=names[0],
        name_b=names[1],
        a=accuracy_interval(correct_a, groups),
        b=accuracy_interval(correct_b, groups),
        difference=difference,
        wins=float(np.maximum(gained, 0).sum() / len(gained)),
        losses=float(np.maximum(-gained, 0).sum() / len(gained)),
        p=p,
        comparisons=comparisons,
        verdict=verdict,
        reason=reason,
    )


def judge(difference: Interval, within: Interval, seeds: int) -> tuple[str, str]:
    """Return the verdict and the sentence that gives its reason; `within` is the 90 % interval, for equality.

    Equality is by two one-sided tests, Schuirmann 1987. The number of photos assumes that the difference stays.
    """
    points, zero = f"± {MARGIN * 100:g} points", f"the {_percent(difference.level)} interval excludes zero"
    differs = difference.low > 0 or difference.high < 0
    near = not differs and max(-within.low, within.high) < MARGIN
    needs = SEEDS_FOR_EQUALITY if near else SEEDS_FOR_A_CLAIM
    if (differs or near) and seeds >= needs:
        return ("different", zero) if differs else ("equal", f"the 90 % interval lies inside {points}")
    if differs or near:
        what = zero if differs else f"the 90 % interval lies inside {points}"
        return "undetermined", f"{what}, but that takes {needs} seeds; there {'is' if seeds == 1 else 'are'} {seeds}"
    ways = {
        "to show a difference of this size": photos_needed(difference, abs(difference.estimate)),
        "to show equality": photos_needed(within, MARGIN - abs(difference.estimate)),
    }
    way = min(ways, key=ways.__getitem__)
    if np.isinf(ways[way]):
        return "undetermined", f"the seeds spread too much for any number of photos; more than {seeds} are needed"
    needs = SEEDS_FOR_EQUALITY if "equality" in way else SEEDS_FOR_A_CLAIM
    more = max(1, int(ways[way]) - difference.photos)
    and_seeds = f", and {needs} seeds instead of {seeds}," if seeds < needs else ""
    return "undetermined", f"about {more:,} more validation photos{and_seeds} would be needed {way}"


def photos_needed(measured: Interval, difference: float) -> float:
    """Return how many photos in all would show a `difference` (.02 is two points), from an interval measured before.

    The chance that the interval then excludes zero, with as many seeds, is even. Inf where the seeds spread too much.
    """
    reach = (measured.high - measured.low) / 2
    room = difference**2 - reach**2 * measured.seed_share if difference > 0 else 0.0
    return float(np.ceil(measured.photos * reach**2 * (1 - measured.seed_share) / room)) if room > 0 else np.inf


def comparison_table(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row of text per comparison. Raises ValueError where the m they were made with is not their number."""
    for comparison in comparisons:
        if comparison.comparisons != len(comparisons):
            raise ValueError(
                f"a table of {len(comparisons)} comparisons needs comparisons={len(comparisons)} in each, "
                f"{comparison.name_b} − {comparison.name_a} has {comparison.comparisons}"
            )
    return pd.DataFrame([comparison.row for comparison in comparisons])


def _correct(y: np.ndarray, predicted: np.ndarray, name: str) -> np.ndarray:
    """Return whether each prediction is the label: bool (seeds, N), float where there is an axis of epochs."""
    if predicted.ndim not in (1, 2, 3) or predicted.shape[-1:] != y.shape:
        raise ValueError(f"{name} has shape {predicted.shape}, but there are {len(y)} labels; give the same photos")
    if pd.isna(predicted).any():
        raise ValueError(f"{name} has {pd.isna(predicted).sum()} missing predictions; every photo needs one")
    if (predicted.dtype.kind == "b") != (y.dtype.kind == "b") or not np.isin(predicted, y).any():
        raise ValueError(
            f"{name} predicts {predicted.ravel()[0]!r} where labels are like {y[0]!r}; give predicted labels, not "
            f"class numbers nor whether they are correct"
        )
    correct = predicted == y
    return correct.mean(axis=1) if correct.ndim == 3 else np.atleast_2d(correct)


def _percent(level: float) -> str:
    return f"{level * 100:.4g} %"
