"""The colours of a photo: by them it stands apart from its listing, see `listing_mates`.

Photos of one listing show one car at one place. Papers, a cabin, a dashboard or an engine bay bring colours that no
other photo of the listing has, and look most like those of other listings. What the middle has and the surroundings
have not is mostly paint: another car or an empty street lacks the one that the others share. That holds for kinds of
junk that nobody has thought of, and without a network.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 48  # pixels of the photo whose colours are counted
MIDDLE = slice(16, 34), slice(14, 34)  # its rows and columns: where the car is, with little around it
LEVELS = 6  # of brightness; the two colour axes, red against green and yellow against blue, are finer near grey
REDDISH = (-0.12, -0.05, -0.015, 0.015, 0.05, 0.12, 0.25)
YELLOWISH = (-0.15, -0.06, -0.02, 0.02, 0.06, 0.15, 0.3)
COLOURS = LEVELS * (len(REDDISH) + 1) * (len(YELLOWISH) + 1)


def describe_palette(photo: Image.Image) -> np.ndarray:
    """Count the colours of an RGB photo: uint8 (2, COLOURS), roots of shares × 255.

    First by how much more of each there is in the middle than around it, 0 where there is less; then around it.
    """
    pixels = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    red, green, blue = np.moveaxis(pixels, 2, 0)
    colour = np.clip(pixels.mean(axis=2) * LEVELS, 0, LEVELS - 1).astype(int)
    for axis, steps in ((red - green, REDDISH), ((red + green) / 2 - blue, YELLOWISH)):
        colour = colour * (len(steps) + 1) + np.digitize(axis, steps)
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[MIDDLE] = True
    middle, around = (np.bincount(colour[part], minlength=COLOURS) / part.sum() for part in (inside, ~inside))
    return np.round(255 * np.sqrt([np.maximum(middle - around, 0), around])).astype(np.uint8)
