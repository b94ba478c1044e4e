"""Describe each photo in 5 kB: a small grey copy, its colours, brightness and sharpness.

Photos of one listing show one car at one place, so their colours agree; papers or a cabin bring other colours. Colours
that the middle of a photo has more of than its surroundings are mostly paint.
"""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from carspotter.photos.decoding import UnreadablePhoto, decode
from carspotter.photos.images import in_threads
from carspotter.photos.journal import hold

SIDE = 64  # pixels of the grey copy
PALETTE_SIDE = 48  # pixels of the photo whose colours are counted
MIDDLE = slice(16, 34), slice(14, 34)  # its rows and columns: where the car is, with little around it
LEVELS = 6  # of brightness; the two colour axes, red against green and yellow against blue, are finer near grey
REDDISH = (-0.12, -0.05, -0.015, 0.015, 0.05, 0.12, 0.25)
YELLOWISH = (-0.15, -0.06, -0.02, 0.02, 0.06, 0.15, 0.3)
COLOURS = LEVELS * (len(REDDISH) + 1) * (len(YELLOWISH) + 1)
VERSION = 4  # raise when a fingerprint changes: it names the cache file
FINGERPRINT = np.dtype(
    [
        ("sha256", "S64"),
        ("grey", "u1", (SIDE, SIDE)),
        ("palette", "u1", (2, COLOURS)),
        ("brightness", "f4"),
        ("contrast", "f4"),
        ("sharpness", "f4"),
    ]
)


def describe_palette(photo: Image.Image) -> np.ndarray:
    """Count the colours of an RGB photo: uint8 (2, COLOURS), roots of shares × 255.

    First how much more of each the middle has than the surroundings (at least 0), then the surroundings.
    """
    pixels = np.asarray(photo.resize((PALETTE_SIDE, PALETTE_SIDE), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    red, green, blue = np.moveaxis(pixels, 2, 0)
    colour = np.clip(pixels.mean(axis=2) * LEVELS, 0, LEVELS - 1).astype(int)
    for axis, steps in ((red - green, REDDISH), ((red + green) / 2 - blue, YELLOWISH)):
        colour = colour * (len(steps) + 1) + np.digitize(axis, steps)
    inside = np.zeros((PALETTE_SIDE, PALETTE_SIDE), dtype=bool)
    inside[MIDDLE] = True
    middle, around = (np.bincount(colour[part], minlength=COLOURS) / part.sum() for part in (inside, ~inside))
    return np.round(255 * np.sqrt([np.maximum(middle - around, 0), around])).astype(np.uint8)


def measure_photos(data: Path, photos: pd.DataFrame, show_progress: bool = True) -> tuple[np.ndarray, dict[str, str]]:
    """Fingerprint the photos (columns sha256, path), reusing the cache `data/fingerprints-*.bin`.

    Returns an array of FINGERPRINT in the order of `photos` less the unreadable ones, and {sha256: reason} for those.
    brightness and contrast are mean and standard deviation of grey, 0 … 255.
    """
    data, unreadable = Path(data), {}
    cache = data / f"fingerprints-{VERSION}.bin"
    # A second process that curates the same photos waits, and finds them done.
    with hold(data / ".fingerprints.lock"), open(cache, "ab") as new:
        known = _read_cache(cache)
        new.truncate(len(known) * FINGERPRINT.itemsize)  # a record torn by a kill
        have = {sha256.decode() for sha256 in known["sha256"]}
        jobs = [job for job in zip(photos["sha256"], photos["path"], strict=True) if job[0] not in have]
        results = in_threads(partial(_measure, data), jobs, "look at photos", "photos", show_progress)
        for (sha256, _), result in zip(jobs, results, strict=True):
            if isinstance(result, str):
                unreadable[sha256] = result
            else:
                new.write(result.tobytes())
    known = _read_cache(cache)
    row_of = {sha256.decode(): row for row, sha256 in enumerate(known["sha256"])}
    return known[[row_of[sha256] for sha256 in photos["sha256"] if sha256 not in unreadable]], unreadable


def readable_photos(data: Path, photos: pd.DataFrame, show_progress: bool = True) -> pd.DataFrame:
    """Return those of the photos that can be decoded, sorted by sha256."""
    photos = photos.sort_values("sha256", ignore_index=True)
    _, unreadable = measure_photos(data, photos, show_progress)
    return photos[~photos["sha256"].isin(unreadable)].reset_index(drop=True)


def _measure(data: Path, job: tuple[str, str]) -> np.ndarray | str:
    """Fingerprint one photo (sha256, path), or return why it cannot be read.

    sharpness: the 98th percentile of the Laplacian of grey at 128 × 128 over the spread of grey; below .8 out of focus.
    """
    sha256, path = job
    content = (data / path).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        return "the bytes on disk are no longer those that were collected"
    try:
        photo, _ = decode(content, at_least=2 * SIDE, verify=False)  # verified when it was collected
    except UnreadablePhoto as error:
        return error.reason
    grey = photo.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(grey.reduce(2), dtype=np.float32)  # noise is averaged away, which would pass for detail
    middle = pixels[1:-1, 1:-1]
    laplacian = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:] - 4 * middle
    sharpness = np.percentile(np.abs(laplacian), 98) / (pixels.std() + 1)
    measured = (sha256, np.asarray(grey.reduce(4)), describe_palette(photo), pixels.mean(), pixels.std(), sharpness)
    return np.array(measured, dtype=FINGERPRINT)


def _read_cache(cache: Path) -> np.ndarray:
    """Map the cached fingerprints; a record torn by a kill is left out."""
    count = cache.stat().st_size // FINGERPRINT.itemsize
    return np.memmap(cache, FINGERPRINT, "r", shape=count) if count else np.empty(0, dtype=FINGERPRINT)
