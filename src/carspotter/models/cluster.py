"""The cells of a sweep as Ray tasks, on one machine or many.

How data reach a node: what training reads (the split, the journal lines and the original bytes of the training and
validation photos, no test photo and no sealed label) travels as one archive through Ray's object store, once per node,
which unpacks it into its own temporary folder. A finished run comes back the same way, and the machine that asked
writes it into the study; so a node may die at any moment and leaves nothing half. Nodes need Python with the
frameworks; this package is sent along.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import ModuleType

from carspotter.models import runs
from carspotter.models.experiments import SERIES
from carspotter.paths import Study
from carspotter.photos.journal import read_journal
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos

RETRIES = 5  # of a cell whose worker or node died; a cell that fails by itself is not tried again
# Behind ray:// a process with many threads forks a server for each connection; on a busy machine it often hangs from
# its first moment, and Ray gives it up after half a minute, or finds it dead. The next one is another.
CONNECTIONS = 5
NO_SERVER = "Initialization failure from server"
BESIDE_IMAGES = 1_500_000_000  # bytes that a framework and its model take, next to the images


def run_on_ray(
    study: Study, cells: dict[Hashable, dict], address: str | None = None, cpus: int = 1
) -> Iterator[tuple[Hashable, dict]]:
    """Train `cells`, a name with the arguments of `load_or_train`, and give each with its result as it is finished.

    `address` as Ray knows it (ray://HOST:10001, HOST:6379); by default the running cluster that `RAY_ADDRESS` names, or
    a new one on this machine. A cell takes `cpus` processors, one GPU where the cluster has any, and memory for its
    images. A result has the keys run, seconds and error; the run is recorded before it is given. Ended at any point, it
    goes on with what is not recorded. Raises ImportError without Ray, RuntimeError where no cluster answers.
    """
    ray = _import_ray()
    package = str(Path(__file__).parents[1])
    threads = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), str(cpus))
    environment = {"py_modules": [package], "env_vars": threads}
    for left in reversed(range(CONNECTIONS)):
        try:
            ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
            break
        except Exception as error:  # which is what Ray raises where its own processes do not come up in time
            ray.shutdown()
            if not (left and NO_SERVER in str(error)):
                raise RuntimeError(f"no Ray cluster {f'at {address}' if address else 'here'}: {error}") from error
    try:
        archive = pack_study(study)
        digest = hashlib.sha256(archive).hexdigest()[:16]
        photos = len(read_splits(study))
        options = {"num_cpus": cpus, "num_gpus": int(ray.cluster_resources().get("GPU", 0) > 0), "max_retries": RETRIES}
        # A fresh process for each cell: one framework in each, and memory that is given back.
        task = ray.remote(max_calls=1)(_train)
        shared = ray.put(archive)
        waiting = {}
        for name, arguments in cells.items():
            memory = BESIDE_IMAGES + 3 * photos * arguments["image_size"] ** 2
            waiting[task.options(memory=memory, **options).remote(study.name, arguments, shared, digest)] = name
        with hear_interrupts() as raise_lost:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                name = waiting.pop(done)
                try:
                    result = _record(study, ray.get(done))
                except ray.exceptions.RayError as error:
                    reason = f"given up after {RETRIES} retries: {str(error).strip().splitlines()[0]}"
                    result = {"run": "", "seconds": float("nan"), "error": reason}
                yield name, result
                raise_lost()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def hear_interrupts() -> Iterator[Callable[[], None]]:
    """Give a function that raises KeyboardInterrupt where Ctrl-C was pressed within, and lost.

    Python ignores what is raised in a `__del__`, and those of Ray's client wait for an answer from the cluster.
    """
    before = signal.getsignal(signal.SIGINT)
    pressed = threading.Event()

    def note(number, frame) -> None:
        pressed.set()
        before(number, frame)

    def raise_lost() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield raise_lost  # signals are another's business
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield raise_lost
    finally:
        signal.signal(signal.SIGINT, before)


def pack_study(study: Study) -> bytes:
    """Give a tar file of what training reads: split, journal lines and bytes of training and validation photos."""
    splits = read_splits(study)
    wanted = set(splits.loc[splits["split"].isin(["train", "validation"]), "sha256"])
    photos = read_photos(study.data)
    photos = photos[photos["sha256"].isin(wanted)]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        _add(archive, f"results/{study.name}/splits.csv", study.splits.read_bytes())
        for journal in sorted(study.raw.glob("*/journal.jsonl")):
            lines = [json.dumps(line) for line in read_journal(journal) if line.get("sha256") in wanted]
            _add(
                archive,
                f"data/raw/{journal.parent.name}/journal.jsonl",
                "".join(f"{line}\n" for line in lines).encode(),
            )
        for path in photos["path"]:
            _add(archive, f"data/{path}", (study.data / path).read_bytes())
    return stream.getvalue()


def unpack_study(name: str, archive: bytes, folder: Path) -> Study:
    """Unpack what `pack_study` gave into `folder`, once, however many processes ask; give the study there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "study").exists():
            part = folder / "part"
            shutil.rmtree(part, ignore_errors=True)
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(part, filter="data")
            os.replace(part, folder / "study")
    return Study(name, folder / "study" / "data", folder / "study" / "results")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # Without times and owners: the same study is the same archive.
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _train(name: str, arguments: dict, archive: bytes, digest: str) -> dict:
    """Train one cell where Ray put this process; give the run's row and files, or the error."""
    node = _import_ray().get_runtime_context().get_node_id()
    started = time.perf_counter()
    study = unpack_study(name, archive, Path(tempfile.gettempdir()) / f"carspotter-{os.getuid()}-{digest}-{node[:12]}")
    experiment = SERIES[arguments["experiment"]]
    rest = {key: value for key, value in arguments.items() if key != "experiment"}
    try:
        run = runs.load_or_train(study, experiment, **rest, show_progress=False)
    except Exception as error:  # whatever it is, the other cells go on
        return {"run": "", "seconds": time.perf_counter() - started, "error": f"{type(error).__name__}: {error}"}
    files = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    return {"run": run.id, "row": run.row, "files": files, "seconds": time.perf_counter() - started, "error": ""}


def _record(study: Study, result: dict) -> dict:
    """Write a run that came back into the study, its folder first, then its row."""
    if not result["error"]:
        study.runs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=study.runs, prefix=".part-"))
        for name, content in result["files"].items():
            (folder / name).write_bytes(content)
        folder.chmod(0o755)
        shutil.rmtree(study.runs / result["run"], ignore_errors=True)
        os.replace(folder, study.runs / result["run"])
        # On a node the package is no checkout.
        runs.append_row(study, result["row"] | {"commit": result["row"]["commit"] or runs.find_commit()})
    return {key: result[key] for key in ("run", "seconds", "error")}


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ImportError("Ray is missing; install it with: pip install 'carspotter[cluster]'") from error
