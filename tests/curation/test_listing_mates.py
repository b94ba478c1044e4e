"""Which photo of a listing is the odd one."""

import numpy as np
from generated_photos import scene
from PIL import Image

from carspotter.curation.ranking import MATES, median_of_mates, stand_apart
from carspotter.photos.fingerprints import describe_palette


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
    middle, rim = np.swapaxes(np.stack(palettes), 0, 1)
    apart = np.hstack([stand_apart(middle, listings), stand_apart(rim, listings, [np.max])])
    assert apart.shape == (42, 3)
    assert (np.nanargmax(apart, axis=0) == 7).all()
    assert np.isnan(apart[-2:]).all(), "nobody to be compared with"


def test_what_is_like_everything_vouches_for_nobody():
    rng = np.random.default_rng(0)
    cars = rng.normal(size=(6, 20))
    vectors = np.repeat(cars, 6, axis=0) + rng.normal(0, 0.3, (36, 20))
    vectors[8] = 0.2 * rng.normal(size=20) + 3 * cars.sum(axis=0) / np.linalg.norm(cars.sum(axis=0))  # a bit of each
    listings = [f"car {row // 6}" for row in range(36)]
    assert np.argmax(stand_apart(vectors, listings, [np.median])) == 8


def test_a_huge_listing_is_compared_with_some_of_its_photos_only():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3 * MATES, 8)) * 0.1 + 1
    vectors[5] = -1
    asked = []

    def median(likenesses):
        asked.append(len(likenesses))
        return np.median(likenesses)

    apart = stand_apart(vectors, ["one"] * len(vectors), [median])
    assert apart.argmax() == 5 and set(asked) == {2 * MATES}


def test_a_photo_is_measured_by_the_others_of_its_listing():
    values = np.array([1.0, 9.0, 2.0, 4.0, 5.0, 6.0])
    medians = median_of_mates(values, ["car", "car", "car", "pair", "pair", ""])
    np.testing.assert_array_equal(medians, [5.5, 1.5, 5.0, np.nan, np.nan, np.nan])
