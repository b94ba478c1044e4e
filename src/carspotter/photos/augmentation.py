"""Draw one affine and one colour change per photo, in numpy, for all frameworks.

Keras, PyTorch and TensorFlow apply the same matrices, so that one seed gives the same augmented photos in all three.
"""

from dataclasses import dataclass

import numpy as np

# ITU-R BT.601 luma: what "grey" means when saturation changes.
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class AugmentationRanges:
    """How far a photo may be changed; the defaults are those of the original study."""

    rotation: float = 40.0  # ± degrees
    shift: float = 0.2  # ± share of the side, each axis on its own
    shear: float = 0.2  # ± degrees: Keras' ImageDataGenerator reads the original's .2 as degrees
    zoom: tuple[float, float] = (0.8, 1.2)  # each axis on its own; below 1 magnifies
    flip: float = 0.5  # probability of a horizontal mirror image
    brightness: float = 0.0  # ± share of white added
    contrast: float = 0.0  # ± share, about middle grey
    saturation: float = 0.0  # ± share, about the pixel's own grey

    @property
    def colours(self) -> bool:
        """Whether colours change at all."""
        return bool(self.brightness or self.contrast or self.saturation)


# "mild": cars stand upright and fill the photo; their paint and the light tell nothing about the model.
RANGES = {
    "original": AugmentationRanges(),
    "mild": AugmentationRanges(rotation=15, shift=0.1, brightness=0.1, contrast=0.2, saturation=0.3),
}


def draw_affine(
    rng: np.random.Generator, count: int, size: int, ranges: AugmentationRanges = RANGES["original"]
) -> np.ndarray:
    """Draw one geometric change per photo: float64 (count, 3, 3), output pixel (x, y, 1) -> input pixel.

    Pixel centres lie at 0 … size - 1, x to the right and y down; the change turns about the centre. Order as in Keras'
    ImageDataGenerator: rotation · shift · shear · zoom, then the mirror image.
    """
    # One row of draws per photo: the first n photos are the same whatever the batch size.
    draws = rng.random((count, 7))
    angle = np.deg2rad(ranges.rotation) * (2 * draws[:, 0] - 1)
    shift_x, shift_y = (ranges.shift * size * (2 * draws[:, k] - 1) for k in (1, 2))
    shear = np.deg2rad(ranges.shear) * (2 * draws[:, 3] - 1)
    low, high = ranges.zoom
    zoom_x, zoom_y = (low + (high - low) * draws[:, k] for k in (4, 5))
    mirror = np.where(draws[:, 6] < ranges.flip, -1.0, 1.0)

    rotation = _matrices([np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0])
    shifting = _matrices([1, 0, shift_x], [0, 1, shift_y])
    shearing = _matrices([1, -np.sin(shear), 0], [0, np.cos(shear), 0])
    zooming = _matrices([zoom_x * mirror, 0, 0], [0, zoom_y, 0])
    to_centre, back = (_matrices([1, 0, offset], [0, 1, offset]) for offset in (-(size - 1) / 2, (size - 1) / 2))
    return back @ rotation @ shifting @ shearing @ zooming @ to_centre


def draw_colours(rng: np.random.Generator, count: int, ranges: AugmentationRanges) -> np.ndarray:
    """Draw one colour change per photo: float64 (count, 3, 4), to multiply with (R, G, B, 1), values 0 … 1."""
    draws = 2 * rng.random((count, 3)) - 1
    saturation = 1 + ranges.saturation * draws[:, 0, None, None]
    contrast = 1 + ranges.contrast * draws[:, 1, None, None]
    brightness = ranges.brightness * draws[:, 2, None, None]
    grey = np.broadcast_to(LUMA, (3, 3))
    linear = contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = np.broadcast_to(0.5 * (1 - contrast) + brightness, (count, 3, 1))
    return np.concatenate([linear, offset], axis=2)


def warp_images(images: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Apply `draw_affine` matrices (N, 3, 3) to images (N, S, S, 3), bilinear, as float32; for figures and tests."""
    from scipy import ndimage  # noqa: PLC0415 - a figure needs it, training does not

    warped = np.empty(images.shape, np.float32)
    order = [1, 0, 2]  # SciPy's first axis is y
    for number, matrix in enumerate(matrices[:, order][:, :, order]):
        for channel in range(3):
            pixels = images[number, :, :, channel].astype(np.float64)
            warped[number, :, :, channel] = ndimage.affine_transform(pixels, matrix, order=1, mode="nearest")
    return warped


def _matrices(first: list, second: list) -> np.ndarray:
    """Stack matrices (N, 3, 3) of these rows, whose entries are numbers or (N,), and the row 0 0 1."""
    return np.stack(np.broadcast_arrays(*first, *second, 0.0, 0.0, 1.0), axis=-1).reshape(-1, 3, 3)
