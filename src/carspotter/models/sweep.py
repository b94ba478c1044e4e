"""Many runs: experiments × frameworks × image sizes × seeds, each in a process of its own, here or on a cluster.

A cell that fails is reported and the others go on; asking again trains what is missing, and resumes what was killed.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from carspotter.models.cluster import run_on_ray
from carspotter.models.experiments import SERIES, TRAINING_DTYPES
from carspotter.models.runs import FRAMEWORKS, load_or_train, read_runs, specify_run
from carspotter.paths import Study
from carspotter.progress import progress_bar

AXES = {"experiments": "experiment", "frameworks": "framework", "image_sizes": "image_size", "seeds": "seed"}
COMMON = ("epochs", "dtype", "quick")


@dataclass(frozen=True)
class Cell:
    """One run to be made: the arguments of `runs.load_or_train`."""

    experiment: str
    framework: str = "keras"
    image_size: int | None = None  # the experiment's own
    seed: int = 0
    epochs: int | None = None
    quick: bool = False
    dtype: str | None = None  # the experiment's own

    def __post_init__(self):
        if self.image_size is None and self.experiment in SERIES:
            object.__setattr__(self, "image_size", SERIES[self.experiment].image_size)

    def __str__(self) -> str:
        return f"{self.experiment}, {self.framework}, {self.image_size} px, seed {self.seed}"


def read_sweep(path: Path) -> list[Cell]:
    """Read the cells of a sweep from TOML: `experiments = ["dropout"]`, and where wanted `frameworks`, `image_sizes`,
    `seeds` (lists), `epochs`, `dtype`, `quick`.

    Raises ValueError, naming the file, for anything unknown.
    """
    try:
        sweep = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from error
    known = {*AXES, *COMMON}
    if unknown := set(sweep) - known:
        raise ValueError(f"{path}: {', '.join(sorted(unknown))} is unknown; use {', '.join(sorted(known))}")
    if not sweep.get("experiments"):
        raise ValueError(f"{path}: experiments is missing; name some of {', '.join(SERIES)}")
    for axis, allowed in (("experiments", SERIES), ("frameworks", FRAMEWORKS)):
        if wrong := set(sweep.get(axis, [])) - set(allowed):
            raise ValueError(f"{path}: {axis} has {', '.join(sorted(wrong))}; use some of {', '.join(allowed)}")
    if wrong := [axis for axis in AXES if not isinstance(sweep.get(axis, []), list)]:
        raise ValueError(f"{path}: {wrong[0]} is {sweep[wrong[0]]!r}; write a list, as in seeds = [0, 1, 2]")
    if sweep.get("dtype", "float32") not in TRAINING_DTYPES:
        raise ValueError(f"{path}: dtype is {sweep['dtype']!r}; use one of {', '.join(TRAINING_DTYPES)}")
    axes = [[(field, value) for value in sweep[axis]] for axis, field in AXES.items() if axis in sweep]
    common = {name: sweep[name] for name in COMMON if name in sweep}
    return [Cell(**dict(values), **common) for values in itertools.product(*axes)]


def run_sweep(
    study: Study,
    cells: Iterable[Cell],
    processes: int = 1,
    on: str = "local",
    cpus: int = 1,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Make the runs of `cells`: one row per cell, its fields, run, validation accuracy, seconds, error.

    `on` is local, `processes` at a time; or ray (see `cluster.run_on_ray`), ray://HOST:PORT or a cluster's HOST:PORT,
    with `cpus` for each cell. The table is the same. error is "" where the run is recorded; a cell that fails, or whose
    process is killed, does not stop the others. seconds are what was spent on a cell now, 0 where it was recorded.
    """
    cells = list(dict.fromkeys(cells))
    recorded = set(read_runs(study)["run"])
    runs = {cell: _run_of(study, cell) for cell in cells}
    results = {cell: {"run": run, "seconds": 0.0, "error": ""} for cell, run in runs.items() if run in recorded}
    missing = [cell for cell in cells if cell not in results]
    with progress_bar(len(cells), "sweep", "runs", show_progress, done=len(results)) as progress:
        for cell, result in _run_cells(study, missing, processes, on, cpus):
            results[cell] = result
            if result["error"]:
                progress.write(f"failed: {cell}: {result['error']}", file=sys.stderr)
            progress.update()
    accuracies = read_runs(study).set_index("run")["best_validation_accuracy"]
    for result in results.values():
        result["best_validation_accuracy"] = float(accuracies[result["run"]]) if result["run"] else float("nan")
    return pd.DataFrame([asdict(cell) | results[cell] for cell in cells])


def _run_of(study: Study, cell: Cell) -> str:
    """Name the run that a cell makes; "" where it can make none, which its process will then explain."""
    arguments = asdict(cell)
    try:
        return specify_run(study, SERIES[arguments.pop("experiment")], **arguments)["run"]
    except ValueError:
        return ""


def _run_cells(study: Study, cells: list[Cell], processes: int, on: str, cpus: int) -> Iterator[tuple[Cell, dict]]:
    """Run cells wherever they are to be run, and give each with its result as it is finished."""
    if not cells:
        return
    if on != "local":
        yield from run_on_ray(study, {cell: asdict(cell) for cell in cells}, None if on == "ray" else on, cpus)
        return
    with ThreadPoolExecutor(processes) as pool:
        waiting = {pool.submit(_run_cell, study, cell, processes): cell for cell in cells}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            # After Ctrl-C the cells that have not begun must not begin.
            pool.shutdown(wait=False, cancel_futures=True)


def _run_cell(study: Study, cell: Cell, processes: int) -> dict:
    """Train one cell in a process of its own: one framework each, and no crash reaches the sweep."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), threads)
    # The package may be on this process' path only, in a checkout that is not installed.
    found_from = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    message = json.dumps({"study": [study.name, str(study.data), str(study.results)], "cell": asdict(cell)})
    finished = subprocess.run(
        [sys.executable, "-c", "from carspotter.models.sweep import main; main()"],
        input=message, capture_output=True, text=True, env=limits | os.environ | {"PYTHONPATH": found_from},
    )  # fmt: skip
    result = {"run": "", "seconds": time.perf_counter() - started, "error": ""}
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or [f"the process ended with status {finished.returncode}"]
        return result | {"error": lines[-1]}
    return result | {"run": finished.stdout.split()[-1]}


def main() -> None:
    """Train the cell that standard input describes and print its run's name: a sweep's process starts here."""
    message = json.load(sys.stdin)
    name, data, results = message["study"]
    arguments = dict(message["cell"])
    experiment = SERIES[arguments.pop("experiment")]
    run = load_or_train(Study(name, Path(data), Path(results)), experiment, **arguments, show_progress=False)
    print(run.id)
