"""Colours of a photo, and who stands apart from its listing by them."""

import numpy as np
from generated_photos import scene
from PIL import Image

from carspotter.photos.palette import COLOURS, describe_palette, stand_apart


def test_a_palette_holds_the_shares_of_colours_in_the_middle_and_around_it():
    photo = Image.new("RGB", (200, 100), "white")
    photo.paste((200, 20, 20), (60, 30, 140, 70))
    palette = describe_palette(photo)
    assert palette.shape == (2, COLOURS) and palette.dtype == np.uint8
    np.testing.assert_allclose(((palette / 255.0) ** 2).sum(axis=1), 1, atol=0.02)
    middle, rim = palette
    assert np.count_nonzero(rim) == 1, "white alone"
    assert np.count_nonzero(middle) >= 2, "white and red"


def test_the_odd_photo_of_a_listing_stands_apart_most():
    rng = np.random.default_rng(0)
    palettes, listings = [], []
    for listing in range(8):
        wall, paint = (tuple(int(level) for level in rng.integers(30, 225, 3)) for _ in range(2))
        for _ in range(5):
            photo = Image.new("RGB", (160, 120), wall)
            left, top = rng.integers(25, 55), rng.integers(20, 40)
            photo.paste(paint, (left, top, left + 80, top + 50))
            palettes.append(describe_palette(photo))
            listings.append(f"car {listing}")
    palettes[7] = describe_palette(Image.new("RGB", (160, 120), (250, 250, 245)))  # a paper among photos of a car
    palettes += [describe_palette(scene(1)), describe_palette(scene(2))]
    listings += ["", "alone"]
    apart = stand_apart(np.stack(palettes), listings)
    assert apart.shape == (42, 3)
    assert (np.nanargmax(apart, axis=0) == 7).all()
    assert np.isnan(apart[-2:]).all(), "nobody to be compared with"
