"""Decode and resize once -> uint8 arrays; the one preprocessing contract of training, export, server and notebooks."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from carspotter.photos.decoding import PREPROCESSING, UnreadablePhoto, decode
from carspotter.photos.journal import hold
from carspotter.progress import progress_bar

T = TypeVar("T")
WORKERS = min(8, os.cpu_count() or 1)
AHEAD = 2 * WORKERS  # results that wait to be taken: bounds memory, keeps the threads busy


def in_threads(
    function: Callable[[Any], T], items: Sequence, what: str, unit: str, show_progress: bool = True
) -> Iterator[T]:
    """Yield the function's result of each item, in order, from WORKERS threads that work a few items ahead."""
    waiting: deque[Future] = deque()
    with progress_bar(len(items), what, unit, show_progress) as progress, ThreadPoolExecutor(WORKERS) as pool:

        def take() -> T:
            result = waiting.popleft().result()
            progress.update()
            return result

        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD:
                    yield take()
            while waiting:
                yield take()
        finally:
            pool.shutdown(cancel_futures=True)


def decode_image(source: Path | bytes | BinaryIO, size: int, verify: bool = True) -> np.ndarray:
    """Decode a photo to the pixels every model sees: uint8 (size, size, 3), RGB.

    Squashed to the square with an antialiased bilinear filter; a JPEG is decoded at the coarsest scale that leaves
    `size` pixels on each side. `verify` as in `decoding.decode`. Raises UnreadablePhoto.
    """
    return np.asarray(decode(source, at_least=-(-size // 2), square=size, verify=verify)[0])


def thumbnail(source: Path | bytes, side: int) -> Image.Image:
    """Return a copy of a photo whose longer side is at most `side` pixels; grey where it cannot be decoded."""
    try:
        image = decode(source, at_least=side // 2, verify=False)[0]
    except (UnreadablePhoto, OSError):
        image = Image.new("RGB", (side, side * 3 // 4), "#DDDDDD")
    image.thumbnail((side, side))
    return image


def load_images(data: Path, photos: pd.DataFrame, size: int, show_progress: bool = True) -> np.ndarray:
    """Return the images of `photos` (columns sha256 and path, in that order) as uint8 (N, size, size, 3).

    They are decoded once, into `data/images/<digest>.npy`, and memory-mapped; the digest covers the ordered hashes, the
    size and PREPROCESSING. Raises UnreadablePhoto, and FileNotFoundError for a photo that is not on this machine.
    """
    digest = hashlib.sha256("\n".join([PREPROCESSING, str(size), *photos["sha256"]]).encode()).hexdigest()[:32]
    folder = Path(data) / "images"
    final = folder / f"{digest}.npy"
    if not final.exists():
        part = folder / f"{digest}.part"
        # A second process that wants the same images waits for the first instead of decoding them again.
        with hold(folder / ".lock"):
            if not final.exists():
                _write_images(part, Path(data), photos, size, show_progress)
                # Which photos an array holds: `forget` looks them up here.
                (folder / f"{digest}.txt").write_text("\n".join(photos["sha256"]) + "\n")
                os.replace(part, final)
    return np.load(final, mmap_mode="r")


def _write_images(path: Path, data: Path, photos: pd.DataFrame, size: int, show_progress: bool) -> None:
    def make(path: str) -> np.ndarray:
        if not (data / path).is_file():
            raise FileNotFoundError(f"{data / path}: the photo is not on this machine; scrape or import it again")
        return decode_image(data / path, size, verify=False)  # verified when it was collected

    header = {"descr": "|u1", "fortran_order": False, "shape": (len(photos), size, size, 3)}
    with open(path, "wb") as part:
        np.lib.format.write_array_header_1_0(part, header)
        for image in in_threads(make, photos["path"].tolist(), "decode", "photos", show_progress):
            part.write(image.tobytes())
        part.flush()
        os.fsync(part.fileno())
