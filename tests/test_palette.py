"""Colours of a photo, in its middle and around it."""

import numpy as np
from PIL import Image

from carspotter.photos.palette import COLOURS, describe_palette


def test_a_palette_holds_the_shares_of_colours_in_the_middle_and_around_it():
    photo = Image.new("RGB", (200, 100), "white")
    photo.paste((200, 20, 20), (60, 30, 140, 70))
    palette = describe_palette(photo)
    assert palette.shape == (2, COLOURS) and palette.dtype == np.uint8
    np.testing.assert_allclose(((palette / 255.0) ** 2).sum(axis=1), 1, atol=0.02)
    middle, rim = palette
    assert np.count_nonzero(rim) == 1, "white alone"
    assert np.count_nonzero(middle) >= 2, "white and red"
