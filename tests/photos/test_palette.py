"""Colours of a photo, in its middle and around it."""

import numpy as np
from PIL import Image

from carspotter.photos.fingerprints import COLOURS, describe_palette


def test_a_palette_holds_what_the_middle_has_more_of_and_the_colours_around_it():
    photo = Image.new("RGB", (480, 480), "white")
    photo.paste((200, 20, 20), (140, 160, 340, 280))
    palette = describe_palette(photo)
    assert palette.shape == (2, COLOURS) and palette.dtype == np.uint8
    middle, rim = (palette / 255.0) ** 2
    np.testing.assert_allclose(rim.sum(), 1, atol=0.02)
    assert rim.argmax() != middle.argmax() and middle[rim.argmax()] == 0, "white is no colour of the middle"
    assert 0.45 < middle.max() < 0.7, "10 to 12 of its 18 rows are red"
