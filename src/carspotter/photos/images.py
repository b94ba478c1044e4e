"""Decode and resize once -> uint8 arrays; the one preprocessing contract of training, export, server and notebooks."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from carspotter.photos.decoding import PREPROCESSING, Facts, decode
from carspotter.photos.journal import hold
from carspotter.progress import progress_bar

WORKERS = min(8, os.cpu_count() or 1)
CHUNK = 256  # photos read before they are written: bounds memory, keeps the pool busy
BATCH = 32  # images that a thread makes at a time: to hand over each one costs more


def decode_image(source: Path | bytes | BinaryIO, size: int, verify: bool = True) -> np.ndarray:
    """Decode a photo to the pixels every model sees: uint8, (size, size, 3), RGB.

    EXIF orientation, RGB, first frame, squashed to the square with an antialiased bilinear filter (no cropping, no
    padding). A JPEG is decoded at the coarsest of 1/1, 1/2, 1/4, 1/8 that leaves `size` pixels on each side: more than
    twice as quick for 640×480 at 150 px, and 0.8 of 255 levels apart on average. `verify`: refuse a JPEG of which
    pixels are missing, see `decoding.decode`. Raises UnreadablePhoto.
    """
    return decode_with_facts(source, size, verify)[0]


def decode_with_facts(source: Path | bytes | BinaryIO, size: int, verify: bool = True) -> tuple[np.ndarray, Facts]:
    """Decode as `decode_image`; return also the photo's format, and its width and height as stored."""
    image, facts = decode(source, at_least=-(-size // 2), square=size, verify=verify)
    return np.asarray(image), facts


def load_images(data: Path, photos: pd.DataFrame, size: int, show_progress: bool = True) -> np.ndarray:
    """Return the images of `photos` (columns sha256 and path, in the wanted order) as uint8, (N, size, size, 3).

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
    def make(paths: list[str]) -> np.ndarray:
        images = np.empty((len(paths), size, size, 3), np.uint8)
        for image, path in zip(images, paths, strict=True):
            if not (data / path).is_file():
                raise FileNotFoundError(f"{data / path}: the photo is not on this machine; scrape or import it again")
            image[:] = decode_image(data / path, size, verify=False)  # verified when it was collected
        return images

    paths, shape = photos["path"].tolist(), (len(photos), size, size, 3)
    with (
        open(path, "wb") as part,
        ThreadPoolExecutor(WORKERS) as pool,
        progress_bar(len(paths), "decode", "photos", show_progress) as progress,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(part, header)
        waiting: deque[Future] = deque()

        def write_next() -> None:
            images = waiting.popleft().result()
            part.write(images)
            progress.update(len(images))

        try:
            for start in range(0, len(paths), BATCH):
                waiting.append(pool.submit(make, paths[start : start + BATCH]))
                if len(waiting) > CHUNK // BATCH:
                    write_next()
            while waiting:
                write_next()
        finally:
            pool.shutdown(cancel_futures=True)
        part.flush()
        os.fsync(part.fileno())
