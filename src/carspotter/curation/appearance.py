"""Features that need no weights: the outlines in a photo and its colours by place.

Histograms of oriented gradients (Dalal & Triggs 2005) on an 8 × 8 grid, and mean and spread of each colour on a 4 × 4
one. A ranking by them finds less than one by MobileNetV2.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from carspotter.models.transfer import cached_features, extract_features, hash_file
from carspotter.photos.fingerprints import readable_photos
from carspotter.photos.images import PREPROCESSING, load_images
from carspotter.progress import progress_bar

SIDE, CELLS, BINS, COLOUR_CELLS = 96, 8, 9, 4


def describe_images(images: np.ndarray, show_progress: bool = True) -> np.ndarray:
    """Return features float32 (N, 672) of images uint8 (N, S, S, 3), each scaled over these photos."""
    features = np.empty((len(images), CELLS * CELLS * BINS + COLOUR_CELLS**2 * 6), np.float32)
    with progress_bar(len(images), "features", "photos", show_progress) as progress:
        for number, image in enumerate(images):
            small = Image.fromarray(np.asarray(image)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pixels = np.asarray(small, dtype=np.float32)
            features[number] = np.concatenate([_outlines(pixels.mean(axis=2)), _colours(pixels)])
            progress.update()
    # Every feature gets the same scale, so that neither part outweighs the other; one that never varies stays 0.
    features -= features.mean(axis=0)
    features /= features.std(axis=0) + 1e-3
    return features


def describe_photos(
    data: Path, photos: pd.DataFrame, weights: Path | None = None, show_progress: bool = True
) -> pd.DataFrame:
    """Return features of the readable `photos`, by sha256: MobileNetV2's if `weights` are given, else outlines'."""
    photos, size = readable_photos(data, photos, show_progress), 224 if weights else SIDE

    def describe() -> np.ndarray:
        images = load_images(data, photos, size, show_progress)
        if weights:
            return extract_features(images, weights, show_progress=show_progress)
        return describe_images(images, show_progress)

    names = photos["sha256"].tolist()
    key = f"{PREPROCESSING} {size} {hash_file(weights) if weights else 'appearance'}"
    return pd.DataFrame(cached_features(data / "images", key, names, describe), index=names)


def _outlines(grey: np.ndarray) -> np.ndarray:
    """Return the square root of each cell's share of gradient by orientation."""
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    position = np.arctan2(down, right) % np.pi / np.pi * BINS
    low = np.floor(position).astype(int)
    upper = position - low
    step = SIDE // CELLS
    cell = np.arange(SIDE) // step
    cell = (cell[:, None] * CELLS + cell) * BINS
    count = CELLS * CELLS * BINS
    histogram = np.bincount((cell + low % BINS).ravel(), (strength * (1 - upper)).ravel(), count)
    histogram += np.bincount((cell + (low + 1) % BINS).ravel(), (strength * upper).ravel(), count)
    histogram = histogram.reshape(-1, BINS)
    # A cell without outlines (sky, a door) would otherwise be all noise.
    quiet = 0.5 * histogram.mean() + 1e-6
    return np.sqrt(histogram / (np.linalg.norm(histogram, axis=1, keepdims=True) + quiet)).ravel()


def _colours(pixels: np.ndarray) -> np.ndarray:
    step = SIDE // COLOUR_CELLS
    cells = pixels.reshape(COLOUR_CELLS, step, COLOUR_CELLS, step, 3) / 255
    return np.concatenate([cells.mean(axis=(1, 3)).ravel(), cells.std(axis=(1, 3)).ravel()])
