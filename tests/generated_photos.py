"""Photos made up for tests: scenes with structure at every scale, no two seeds alike."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from carspotter.paths import Study
from carspotter.photos.importing import import_folder
from carspotter.photos.table import read_photos


def scene(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draw ground, sky and some forty overlapping shapes, with a little noise; the same seed gives the same picture."""
    chance = random.Random(seed)
    width, height = size
    image = Image.new("RGB", size, tuple(chance.randint(90, 200) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    horizon = round(height * chance.uniform(0.3, 0.7))
    draw.rectangle((0, horizon, width, height), fill=tuple(chance.randint(40, 160) for _ in range(3)))
    for _ in range(40):
        x, y = chance.uniform(-0.1, 1) * width, chance.uniform(-0.1, 1) * height
        box = (x, y, x + chance.uniform(0.05, 0.35) * width, y + chance.uniform(0.05, 0.35) * height)
        paint = chance.choice((draw.ellipse, draw.rectangle))
        paint(box, fill=tuple(chance.randint(0, 255) for _ in range(3)))
    image = image.filter(ImageFilter.GaussianBlur(1))
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, image_format: str = "JPEG", **options) -> bytes:
    """Return the bytes of a picture in a file format."""
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def noise_study(folder: Path, count: int = 40, size: tuple[int, int] = (90, 70)) -> Study:
    """Import noise of two classes, one brighter than the other, as any folder is; every fourth is for validation.

    The study "toy" in `folder`, which may be CARSPOTTER_HOME.
    """
    rng = np.random.default_rng(0)
    width, height = size
    for number in range(count):
        path = folder / "photos" / ("dark", "bright")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (height, width, 3), dtype=np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(pixels).save(path)
    study = Study("toy", folder / "data", folder / "results")
    import_folder(study.data, folder / "photos", show_progress=False)
    photos = read_photos(study.data).sort_values(["label", "sha256"])
    splits = pd.DataFrame({"sha256": photos["sha256"], "label": photos["label"], "group": photos["sha256"]})
    splits["split"] = ["validation" if number % 4 == 3 else "train" for number in range(len(splits))]
    study.folder.mkdir(parents=True)
    splits.to_csv(study.splits, index=False)
    return study


def published_photos(per_class: dict[str, int]) -> dict[str, bytes]:
    """Return file name -> bytes of a small data set in Kaggle's published layout; every photo shows something else.

    `per_class`: part (train, validation, test) -> photos of each class.
    """
    seeds = iter(range(1000))
    return {
        f"data/{part}/{label}/{number}.jpg": encode(scene(next(seeds), (200, 150)))
        for part, count in per_class.items()
        for label in ("swift", "wagonr")
        for number in range(count)
    }
