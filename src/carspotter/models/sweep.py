"""Many runs, each in a process of its own, here or on a cluster; one that fails does not stop the others."""

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd

from carspotter.models.cluster import THREADS, RayEngine
from carspotter.models.experiments import SERIES, TRAINING_DTYPES, Experiment, quick
from carspotter.models.runs import estimate_seconds, find_run, load_or_train, starting_experiment
from carspotter.models.store import FRAMEWORKS, read_runs
from carspotter.paths import Study
from carspotter.progress import progress_bar

AXES = {"experiments": [], "frameworks": ["keras"], "image_sizes": [None], "seeds": [0]}  # with their defaults
MANY = range(1, 10_000)
ALLOWED = {  # in a sweep's file, and in its lists: the values of each key, () for any text
    "experiments": SERIES, "frameworks": FRAMEWORKS, "image_sizes": MANY, "seeds": range(2**32),
    "epochs": MANY, "dtype": TRAINING_DTYPES, "weights": (), "quick": (True, False),
}  # fmt: skip
# What a user can cause and a line explains; anything else is a mistake in the program, and shows where it was made.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError, MemoryError)


@dataclass(frozen=True)
class Cell:
    """One run to be made: the arguments of `runs.load_or_train`."""

    experiment: Experiment
    framework: str = "keras"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.experiment.name}, {self.framework}, {self.experiment.image_size} px, seed {self.seed}"

    @property
    def start(self) -> Self | None:
        """Return the cell that must be made first, where the experiment starts from another."""
        before = starting_experiment(self.experiment)
        return before and Cell(before, self.framework, self.seed)


def read_sweep(path: Path) -> list[Cell]:
    """Read the cells of a sweep from TOML. Raises ValueError, naming the file, for anything unknown."""
    try:
        sweep = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not TOML in UTF-8: {error}") from error
    for name, value in sweep.items():
        if name not in ALLOWED:
            raise ValueError(f"{path}: {name} is unknown; use {', '.join(sorted(ALLOWED))}")
        if name in AXES and not (isinstance(value, list) and value):
            raise ValueError(f"{path}: {name} is {value!r}; it is a list, see `sweep --help`")
        for one in value if name in AXES else [value]:
            _check_value(path, name, one)
    if "experiments" not in sweep:
        raise ValueError(f"{path}: experiments is missing; name some of {', '.join(SERIES)}")
    changes = {name: sweep[name] for name in ("epochs", "dtype", "weights") if name in sweep}
    cells = []
    for name, framework, size, seed in itertools.product(*(sweep.get(axis, unless) for axis, unless in AXES.items())):
        experiment = quick(SERIES[name]) if sweep.get("quick") else SERIES[name]
        cells.append(Cell(replace(experiment, **changes, **({"image_size": size} if size else {})), framework, seed))
    return cells


def _check_value(path: Path, name: str, value: Any) -> None:
    allowed = ALLOWED[name]
    # Of one kind, too: to Python, true is 1.
    if type(value) is type(next(iter(allowed), "")) and (not allowed or value in allowed):
        return
    if isinstance(allowed, range):
        words = f"a whole number from {allowed[0]} to {allowed[-1]}"
    else:
        words = f"one of {', '.join(map(str, allowed))}".lower() if allowed else "a text"
    raise ValueError(f"{path}: {name} has {value!r}; use {words}")


