"""How many runs an hour does a sweep make on Ray with 1, 2, 4 workers, and how much of the ideal is that?

Each worker is a node of its own with one processor, on this machine; the cells are equal, as many as give every worker
the same number. Efficiency is the rate over that of one worker, by the number of workers. Starting a worker, importing
the framework and sending data and results are all counted. Beside it stands what the machine itself allows: a loop of
arithmetic in as many processes, without Ray. Workers beyond the cores show what sharing a core does, not scaling.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from ray.cluster_utils import Cluster

from carspotter.models.sweep import Cell, run_sweep
from carspotter.paths import Study
from carspotter.photos.table import import_folder, read_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cells", type=int, default=2, help="for each worker")
    parser.add_argument("--epochs", type=int, default=4, help="about 10 s each on one core")
    parser.add_argument("--photos", type=int, default=480, help="a quarter of them for validation")
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {options}")
    first = machine_first = None
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            study = make_study(Path(folder), options.photos)
            seconds, spent = time_sweep(study, workers, options)
        rate = workers * options.cells / seconds * 3600
        machine = time_machine(workers)
        first, machine_first = first or rate / workers, machine_first or machine / workers
        print(
            f"{workers} workers: {workers * options.cells} cells in {seconds:.0f} s, {rate:.0f} an hour, "
            f"{spent / 3600:.3f} cell-hours; efficiency {rate / workers / first:.2f}, "
            f"of the machine itself {machine / workers / machine_first:.2f}",
            flush=True,
        )


def make_study(folder: Path, count: int) -> Study:
    """Write noise as photos of two classes, one brighter than the other, and split them."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "photos" / ("dark", "bright")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 150, (240, 320, 3), dtype=np.uint8) + np.uint8(60 * (number % 2))
        Image.fromarray(pixels).save(path)
    study = Study("benchmark", folder / "data", folder / "results")
    import_folder(study.data, folder / "photos", show_progress=False)
    photos = read_photos(study.data).sort_values(["label", "sha256"])
    splits = pd.DataFrame({"sha256": photos["sha256"], "label": photos["label"], "group": photos["sha256"]})
    splits["split"] = ["validation" if number % 4 == 3 else "train" for number in range(len(splits))]
    study.folder.mkdir(parents=True)
    splits.to_csv(study.splits, index=False)
    return study


def time_sweep(study: Study, workers: int, options: argparse.Namespace) -> tuple[float, float]:
    """Give the seconds of a sweep on a cluster that is already up, and the sum over its cells."""
    cells = [Cell("baseline_cnn", "torch", seed=seed, epochs=options.epochs) for seed in range(workers * options.cells)]
    cluster = Cluster()
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1, object_store_memory=200_000_000, memory=4_000_000_000)
        started = time.perf_counter()
        table = run_sweep(study, cells, on=cluster.address, show_progress=False)
        seconds = time.perf_counter() - started
    finally:
        cluster.shutdown()
    if (table["error"] != "").any():
        raise RuntimeError(f"a cell failed: {table['error'].max()}")
    return seconds, table["seconds"].sum()


def time_machine(workers: int) -> float:
    """Give the rounds a second of a loop of arithmetic in so many processes."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(spin, [1000] * workers))
        started = time.perf_counter()
        list(pool.map(spin, [3_000_000] * workers))
        return workers / (time.perf_counter() - started)


def spin(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += number * number % 7
    return total


if __name__ == "__main__":
    main()
