"""How fast do JPEG files become arrays? `load_images` against `keras.utils.image_dataset_from_directory`, side by side.

    python benchmarks/ingest.py [--photos 400] [--rounds 5] [--sizes 150 224]

640×480 JPEGs to size×size. Ours decodes with antialiasing into a file on disk (each round a new one), Keras into
memory, batch by batch, without antialiasing; both on all cores. Each in its own process, after one round that is not
counted; the rounds of the two alternate. Needs the extra keras.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from machine import describe, write_jpegs

from carspotter.photos.images import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[150, 224], metavar="PIXELS")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        answer(CONTESTANTS[options.contestant](options.folder), options.photos)
        return
    print(describe("pillow", "numpy", "keras", "tensorflow"))
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), options.photos)
        for size in options.sizes:
            rates = compare(Path(folder), options.photos, size, options.rounds)
            ours, theirs = (np.array(rates[name]) for name in ("ours", "keras"))
            for unit, column in (("second", 0), ("second of CPU", 1)):
                ratio = ours[:, column] / theirs[:, column]
                print(
                    f"{size} px: ours {np.median(ours[:, column]):.0f} photos a {unit}, Keras "
                    f"{np.median(theirs[:, column]):.0f}; ratio, median of {options.rounds} pairs: "
                    f"{np.median(ratio):.2f} (from {np.min(ratio):.2f} to {np.max(ratio):.2f}; wanted: 1 or more)"
                )


def compare(folder: Path, photos: int, size: int, rounds: int) -> dict[str, list[list[float]]]:
    """Start both contestants and let them take turns: photos a second, and a second of CPU, of each round."""
    rates = {name: [] for name in CONTESTANTS}
    processes = {}
    try:
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--contestant", name, "--folder", folder, "--photos", str(photos)]
            processes[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        for turn in range(rounds + 1):
            for name, process in processes.items():
                process.stdin.write(f"{size}\n")
                process.stdin.flush()
                both = json.loads(process.stdout.readline())
                if turn:
                    rates[name].append(both)
    finally:
        for process in processes.values():
            process.communicate()  # its input ends, and with it the process
    return rates


def answer(decode_all, photos: int) -> None:
    """For each size that comes in, decode all photos and say how many a second."""
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        decoded = decode_all(int(line))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        assert decoded == photos, f"{decoded} photos instead of {photos}"
        print(json.dumps([photos / seconds, photos / cpu]), flush=True)


def ours(folder: Path):
    paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    turn = 0

    def decode_all(size: int) -> int:
        nonlocal turn
        turn += 1  # other names than in the turn before: nothing is there yet
        names = [hashlib.sha256(f"{turn}{path}".encode()).hexdigest() for path in paths]
        images = load_images(folder, pd.DataFrame({"sha256": names, "path": paths}), size, show_progress=False)
        return len(images)

    return decode_all


def theirs(folder: Path):
    import keras  # noqa: PLC0415 - the other contestant does without

    def decode_all(size: int) -> int:
        dataset = keras.utils.image_dataset_from_directory(
            folder, image_size=(size, size), batch_size=32, shuffle=False, verbose=False, class_names=["a", "b"]
        )
        return sum(len(labels) for _, labels in dataset)

    return decode_all


CONTESTANTS = {"ours": ours, "keras": theirs}

if __name__ == "__main__":
    main()