def run_sweep(
    study: Study,
    cells: Iterable[Cell],
    processes: int = 1,
    on: str = "local",
    cpus: int = 1,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Make the runs of `cells`: one row per cell, its fields, run, validation accuracy, seconds, error.

    `on` is local, `processes` at a time; or ray, ray://HOST:PORT or HOST:PORT, with `cpus` for each cell. What a cell
    starts from is made too. error is "" where the run is recorded; seconds are 0 where it was recorded before.
    """
    cells = list(dict.fromkeys(cell for asked in cells for cell in (asked.start, asked) if cell))
    results = {cell: {"run": run, "seconds": 0.0, "error": ""} for cell in cells if (run := _recorded(study, cell))}
    missing = [cell for cell in cells if cell not in results]
    estimates = (estimate_seconds(study, cell.experiment, cell.framework) for cell in missing)
    if show_progress and (known := list(filter(None, estimates))):
        about = f"about {sum(known) / processes / 60:.0f} min for {len(known)} of them, by recorded runs"
        print(f"{len(missing)} runs to make, {about}", file=sys.stderr, flush=True)
    with progress_bar(len(cells), "sweep", "runs", show_progress, done=len(results)) as progress:
        for cell, result in _run_cells(study, missing, processes, on, cpus) if missing else ():
            if result["error"]:
                said = result.get("traceback") or result["error"]
                progress.write(f"failed: {cell}: {said}", file=sys.stderr)
            results[cell] = {name: result[name] for name in ("run", "seconds", "error")}
            progress.update()
    rows = []
    for cell in cells:
        fields = {"experiment": cell.experiment.name, "framework": cell.framework, "seed": cell.seed}
        fields |= {name: getattr(cell.experiment, name) for name in ("image_size", "epochs", "dtype")}
        rows.append(fields | results[cell])
    accuracies = read_runs(study).set_index("run")["best_validation_accuracy"].astype(float)
    table = pd.DataFrame(rows)
    return table.assign(best_validation_accuracy=table["run"].map(accuracies))


def _recorded(study: Study, cell: Cell) -> str | None:
    """Return the run of a cell where it is recorded; None also where none can be made, which its process explains."""
    try:
        return find_run(study, cell.experiment, cell.framework, cell.seed)
    except EXPECTED:
        return None


def _run_cells(study: Study, cells: list[Cell], processes: int, on: str, cpus: int) -> Iterator[tuple[Cell, dict]]:
    """Run cells wherever they are to be run, each after the one it starts from; yield it when it is finished."""
    engine = LocalEngine(study, processes) if on == "local" else RayEngine(study, None if on == "ray" else on, cpus)
    todo, running, failed = list(cells), {}, set()
    with _heard_interrupts() as pressed, engine:
        while todo or running:
            for cell in list(todo):
                if cell.start in failed:
                    todo.remove(cell)
                    failed.add(cell)
                    yield cell, {"run": "", "seconds": 0.0, "error": f"it starts from {cell.start}, which failed"}
                elif cell.start not in todo and cell.start not in running.values():
                    todo.remove(cell)
                    running[engine.submit(cell, _recorded(study, cell.start) if cell.start else None)] = cell
            if running:
                finished = set()
                while not finished:
                    if pressed.is_set():
                        raise KeyboardInterrupt
                    finished = wait(running, timeout=1, return_when=FIRST_COMPLETED).done
                done = next(iter(finished))
                cell, result = running.pop(done), engine.result(done)
                if result["error"]:
                    failed.add(cell)
                yield cell, result


@contextlib.contextmanager
def _heard_interrupts() -> Iterator[threading.Event]:
    """Note every Ctrl-C: Python loses one that is raised in a `__del__`, as of a reference of Ray's client."""
    pressed, before = threading.Event(), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield pressed  # signals are another's business
        return

    def note(number, frame) -> None:
        pressed.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class LocalEngine(contextlib.AbstractContextManager):
    """Processes on this machine: one framework in each, and no crash reaches the sweep."""

    def __init__(self, study: Study, processes: int):
        self.study, self.processes, self.pool = study, processes, ThreadPoolExecutor(processes)

    def __exit__(self, *_) -> None:
        # After Ctrl-C the cells that have not begun must not begin.
        self.pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, cell: Cell, start: str | None) -> Future:
        return self.pool.submit(self._run, cell)

    def result(self, task: Future) -> dict:
        return task.result()

    def _run(self, cell: Cell) -> dict:
        threads = dict.fromkeys(THREADS, str(max(1, (os.cpu_count() or 1) // self.processes)))
        # The package may be on this process' path only, in a checkout that is not installed.
        found_from = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="carspotter-") as folder:
            asked, answer = Path(folder) / "cell", Path(folder) / "result"
            asked.write_bytes(pickle.dumps((self.study, cell)))
            with subprocess.Popen(
                [sys.executable, "-c", "from carspotter.models import sweep; sweep.main()", asked, answer],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env=threads | os.environ | {"PYTHONPATH": found_from},
            ) as process:  # fmt: skip
                said = process.stderr.read().decode(errors="replace").strip()
            if answer.exists():
                return pickle.loads(answer.read_bytes())
        status = process.returncode
        why = f"its process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"
        return {"run": "", "seconds": time.perf_counter() - started, "error": why, "traceback": f"{why}\n{said}"}


def main() -> None:
    """Train the cell in one file and write the result to another: a process of a sweep, which ends with the sweep."""
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    asked, answer = map(Path, sys.argv[1:])
    answer.write_bytes(pickle.dumps(train_cell(*pickle.loads(asked.read_bytes()))))


def _end_with_sweep() -> None:
    os.read(0, 1)  # nothing is ever sent: this returns when the other end is closed, however the sweep ended
    os._exit(1)


def train_cell(study: Study, cell: Cell) -> dict[str, Any]:
    """Train a cell; return run, seconds and error, and the traceback of an unexpected error."""
    started = time.perf_counter()
    result = {"run": "", "error": "", "traceback": ""}
    try:
        result["run"] = load_or_train(study, cell.experiment, cell.framework, cell.seed, show_progress=False).id
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}".strip()
        if not isinstance(error, EXPECTED) or os.environ.get("CARSPOTTER_DEBUG"):
            result["traceback"] = traceback.format_exc()
    return result | {"seconds": time.perf_counter() - started}
