"""The duplicate search: its growth on made-up photos, its recall on altered copies of real ones, beside a peer.

    python -m benchmarks.duplicates grow --sizes 10000 100000 1000000 [--table CSV --figure PNG]
    python -m benchmarks.duplicates copies --peer-python PYTHON

Both read the photos of the folder that the variable CARSPOTTER_REAL_PHOTOS names. `grow` makes photos up from them:
half the variance of each is a real photo's, the other half drawn from their principal components, so that hashes are as
skewed as real ones; one in a hundred is an altered copy of another. It writes down each size as soon as it is measured
and draws what the table then holds; up to 20,000 photos all pairs are looked at as well. `copies` adds a re-encoded,
rescaled, cropped (by 5–15 % of both sides), mirrored and watermarked copy of every photo, and then holds the pairs
found against the truth; a PYTHON that has `imagededup` does the same with its perceptual hash.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageOps

from benchmarks.machine import describe
from carspotter.evidence.plots import BLUE, GREEN, GREY, ORANGE, STYLE
from carspotter.photos.alignment import CLOSE_SIDE
from carspotter.photos.duplicates import compare_all, confirm, find_candidates, find_duplicates, hash_windows
from carspotter.photos.fingerprints import FINGERPRINT, SIDE
from carspotter.photos.images import WORKERS

COMPONENTS = 300
PLANTED = 100  # one photo in so many is an altered copy
BRUTE_FORCE = 20_000  # photos up to which all pairs are looked at
GROWTH_TITLE = "Duplicate search on made-up photos with the hashes of real ones"
PEER = """
import json, sys, time
from imagededup.methods import PHash
started = time.perf_counter()
found = PHash(verbose=False).find_duplicates(image_dir=sys.argv[1], max_distance_threshold=int(sys.argv[2]))
seconds = time.perf_counter() - started
pairs = sorted({tuple(sorted((name, other))) for name, others in found.items() for other in others})
print(json.dumps({"seconds": seconds, "pairs": pairs}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("grow", "copies"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="PHOTOS")
    parser.add_argument("--table", type=Path, help="measures are added to this CSV file")
    parser.add_argument("--figure", type=Path, help="and drawn into this PNG file")
    parser.add_argument("--photos", type=int, help="only so many of the real photos")
    parser.add_argument("--peer-python", type=Path, help="a Python that has imagededup")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = Path(os.environ.get("CARSPOTTER_REAL_PHOTOS") or "-")
    if not folder.is_dir():
        parser.error("CARSPOTTER_REAL_PHOTOS names no folder of photos")
    files = sorted(folder.rglob("*.jpg"))
    files = random.Random(0).sample(files, options.photos) if options.photos else files
    if options.size:
        print(json.dumps(grow(files, options.size)))
        return
    print(describe("numpy", "pillow"))
    if options.part == "copies":
        compare_copies(files, options.peer_python)
        return
    rows = pd.read_csv(options.table).to_dict("records") if options.table and options.table.exists() else []
    for size in options.sizes:  # each in a process of its own, for its memory
        command = [sys.executable, "-m", "benchmarks.duplicates", "grow", "--size", str(size)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        print(output, flush=True)
        rows = sorted([*(row for row in rows if row["photos"] != size), json.loads(output)], key=itemgetter("photos"))
        if options.table:
            pd.DataFrame(rows).to_csv(options.table, index=False, lineterminator="\n")
        if options.figure:
            growth_chart(pd.DataFrame(rows), GROWTH_TITLE).savefig(options.figure, bbox_inches="tight")


def grow(files: list[Path], count: int) -> dict:
    """Search `count` made-up photos: seconds of each step, candidates, recall, and the memory (MB) at its highest."""
    rng = np.random.default_rng(1)
    real = np.stack([_grey(Image.open(file)) for file in files]).reshape(len(files), -1).astype(np.float32)
    mean = real.mean(axis=0)
    _, spread, waves = np.linalg.svd(real - mean, full_matrices=False)
    waves = (spread[:COMPONENTS, None] * waves[:COMPONENTS] / np.sqrt(len(real))).astype(np.float32)
    hashes = np.empty((count, 36, 3), dtype=np.uint64)
    planted = np.arange(PLANTED, count, PLANTED)
    result = {"photos": count}
    with tempfile.TemporaryFile() as file:
        for start in range(0, count, PLANTED * 40):
            size = min(PLANTED * 40, count - start)
            drawn = rng.normal(size=(size, len(waves))).astype(np.float32) @ waves
            grey = mean + np.sqrt(0.5) * (drawn + real[rng.integers(len(real), size=size)] - mean)
            grey = grey.clip(0, 255).astype(np.uint8).reshape(size, SIDE, SIDE)
            for row in range(PLANTED, size, PLANTED):
                grey[row] = _grey(_crop(Image.fromarray(grey[row - 1]), random.Random(int(start + row))))
            file.write(grey.tobytes())
            with _clocked(result, "hash"):
                hashes[start : start + size] = hash_windows(grey)
        planted = planted[planted % (PLANTED * 40) != 0]
        with _clocked(result, "search"):
            candidates = find_candidates(hashes, show_progress=False)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        fingerprints = np.memmap(file, dtype=[("grey", "u1", (SIDE, SIDE))], mode="r", shape=(count,))
        with _clocked(result, "confirm"):
            confirmed = confirm(candidates, fingerprints, show_progress=False)
    found = np.unique(_pairs(candidates["whole"], candidates["cut"], count))
    wanted = _pairs(planted - 1, planted, count)
    confirmed = _pairs(confirmed["first"].to_numpy(), confirmed["second"].to_numpy(), count)
    result |= {
        "candidates": len(candidates),
        "planted_found": np.isin(wanted, found).mean(),
        "planted_confirmed": np.isin(wanted, confirmed).mean(),
        "confirmed": len(confirmed),
    }
    if count <= BRUTE_FORCE:
        every = compare_all(hashes, show_progress=False)
        true = np.unique(_pairs(every["whole"], every["cut"], count))
        result |= {"pairs_of_brute_force": len(true), "recall_of_brute_force": np.isin(true, found).mean()}
        result["recall_of_planted_among_these"] = np.isin(np.intersect1d(wanted, true), found).mean()
    return {name: value if isinstance(value, int) else round(float(value), 4) for name, value in result.items()}


@contextlib.contextmanager
def _clocked(result: dict, step: str) -> Iterator[None]:
    """Add the seconds that a step takes, and those of CPU, to `result`."""
    before = time.perf_counter(), time.process_time()
    yield
    for name, gone in (("seconds", time.perf_counter() - before[0]), ("cpu_seconds", time.process_time() - before[1])):
        result[f"{step}_{name}"] = result.get(f"{step}_{name}", 0.0) + gone


def _pairs(first: np.ndarray | int, second: np.ndarray, count: int) -> np.ndarray:
    return np.minimum(first, second).astype(np.int64) * count + np.maximum(first, second)


def compare_copies(files: list[Path], peer_python: Path | None) -> None:
    """Print, for ours and the peer, the time and the share of copies found by kind, and how many pairs are right."""
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, file in enumerate(files):
            with Image.open(file) as opened:
                photo = ImageOps.exif_transpose(opened).convert("RGB")
            photo.save(folder / f"{number:05}-original.jpg", quality=92)
            for kind, change in COPIES.items():
                change(photo, chance).save(folder / f"{number:05}-{kind}.jpg", quality=70)
        names = sorted(path.name for path in folder.iterdir())

        started = time.perf_counter()
        fingerprints = np.zeros(len(names), dtype=FINGERPRINT)
        with ThreadPoolExecutor(WORKERS) as pool:  # as the curation does
            fingerprints["grey"] = list(pool.map(_grey, (Image.open(folder / name) for name in names)))
        pairs = find_duplicates(fingerprints, False, lambda row: _grey(Image.open(folder / names[row]), CLOSE_SIDE))
        seconds = time.perf_counter() - started
        pairs = pairs[pairs["copy"]]
        ours = {(names[a], names[b]) for a, b in zip(pairs["first"], pairs["second"], strict=True)}
        _print_score("ours", seconds, ours, names)
        if peer_python:
            for threshold in (4, 10):
                command = [peer_python, "-c", PEER, folder, str(threshold)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
                answer = json.loads(output)
                theirs = {tuple(pair) for pair in answer["pairs"]}
                _print_score(f"imagededup, distance {threshold}", answer["seconds"], theirs, names)


def _print_score(who: str, seconds: float, pairs: set[tuple[str, str]], names: list[str]) -> None:
    """Pairs of one original are right; pairs among the originals are listed apart, for some are true duplicates."""
    pairs = {tuple(sorted(pair)) for pair in pairs}
    right = sum(a[:5] == b[:5] for a, b in pairs)
    parents = {tuple(sorted((a[:5], b[:5]))) for a, b in pairs if "original" in a and "original" in b}
    # Copies of two originals that were already called duplicates are neither right nor wrong.
    wrong = sum(a[:5] != b[:5] and tuple(sorted((a[:5], b[:5]))) not in parents for a, b in pairs)
    numbers = sorted({name[:5] for name in names})
    recall = {
        kind: np.mean(
            [tuple(sorted((f"{number}-{kind}.jpg", f"{number}-original.jpg"))) in pairs for number in numbers]
        )
        for kind in COPIES
    }
    shares = ", ".join(f"{kind} {share:.3f}" for kind, share in recall.items())
    print(
        f"{who}: {len(names)} photos in {seconds:.0f} s; of the copies found with their original "
        f"{np.mean(list(recall.values())):.3f} ({shares}); "
        f"{len(pairs)} pairs, precision {right / (right + wrong or 1):.4f} "
        f"({wrong} of different photos, and {len(parents)} pairs among the originals)",
        flush=True,
    )


def _grey(photo: Image.Image, side: int = SIDE) -> np.ndarray:
    grey = photo.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BILINEAR)
    return np.asarray(grey.reduce(4) if side == SIDE else grey.resize((side, side), Image.Resampling.BILINEAR))


def _encode(photo: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def _crop(photo: Image.Image, chance: random.Random) -> Image.Image:
    """Cut off 5–15 % of the width and of the height, somewhere."""
    box = []
    for side in photo.size:
        cut = chance.uniform(0.05, 0.15) * side
        start = chance.uniform(0, cut)
        box.append((start, side - cut + start))
    return photo.crop((round(box[0][0]), round(box[1][0]), round(box[0][1]), round(box[1][1])))


def _watermark(photo: Image.Image, chance: random.Random) -> Image.Image:
    marked = photo.copy()
    draw = ImageDraw.Draw(marked)
    width, height = marked.size
    top = chance.choice((0, round(0.88 * height)))
    draw.rectangle((0, top, width, top + round(0.12 * height)), fill=(20, 20, 90))
    draw.text((width // 20, top), "www.used-cars.example", fill="white", font_size=max(8, height // 12))
    return marked


COPIES: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "re-encoded": lambda photo, _: _encode(photo, 40),
    "rescaled": lambda photo, _: photo.resize((max(1, photo.width // 3), max(1, photo.height // 3))),
    "cropped": _crop,
    "mirrored": lambda photo, _: ImageOps.mirror(photo),
    "watermarked": _watermark,
}


def growth_chart(table: pd.DataFrame, title: str = "") -> plt.Figure:
    """Draw how the steps of the duplicate search grow: seconds of each (left) and the peak of memory (right).

    `table`: a row per number of `photos` with hash_seconds, search_seconds, confirm_seconds and peak_mb. A dotted line
    grows in proportion to the photos.
    """
    table = table.sort_values("photos")
    photos = table["photos"].to_numpy(dtype=float)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
        for step, colour in (("hash", BLUE), ("search", ORANGE), ("confirm", GREEN)):
            left.plot(photos, table[f"{step}_seconds"], "o-", color=colour, label=step)
        start = table[["hash_seconds", "search_seconds", "confirm_seconds"]].iloc[0].max()
        left.plot(photos, start * photos / photos[0], ":", color=GREY, label="in proportion")
        right.plot(photos, table["peak_mb"], "o-", color=BLUE)
        for axis, word in ((left, "seconds"), (right, "peak of memory, MB")):
            axis.set(xscale="log", yscale="log", xlabel="photos", ylabel=word)
            axis.grid(alpha=0.3)
        left.legend()
        figure.suptitle(title, fontweight="bold")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
