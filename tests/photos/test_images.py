"""The preprocessing contract, pinned by golden arrays (± 1), and the arrays on disk."""

import base64
import hashlib
import io
import multiprocessing
import os
import signal
import struct
import time
import zlib

import numpy as np
import pandas as pd
import pytest
from generated_photos import encode, scene
from PIL import Image, ImageFile

from carspotter.photos import images
from carspotter.photos.decoding import UnreadablePhoto, decode
from carspotter.photos.images import decode_image, in_threads, load_images


def ramp(width=64, height=48):
    """A picture that differs in every direction: red grows to the right, green downwards, blue is a corner."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x < 16) * (y < 16) * 200], axis=-1).astype(np.uint8)
    )


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# 4 × 4 pixels of `ramp`.
UPRIGHT = [
    [[36, 36, 168], [95, 36, 25], [159, 36, 0], [218, 36, 0]],
    [[36, 94, 59], [95, 94, 9], [159, 94, 0], [218, 94, 0]],
    [[36, 160, 0], [95, 160, 0], [159, 160, 0], [218, 160, 0]],
    [[36, 218, 0], [95, 218, 0], [159, 218, 0], [218, 218, 0]],
]

# A JPEG of 96 × 64 pixels with EXIF orientation 6, as bytes, so that no encoder stands between it and its golden array.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYW"
    "GDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCABAAGADASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcI"
    "CQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6"
    "Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW"
    "19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAEC"
    "AxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0"
    "dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oA"
    "DAMBAAIRAxEAPwCxbR9K0IlwKrwrirSnAr5Oo7suNXQc3Sq0xqV34qpM9KCMKr5irO1UpJKnmYk4HJqrJE57gfjXqYbDVKvwRucao66kZko8"
    "yo2icdxURYqcEYNdNTCVaSvOLR7eDgkWC+aic5pgendaxtY9nnSiQuuab5eTVkJmpEhz2quex42Klc6UcUGTFMkbFVZJsd68lRueNz2ZYkm9"
    "6qySbjgdTUDze9NhkzJ9BXdhcN7WrGHc6qXvE5ARffuarSGpnbNQPX3tGnGnFRirJHZTw99SBjUbgOMMKlYVHiuhxjOPLJXRo17Mq4KsVPUV"
    "NGM0ky8qe9SwrXxWNpKhWlTXQl4q6Joo81big9qII81oQxV5NSpY55S5yCeTFZ80tTXMnWsyaTmtKUDz5Qdxzze9Ptpf3h57VQZ+adHIVYEd"
    "RXoYdqlVjN9GelhadzX3ZoIzUcLh1BFTgZr7JSUkpR2Z7EElEgZabsq1szQYwBk8AU3UUVdnl4ydtijMnK1NBH0o2F33EVahjxXxGPxKrVpT"
    "jszxXUadizbp0rQiTiq0K4q4hwK8Wo7nbQdzl7iTOazpW5qxK+arPzXr01Y7Vh7kJPNPSk21Ii1q2dVOHITwsVOVODV+Oc45Xn61RjFW4loh"
    "i61BWpysXOuralpZcj7n60FWc5anRpVlI658Rjq9Vcs5XR5VealsV0hqxHHiplip23Fee53PNdNtgnFP8zAqFmxUEk2O9So3OuirH//Z"
)
JPEG_AT_4 = [
    [[99, 73, 1], [77, 130, 7], [116, 187, 7], [167, 201, 0]],
    [[145, 65, 44], [158, 61, 162], [134, 105, 157], [103, 164, 36]],
    [[119, 155, 47], [114, 97, 169], [124, 59, 164], [139, 71, 39]],
    [[118, 203, 1], [112, 182, 10], [124, 120, 9], [140, 67, 1]],
]


def assert_close(image, expected, tolerance=1):
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.astype(int), np.asarray(expected, dtype=int), atol=tolerance)


def test_golden_array_of_a_png():
    assert_close(decode_image(encode(ramp(), "PNG"), 4), UPRIGHT)


def test_golden_array_of_a_turned_jpeg_decoded_at_an_eighth():
    assert_close(decode_image(JPEG, 4), JPEG_AT_4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = ramp().transpose(undo[orientation]) if orientation > 1 else ramp()
    assert_close(decode_image(encode(stored, "PNG", exif=turned(orientation)), 4), UPRIGHT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_costs_the_rotation_only():
    assert decode_image(encode(ramp(), "JPEG", exif=b"Exif\0\0MM\0*nonsense"), 4).shape == (4, 4, 3)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "RGBA"])
def test_colour_modes_give_the_same_picture(mode):
    image = ramp().convert(mode) if mode != "P" else ramp().quantize(256)
    assert_close(decode_image(encode(image, "TIFF"), 4), UPRIGHT, tolerance=6)


def test_a_cmyk_jpeg_is_not_inverted():
    assert_close(decode_image(encode(ramp().convert("CMYK"), "JPEG", quality=98), 4), UPRIGHT, tolerance=6)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = decode_image(encode(Image.fromarray(grey), "PNG"), 4)
    assert_close(image[:, 0, 0], [36, 94, 158, 216])
    assert (image[..., 0] == image[..., 1]).all()


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_three_equal_channels(mode):
    image = decode_image(encode(ramp().convert(mode), "PNG"), 4)
    assert image.shape == (4, 4, 3) and (image[..., 0] == image[..., 2]).all()


def test_transparent_pixels_show_white():
    image = ramp().convert("RGBA")
    image.putalpha(0)
    assert_close(decode_image(encode(image, "PNG"), 4), np.full((4, 4, 3), 255))
    palette = Image.new("P", (8, 8), 0)
    assert_close(decode_image(encode(palette, "PNG", transparency=0), 4), np.full((4, 4, 3), 255))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(image_format):
    first, second = Image.new("RGB", (32, 32), (250, 10, 10)), Image.new("RGB", (32, 32), (10, 10, 250))
    moving = encode(first, image_format, save_all=True, append_images=[second], duration=100)
    assert_close(decode_image(moving, 2), np.full((2, 2, 3), (250, 10, 10)), tolerance=4)


def test_a_photo_is_squashed_not_cropped():
    wide = Image.new("RGB", (400, 50), (0, 0, 0))
    wide.paste((255, 255, 255), (0, 0, 100, 50))
    assert_close(decode_image(encode(wide, "PNG"), 4)[:, :, 0], [[255, 0, 0, 0]] * 4, tolerance=40)


def test_reduction_is_antialiased():
    checkers = np.indices((256, 256)).sum(axis=0) % 2 * 255
    assert_close(
        decode_image(encode(Image.fromarray(checkers.astype(np.uint8)), "PNG"), 8), np.full((8, 8, 3), 127), tolerance=2
    )


def test_draft_leaves_at_least_twice_the_size():
    photo = encode(scene(1, (640, 480)), "JPEG")
    assert decode(photo)[0].size == (640, 480)
    assert decode(photo, at_least=120)[0].size == (320, 240)
    assert decode(photo, at_least=121)[0].size == (640, 480)
    assert decode(photo, at_least=30)[0].size == (80, 60)


def test_a_jpeg_is_decoded_at_the_coarsest_scale_that_leaves_the_size():
    photo = encode(scene(1, (640, 480)), "JPEG")

    def by_hand(scale, size):
        image = Image.open(io.BytesIO(photo))
        image.draft(None, (640 // scale, 480 // scale))
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))

    for size, scale in ((241, 1), (240, 2), (121, 2), (120, 4)):
        assert np.array_equal(decode_image(photo, size), by_hand(scale, size)), size


def test_paths_bytes_and_streams_give_the_same_pixels(tmp_path):
    photo = encode(scene(2), "JPEG")
    (tmp_path / "photo.jpg").write_bytes(photo)
    expected = decode_image(photo, 16)
    assert np.array_equal(decode_image(tmp_path / "photo.jpg", 16), expected)
    assert np.array_equal(decode_image(io.BytesIO(photo), 16), expected)


def png_header(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "empty": (b"", "empty"),
    "truncated": (encode(scene(4), "JPEG")[:3000], "cut off"),
    "truncated png": (encode(scene(4), "PNG")[:9000], "cannot be decoded"),
    "just above the pixel limit": (encode(Image.new("1", (8001, 8000)), "PNG"), "limit of 64,000,000"),
    "bomb": (png_header(60_000, 60_000), "limit of 64,000,000"),
    "text": (b"not a photo at all", "not a photo"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "web page": (b"<!DOCTYPE html><p>404", "web page"),
    "format that is not allowed": (encode(scene(4), "ICO"), "not a photo"),
    "only a header": (encode(scene(4), "JPEG")[:20], "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_unreadable_files_are_named_with_their_reason(name, tmp_path):
    content, reason = BAD[name]
    file = tmp_path / "car.jpg"
    file.write_bytes(content)
    with pytest.raises(UnreadablePhoto) as caught:
        decode_image(file, 8)
    assert str(file) in str(caught.value) and reason in str(caught.value)
    assert reason in caught.value.reason and "car.jpg" not in caught.value.reason


def test_exactly_the_pixel_limit_is_allowed():
    assert decode_image(encode(Image.new("1", (8000, 8000), 1), "PNG"), 2).min() == 255


def test_truncated_photos_stay_unreadable_when_another_library_allows_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadablePhoto):
        decode_image(encode(scene(4), "JPEG")[:3000], 8)


@pytest.fixture
def collection(tmp_path):
    rows = []
    for seed in range(12):
        photo = encode(scene(seed, (120, 90)), "JPEG")
        sha256 = hashlib.sha256(photo).hexdigest()
        (tmp_path / f"{sha256}.jpg").write_bytes(photo)
        rows.append((sha256, f"{sha256}.jpg"))
    return tmp_path, pd.DataFrame(rows, columns=["sha256", "path"])


def load(collection, size=16):
    return load_images(*collection, size, show_progress=False)


def test_load_images_gives_the_photos_in_order_read_only(collection, monkeypatch):
    monkeypatch.setattr(images, "AHEAD", 2)  # fewer than there are photos
    data, photos = collection
    loaded = load(collection)
    assert isinstance(loaded, np.memmap) and loaded.shape == (12, 16, 16, 3) and loaded.dtype == np.uint8
    for image, path in zip(loaded, photos["path"], strict=True):
        assert np.array_equal(image, decode_image(data / path, 16))
    with pytest.raises(ValueError):
        loaded[0] = 0


def test_threads_give_results_in_order_and_pass_on_what_fails():
    squares = in_threads(lambda number: number**2, range(50), "square", "numbers", False)
    assert list(squares) == [number**2 for number in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 / number, [1, 0, 1], "divide", "numbers", False))


def test_load_images_decodes_once(collection, monkeypatch):
    load(collection)
    monkeypatch.setattr(images, "decode_image", None)
    assert load(collection).shape == (12, 16, 16, 3)


def test_another_order_size_or_contract_is_another_array(collection, monkeypatch):
    data, photos = collection
    first = load(collection)
    turned_round = load_images(data, photos[::-1], 16, show_progress=False)
    assert np.array_equal(turned_round, first[::-1])
    assert load(collection, size=8).shape == (12, 8, 8, 3)
    monkeypatch.setattr(images, "PREPROCESSING", "another")
    load(collection)
    assert len(list((data / "images").glob("*.npy"))) == 4


def test_a_missing_photo_is_named_and_leaves_no_array(collection):
    data, photos = collection
    (data / photos["path"][5]).unlink()
    with pytest.raises(FileNotFoundError, match=photos["sha256"][5]):
        load(collection)
    assert not list((data / "images").glob("*.npy"))


def slow_load(data, photos):
    plain = images.decode_image
    images.decode_image = lambda *arguments, **options: (time.sleep(0.05), plain(*arguments, **options))[1]
    images.BATCH = 1
    load_images(data, photos, 16, show_progress=False)


def test_a_killed_load_leaves_nothing_that_a_later_one_trusts(collection):
    data, photos = collection
    process = multiprocessing.get_context("fork").Process(target=slow_load, args=(data, photos))
    process.start()
    while not any(part.stat().st_size > 1000 for part in (data / "images").glob("*.part")):
        assert process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list((data / "images").glob("*.npy"))
    assert np.array_equal(load(collection)[11], decode_image(data / photos["path"][11], 16))
    assert not list((data / "images").glob("*.part"))
