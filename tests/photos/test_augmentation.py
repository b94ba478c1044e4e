"""The augmentation draws: ranges, geometry against Keras' definitions, determinism."""

from dataclasses import replace

import numpy as np
import pytest

from carspotter.photos.augmentation import AugmentationRanges, draw_affine, draw_colours, warp_images

STILL = AugmentationRanges(rotation=0, shift=0, shear=0, zoom=(1, 1), flip=0)
SIZE = 21


def draw(ranges, count=2000, seed=0, size=SIZE):
    return draw_affine(np.random.default_rng(seed), count, size, ranges)


@pytest.fixture
def images():
    return np.random.default_rng(5).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)


def test_no_change_is_the_identity(images):
    matrices = draw(STILL, count=4)
    np.testing.assert_allclose(matrices, np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-12)
    np.testing.assert_array_equal(warp_images(images, matrices), images.astype(np.float32))


def test_same_seed_gives_same_draws_and_another_seed_gives_others():
    assert np.array_equal(draw(AugmentationRanges()), draw(AugmentationRanges()))
    assert not np.array_equal(draw(AugmentationRanges()), draw(AugmentationRanges(), seed=1))


def test_the_first_photos_are_drawn_alike_in_any_batch_size():
    assert np.array_equal(draw(AugmentationRanges(), count=3), draw(AugmentationRanges(), count=50)[:3])


def test_rotation_fills_plus_minus_40_degrees_about_the_centre():
    matrices = draw(replace(STILL, rotation=40.0))
    angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert -40 <= angles.min() < -39 and 39 < angles.max() <= 40
    centre = np.array([(SIZE - 1) / 2, (SIZE - 1) / 2, 1])
    np.testing.assert_allclose(matrices @ centre, np.broadcast_to(centre, (2000, 3)), atol=1e-9)


def test_shift_is_a_fifth_of_each_side_independently():
    matrices = draw(replace(STILL, shift=0.2))
    for axis in (0, 1):
        assert 0.19 * SIZE < np.abs(matrices[:, axis, 2]).max() <= 0.2 * SIZE
    assert abs(np.corrcoef(matrices[:, 0, 2], matrices[:, 1, 2])[0, 1]) < 0.1


def test_zoom_is_drawn_for_each_axis_on_its_own():
    matrices = draw(replace(STILL, zoom=(0.8, 1.2)))
    zoom_x, zoom_y = matrices[:, 0, 0], matrices[:, 1, 1]
    assert 0.8 <= min(zoom_x.min(), zoom_y.min()) < 0.81 and 1.19 < max(zoom_x.max(), zoom_y.max()) <= 1.2
    assert abs(np.corrcoef(zoom_x, zoom_y)[0, 1]) < 0.1


def test_shear_is_two_tenths_of_a_degree():
    matrices = draw(replace(STILL, shear=0.2))
    largest = np.abs(matrices[:, 0, 1]).max()
    assert 0.95 * np.sin(np.deg2rad(0.2)) < largest <= np.sin(np.deg2rad(0.2))


def test_half_of_the_photos_are_mirrored_exactly(images):
    assert 0.45 < (draw(replace(STILL, flip=0.5))[:, 0, 0] < 0).mean() < 0.55
    mirrored = warp_images(images, draw(replace(STILL, flip=1.0), count=4))
    np.testing.assert_allclose(mirrored, images[:, :, ::-1], atol=1e-3)


def test_the_fused_matrix_is_rotation_shift_shear_zoom():
    draws = np.random.default_rng(3).random((1, 7))[0] * 2 - 1
    theta, shear = np.deg2rad(40 * draws[0]), np.deg2rad(0.2 * draws[3])
    shift = 0.2 * SIZE * draws[1:3]
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    shearing = np.array([[1, -np.sin(shear)], [0, np.cos(shear)]])
    matrix = draw_affine(np.random.default_rng(3), 1, SIZE, AugmentationRanges(flip=0))[0]
    np.testing.assert_allclose(matrix[:2, :2], rotation @ shearing @ np.diag(1 + 0.2 * draws[4:6]), atol=1e-12)
    half = (SIZE - 1) / 2
    centre_goes_to = (matrix @ [half, half, 1])[:2]
    np.testing.assert_allclose(centre_goes_to - half, rotation @ shift, atol=1e-9)


def test_border_repeats_the_nearest_pixel(images):
    matrices = np.tile(np.eye(3), (4, 1, 1))
    matrices[:, 0, 2] = -5
    moved = warp_images(images, matrices)
    np.testing.assert_array_equal(moved[:, :, :5], np.repeat(images[:, :, :1], 5, axis=2))
    np.testing.assert_array_equal(moved[:, :, 5:], images[:, :, :-5])


def test_half_a_pixel_is_the_mean_of_two(images):
    matrices = np.tile(np.eye(3), (4, 1, 1))
    matrices[:, 1, 2] = 0.5
    moved = warp_images(images, matrices)
    wide = images.astype(float)
    np.testing.assert_allclose(moved[:, :-1], (wide[:, :-1] + wide[:, 1:]) / 2, atol=1e-4)


def test_colour_draws_keep_grey_grey_and_default_to_no_change():
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(
        draw_colours(rng, 3, AugmentationRanges()), np.broadcast_to(np.eye(3, 4), (3, 3, 4)), atol=1e-12
    )
    matrices = draw_colours(rng, 200, AugmentationRanges(saturation=0.4))
    np.testing.assert_allclose(matrices @ np.array([0.3, 0.3, 0.3, 1]), 0.3, atol=1e-12)
    brighter = draw_colours(rng, 200, AugmentationRanges(brightness=0.2)) @ np.array([0.5, 0.5, 0.5, 1])
    assert 0.3 <= brighter.min() < 0.31 and 0.69 < brighter.max() <= 0.7
    contrast = draw_colours(rng, 200, AugmentationRanges(contrast=0.3)) @ np.array([0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(contrast, 0.5, atol=1e-12)
