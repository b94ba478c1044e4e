"""How fast is augmentation? One fused warp per batch, in each framework, against the original's photo-by-photo one.

    python benchmarks/augment.py [--photos 400] [--seconds 4] [--batch 20]

The original: Keras' `ImageDataGenerator.random_transform` in a loop. Ours: the draws in numpy and the warp, from uint8
images in memory to float32 ones. 150 px, the same ranges, all cores; each framework in its own process, with the
original measured in the same process before and after it. Beside photos a second those a second of CPU, which tell more
where other work runs: the original keeps one core busy, ours all. Needs the extras keras and torch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from machine import ORIGINAL_AUGMENTATION, describe, run_contestant

from carspotter.models.store import FRAMEWORKS, import_framework
from carspotter.photos.augmentation import draw_affine

SIZE = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement (default %(default)s)")
    parser.add_argument("--batch", type=int, default=20, help="photos a batch (default: the original's %(default)s)")
    parser.add_argument("--contestant", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, options)))
        return
    print(describe("keras", "tensorflow", "torch", "numpy"))
    for name in FRAMEWORKS:
        arguments = ("--photos", options.photos, "--seconds", options.seconds, "--batch", options.batch)
        before, fused, after = run_contestant(__file__, "--contestant", name, *arguments)
        for unit, column in (("second", 0), ("second of CPU", 1)):
            ratio = 2 * fused[column] / (before[column] + after[column])
            print(
                f"{name:12} {fused[column]:6.0f} photos a {unit} in batches of {options.batch}, ImageDataGenerator "
                f"{before[column]:.0f} before, {after[column]:.0f} after: {ratio:.1f} × (wanted: 5 or more)"
            )


def measure(framework: str, options: argparse.Namespace) -> tuple[tuple[float, float], ...]:
    """Return the rates of the original, of the framework's fused warp, and of the original again."""
    images = np.random.default_rng(0).integers(0, 256, (options.photos, SIZE, SIZE, 3), dtype=np.uint8)
    sibling = import_framework(framework)
    rng = np.random.default_rng(0)

    def fused(start: int) -> int:
        batch = images[start : start + options.batch]
        affine = draw_affine(rng, len(batch), SIZE).astype(np.float32)
        if framework == "torch":
            batch = sibling.torch.from_numpy(batch).permute(0, 3, 1, 2)
            affine = sibling.torch.from_numpy(affine)
        sibling.transform(batch, affine)
        return len(batch)

    from keras.src.legacy.preprocessing.image import ImageDataGenerator  # noqa: PLC0415 - after the framework

    generator = ImageDataGenerator(**ORIGINAL_AUGMENTATION)

    def one(start: int) -> int:
        generator.random_transform(images[start].astype(np.float32))
        return 1

    return tuple(rate(work, len(images), options.seconds) for work in (one, fused, one))


def rate(work: Callable[[int], int], photos: int, seconds: float) -> tuple[float, float]:
    """Return photos a second, and a second of CPU, of `work`: told where to start, it says how many photos it did."""
    work(0)
    done, started, cpu = 0, time.perf_counter(), time.process_time()
    while (gone := time.perf_counter() - started) < seconds:
        done += work(done % photos)
    return done / gone, done / (time.process_time() - cpu)


if __name__ == "__main__":
    main()
