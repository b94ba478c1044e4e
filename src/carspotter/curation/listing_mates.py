"""Which photo of a listing is the odd one? How little each is like the others of its listing, ranked among all photos.

The photos of a listing show one car in one place. A picture of another car, of a street or of a paper is less like its
mates than they are like each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

REFERENCES = 2000  # photos at most that a likeness is ranked among: keeps the work in proportion to the photos
MATES = 40  # photos of its listing at most that one is compared with


def stand_apart(
    vectors: np.ndarray,
    listings: Sequence[str],
    summaries: Sequence[Callable[[np.ndarray], float]] = (np.median, np.max),
    seed: int = 0,
) -> np.ndarray:
    """Rank photos by how little they are like the other photos of their listing: float (N, summaries).

    `vectors` (N, D): likeness is their inner product. `listings` names each photo's listing, "" for none. A column per
    summary of the likenesses: the median is that to the typical photo of the listing, the maximum that to the nearest.
    0 (at home) … 1; nan for a photo without others of its listing.
    """
    apart = np.full((len(vectors), len(summaries)), np.nan)
    rng = np.random.default_rng(seed)
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
    """Return the first listing of each photo, "" where it has none; `listings` as in `read_photos`."""
    return [next(iter(names), "") for names in listings]


def median_of_mates(values: np.ndarray, listings: Sequence[str]) -> np.ndarray:
    """Give, for each of `values` (N,), the median of those of its listing's other photos: float (N,).

    `listings` as in `stand_apart`. nan for a photo with fewer than two others: one is no measure.
    """
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
