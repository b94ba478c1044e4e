"""Decode and resize once -> uint8 arrays; the one preprocessing contract of training, export, server and notebooks."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from PIL import Image, ImageFile, ImageOps

from carspotter.memory import keep_freed_memory
from carspotter.progress import progress_bar

# Raise this by hand when decode_image gives other pixels: arrays on disk and exported models depend on it.
PREPROCESSING = "squash-bilinear-draft1x-white-2"

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
PIXEL_LIMIT = 25_000_000
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels
WORKERS = min(8, os.cpu_count() or 1)
CHUNK = 256  # photos read before they are written: bounds memory, keeps the pool busy
BATCH = 32  # images that a thread makes at a time: to hand over each one costs more

# Our own limit is stricter than the one at which Pillow warns.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# A damaged EXIF block is passed over.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


class UnreadablePhoto(ValueError):
    """A file that is not a photo this project can decode; the message names the file, `reason` says why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.reason = reason


def open_photo(source: Path | bytes | BinaryIO, at_least: int | None = None) -> tuple[Image.Image, str]:
    """Decode the first frame of a photo, as stored (any mode, before EXIF rotation); give it with its format's name.

    `at_least`: pixels; a JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, the coarsest that leaves at least
    twice `at_least` on each side. This `draft` rule is part of the preprocessing contract.
    Raises UnreadablePhoto for whatever is empty, truncated, damaged, too large or not one of FORMATS.
    """
    name, stream = _as_stream(source)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on: half a car is not a photo
    try:
        image = Image.open(stream, formats=list(FORMATS))
        width, height = image.size
        # Pillow's JPEG reader calls a phone's multi-picture file MPO; its first picture is a plain JPEG.
        image_format = "JPEG" if image.format == "MPO" else image.format
        if width * height > PIXEL_LIMIT:
            raise UnreadablePhoto(name, f"{width}×{height} pixels are more than the limit of {PIXEL_LIMIT:,}")
        if image.mode == "F":
            raise UnreadablePhoto(name, "floating-point pixels of unknown range; save it as an 8-bit JPEG")
        if at_least and image_format == "JPEG":
            image.draft(None, (2 * at_least, 2 * at_least))
        image.load()
    except UnreadablePhoto:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadablePhoto(name, _what_it_is_instead(stream)) from None
    except Image.DecompressionBombError:
        raise UnreadablePhoto(name, f"more pixels than the limit of {PIXEL_LIMIT:,}") from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly everything there is
        raise UnreadablePhoto(name, f"cannot be decoded: {error}") from error
    return image, image_format


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a photo upright by its EXIF orientation and into RGB; transparent pixels show a white background.

    16-bit grey keeps its upper 8 bits; colour profiles are ignored.
    """
    # Pillow clips 16-bit grey at 255 instead of scaling it.
    if image.mode.startswith("I"):
        grey = (np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8).astype(np.uint8)
        orientation = image.getexif().get(0x0112)
        image = Image.fromarray(grey)
        if orientation:
            image.getexif()[0x0112] = orientation
    if image.mode == "F":
        raise UnreadablePhoto("photo", "floating-point pixels; save it as an 8-bit JPEG or PNG")
    with contextlib.suppress(Exception):  # a damaged EXIF block costs the rotation, not the photo
        if image.getexif().get(0x0112, 1) != 1:  # most photos stand upright: they are spared a copy
            image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(ground, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_image(source: Path | bytes | BinaryIO, size: int) -> np.ndarray:
    """Decode a photo to the pixels every model sees: uint8, (size, size, 3), RGB.

    EXIF orientation, RGB, first frame, squashed to the square with an antialiased bilinear filter (no cropping, no
    padding). A JPEG is decoded at the coarsest of 1/1, 1/2, 1/4, 1/8 that leaves `size` pixels on each side: more than
    twice as quick for 640×480 at 150 px, and 0.8 of 255 levels apart on average. Raises UnreadablePhoto.
    """
    image, _ = open_photo(source, at_least=-(-size // 2))
    return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BILINEAR))


def load_images(data: Path, photos: pd.DataFrame, size: int, show_progress: bool = True) -> np.ndarray:
    """Give the images of `photos` (columns sha256 and path, in the wanted order) as uint8, (N, size, size, 3).

    They are decoded once, into `data/images/<digest>.npy`, and memory-mapped read-only; the digest covers the ordered
    hashes, the size and PREPROCESSING. Memory stays flat; a killed call leaves nothing that a later one would trust.
    Raises UnreadablePhoto, and FileNotFoundError for a photo that is not on this machine.
    """
    digest = hashlib.sha256(
        "\n".join([PREPROCESSING, str(size), *photos["sha256"]]).encode(),
    ).hexdigest()[:32]
    folder = Path(data) / "images"
    final = folder / f"{digest}.npy"
    if not final.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{digest}.part", "ab") as part:
            # A second process that wants the same images waits for the first instead of decoding them again.
            fcntl.flock(part, fcntl.LOCK_EX)
            if not final.exists():
                _write_images(part, Path(data), photos, size, show_progress)
                # Which photos an array holds: `forget` looks them up here.
                (folder / f"{digest}.txt").write_text("\n".join(photos["sha256"]) + "\n")
                os.replace(part.name, final)
    return np.load(final, mmap_mode="r")


def _write_images(part: BinaryIO, data: Path, photos: pd.DataFrame, size: int, show_progress: bool) -> None:
    def decode(paths: list[str]) -> np.ndarray:
        images = np.empty((len(paths), size, size, 3), np.uint8)
        for image, path in zip(images, paths, strict=True):
            if not (data / path).is_file():
                raise FileNotFoundError(f"{data / path}: the photo is not on this machine; scrape or import it again")
            image[:] = decode_image(data / path, size)
        return images

    keep_freed_memory()
    part.truncate(0)
    shape = (len(photos), size, size, 3)
    np.lib.format.write_array_header_1_0(part, {"descr": "|u1", "fortran_order": False, "shape": shape})
    paths = photos["path"].tolist()
    with (
        ThreadPoolExecutor(WORKERS) as pool,
        progress_bar(len(paths), "decode", "photos", show_progress) as progress,
    ):
        waiting: deque[Future] = deque()

        def write_next() -> None:
            images = waiting.popleft().result()
            part.write(images)
            progress.update(len(images))

        try:
            for start in range(0, len(paths), BATCH):
                waiting.append(pool.submit(decode, paths[start : start + BATCH]))
                if len(waiting) > CHUNK // BATCH:
                    write_next()
            while waiting:
                write_next()
        finally:
            pool.shutdown(cancel_futures=True)
    part.flush()
    os.fsync(part.fileno())


def _as_stream(source: Path | bytes | BinaryIO) -> tuple[str, BinaryIO]:
    if isinstance(source, str | os.PathLike):
        # Read whole: Pillow would keep a file open for as long as its image lives.
        return str(source), io.BytesIO(Path(source).read_bytes())
    if isinstance(source, bytes | bytearray | memoryview):
        return "photo", io.BytesIO(source)
    return str(getattr(source, "name", "photo")), source


def _what_it_is_instead(stream: BinaryIO) -> str:
    stream.seek(0)
    head = stream.read(512).lstrip().lower()
    if not head:
        return "the file is empty"
    if b"<svg" in head:
        return "an SVG drawing, not a photo"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a photo"
    return f"not a photo in a known format ({', '.join(FORMATS)}), or a damaged one"
