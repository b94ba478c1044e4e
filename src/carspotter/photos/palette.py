"""The colours of a photo, and how far it stands apart from its listing by them.

Photos of one listing show one car at one place. Papers, a cabin, a dashboard or an engine bay bring colours that no
other photo of the listing has, and look most like those of other listings; in the middle another car or an empty street
lacks the paint that the others share. That holds for kinds of junk that nobody has thought of, and without a network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

SIDE = 48  # pixels of the photo whose colours are counted
MIDDLE = slice(10, 38)  # of the rows and columns: where the car is
LEVELS = 6  # of brightness; the two colour axes, red against green and yellow against blue, are finer near grey
REDDISH = (-0.12, -0.05, -0.015, 0.015, 0.05, 0.12, 0.25)
YELLOWISH = (-0.15, -0.06, -0.02, 0.02, 0.06, 0.15, 0.3)
COLOURS = LEVELS * (len(REDDISH) + 1) * (len(YELLOWISH) + 1)
MIDDLE_MEDIAN, MIDDLE_NEAREST, RIM_NEAREST = range(3)  # columns of `stand_apart`
REFERENCES = 2000  # photos at most that a likeness is ranked among: keeps the work in proportion to the photos
MATES = 40  # photos of its listing at most that one is compared with


def describe_palette(photo: Image.Image) -> np.ndarray:
    """Count the colours of an RGB photo in its middle and around it: uint8 (2, COLOURS), roots of shares × 255."""
    pixels = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    red, green, blue = np.moveaxis(pixels, 2, 0)
    colour = np.clip(pixels.mean(axis=2) * LEVELS, 0, LEVELS - 1).astype(int)
    for axis, steps in ((red - green, REDDISH), ((red + green) / 2 - blue, YELLOWISH)):
        colour = colour * (len(steps) + 1) + np.digitize(axis, steps)
    middle = np.zeros((SIDE, SIDE), dtype=bool)
    middle[MIDDLE, MIDDLE] = True
    shares = [np.bincount(colour[part], minlength=COLOURS) / part.sum() for part in (middle, ~middle)]
    return np.round(255 * np.sqrt(shares)).astype(np.uint8)


def stand_apart(palettes: np.ndarray, listings: Sequence[str], seed: int = 0) -> np.ndarray:
    """Rank photos by how little their colours are those of the other photos of their listing: float (N, 3).

    `palettes` as from `describe_palette`, (N, 2, COLOURS); `listings` names each photo's listing, "" for none. The
    columns: the middle against the typical photo of the listing, against the nearest one, and the rim against the
    nearest one. 0 (at home) … 1; nan for a photo without others of its listing.
    """
    count = len(palettes)
    apart = np.full((count, 3), np.nan)
    rng = np.random.default_rng(seed)
    references = rng.permutation(count)[:REFERENCES]
    members = pd.Series(np.arange(count)).groupby(np.asarray(listings, dtype=str)).agg(list).drop("", errors="ignore")
    for part, summaries in (
        (0, {MIDDLE_MEDIAN: np.median, MIDDLE_NEAREST: np.max}),
        (1, {RIM_NEAREST: np.max}),
    ):
        known = palettes[references, part].astype(np.float32)
        for rows in map(np.array, members[members.map(len) > 1]):
            own = palettes[rows, part].astype(np.float32)
            among = np.sort(own @ known.T, axis=1)
            alike = own @ own.T
            ranks = np.stack([np.searchsorted(*pair) for pair in zip(among, alike, strict=True)]) / len(references)
            for place, row in enumerate(rows):
                others = np.delete(np.arange(len(rows)), place)
                others = others if len(others) <= MATES else rng.choice(others, MATES, replace=False)
                both = np.concatenate([ranks[place, others], ranks[others, place]])
                for column, summary in summaries.items():
                    apart[row, column] = -summary(both)
    return pd.DataFrame(apart).rank(pct=True).to_numpy()
