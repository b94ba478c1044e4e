"""What one car looks like beyond its shape: paint, dirt, rims, and a number plate that nobody has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .bodies import PLATE
from .shapes import Shape

PAINTS = (  # linear RGB, metallic, how often
    ((0.76, 0.76, 0.75), 0.0, 30),
    ((0.42, 0.43, 0.44), 1.0, 22),
    ((0.16, 0.165, 0.17), 0.9, 13),
    ((0.50, 0.02, 0.02), 0.2, 10),
    ((0.035, 0.075, 0.30), 0.6, 8),
    ((0.012, 0.012, 0.014), 0.3, 5),
    ((0.30, 0.22, 0.15), 0.8, 5),
    ((0.60, 0.16, 0.02), 0.5, 4),
    ((0.10, 0.03, 0.03), 0.6, 4),
    ((0.03, 0.16, 0.20), 0.6, 3),
    ((0.55, 0.50, 0.36), 0.4, 3),
)


@dataclass(frozen=True)
class Look:
    """Linear paint colour, 0..1 metallic, dirt and rim brightness."""

    paint: tuple[float, float, float]
    metallic: float
    dirt: float
    rim: float
    black_roof: bool
    plate: np.ndarray | None  # bool, True where there is ink; None for the plain white of a covered plate


def draw_look(rng: np.random.Generator, shape: Shape) -> Look:
    """Draw paint, dirt, rims and plate; the same distribution for every model, so that colour tells nothing."""
    weights = np.array([weight for _, _, weight in PAINTS], float)
    paint, metallic, _ = PAINTS[rng.choice(len(PAINTS), p=weights / weights.sum())]
    varied = np.clip(np.array(paint) * rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3), 0.005, 0.82)
    black_roof, covered = rng.random() < 0.06, rng.random() < 0.3
    plate = None if covered else _plate_ink(rng)
    dirt, rim = float(rng.beta(1.2, 3.5)), float(rng.choice([0.35, 0.7, 1.0, 1.15]))
    return Look(tuple(varied), metallic, dirt, rim, black_roof, plate)


@cache
def _glyph(letter: str) -> np.ndarray:
    image = Image.new("L", (17, 30), 0)
    ImageDraw.Draw(image).text((8, 15), letter, fill=255, font=ImageFont.load_default(26), anchor="mm")
    return np.asarray(image) > 110


def _plate_ink(rng: np.random.Generator) -> np.ndarray:
    """Return an invented number plate as bool of `PLATE`: True where there is ink. No real number is meant."""
    letters, digits = list("ABCDEFGHJKLMNPRSTUVWXYZ"), list("0123456789")
    text = *rng.choice(letters, 2), *rng.choice(digits, 2), rng.choice(letters), *rng.choice(digits, 4)
    ink = np.zeros(PLATE, bool)
    ink[[0, 1, -2, -1], :] = True
    for place, letter in enumerate(text):
        left = 3 + place * 17
        ink[3:33, left : left + 17] |= _glyph(letter)
    return ink
