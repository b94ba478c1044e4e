"""How many runs an hour does a sweep make on Ray with 1, 2, 4 workers, and how much of the ideal is that?

    python -m benchmarks.cluster --workers 1 2 4

Each worker is a node of its own with one processor, on this machine; a cell computes on one thread, all cells are
equal, and every worker gets the same number of them. The nodes are up before the clock runs; starting a process for
each cell, importing the framework, sending data and results are counted. Efficiency is the rate over that of one worker
in the same round, by the number of workers; rounds go up and down, so that no size has the quieter hours. Beside it
stands what the machine itself allows: a loop of arithmetic in as many processes, without Ray. Workers beyond the cores
show what sharing a core does, not scaling.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from ray.cluster_utils import Cluster

from carspotter.models.experiments import BASELINE
from carspotter.models.sweep import Cell, run_sweep
from carspotter.paths import Study
from tests.generated_photos import noise_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="1 among them (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--cells", type=int, default=1, help="for each worker in a round (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="of a cell, about 10 s each (default %(default)s)")
    parser.add_argument("--photos", type=int, default=480, help="a quarter of them for validation")
    options = parser.parse_args()
    if 1 not in options.workers:
        parser.error("--workers needs 1: the others are compared with it")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {options}", flush=True)
    efficiency, ideal = ({workers: [] for workers in options.workers} for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        # Ray's sockets and what the nodes unpack; a socket's path may have 107 bytes.
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": folder, "CUDA_VISIBLE_DEVICES": ""}
        study = noise_study(Path(folder), options.photos, size=(320, 240))
        for number in range(options.rounds):
            sizes = sorted(set(options.workers), reverse=number % 2 == 1)
            rates = {workers: time_sweep(study, workers, number, options) for workers in sizes}
            machine = {workers: time_machine(workers) for workers in sizes}
            for workers in sizes:
                efficiency[workers].append(rates[workers] / workers / rates[1])
                ideal[workers].append(machine[workers] / workers / machine[1])
    for workers in sorted(efficiency):
        found, bound = statistics.median(efficiency[workers]), statistics.median(ideal[workers])
        each = ", ".join(f"{value:.2f}" for value in efficiency[workers])
        print(f"{workers} workers: efficiency {found:.2f} (rounds: {each}), of the machine itself {bound:.2f}")


def time_sweep(study: Study, workers: int, number: int, options: argparse.Namespace) -> float:
    """Return the cells an hour of a sweep on a cluster that is already up."""
    experiment = replace(BASELINE, epochs=options.epochs)
    cells = [Cell(experiment, "torch", seed) for seed in range(workers * options.cells)]
    fresh = replace(study, results=study.results.with_name(f"results-{number}-{workers}"))
    shutil.copytree(study.results, fresh.results)
    cluster = Cluster()
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1, object_store_memory=200_000_000, memory=4_000_000_000, include_dashboard=False)
        cluster.wait_for_nodes()
        started = time.perf_counter()
        table = run_sweep(fresh, cells, on=cluster.address, show_progress=False)
        seconds = time.perf_counter() - started
    finally:
        cluster.shutdown()
    if (table["error"] != "").any():
        raise RuntimeError(f"a cell failed: {table['error'].max()}")
    rate, spent = 3600 * len(cells) / seconds, table["seconds"].sum()
    print(
        f"round {number + 1}, {workers} workers: {len(cells)} cells in {seconds:.0f} s, {rate:.0f} an hour; "
        f"{spent / len(cells):.0f} s a cell",
        flush=True,
    )
    return rate


def time_machine(workers: int) -> float:
    """Return the rounds a second of a loop of arithmetic in so many processes."""
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
