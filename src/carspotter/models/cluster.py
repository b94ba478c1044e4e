"""The cells of a sweep as Ray tasks, on one machine or many.

What training reads (no test photo and no sealed label) travels as one archive through Ray's object store, once per
node. The machine that asked writes a finished run into the study, so a node may die at any moment. Nodes need Python
with the frameworks, and backbone weights where the sweep names them; this package is sent along.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from carspotter.models import runs, store
from carspotter.paths import Study
from carspotter.photos.journal import hold, read_journal
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos

if TYPE_CHECKING:
    from carspotter.models.sweep import Cell

RETRIES = 5  # of a cell whose worker or node died; a cell that fails by itself is not tried again
# Behind ray:// a process with many threads forks a server for each connection; on a busy machine it often hangs from
# its first moment, and Ray gives it up after half a minute, or finds it dead. The next one is another.
CONNECTIONS = 5
NO_SERVER = "Initialization failure from server"
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")  # how many a framework uses
BESIDE_IMAGES = 1_500_000_000  # bytes that a framework and its model take, next to the images


class RayEngine:
    """Tasks on a Ray cluster; used in `with`. A result has the keys run, seconds, error; its run is recorded by then.

    `address` as Ray knows it; None: the cluster that `RAY_ADDRESS` names, or a new one on this machine. A cell takes
    `cpus` processors, one GPU where the cluster has any, and memory for its images.
    """

    def __init__(self, study: Study, address: str | None = None, cpus: int = 1):
        self.study, self.address, self.cpus = study, address, cpus

    def __enter__(self) -> RayEngine:
        self.ray = _import_ray()
        self._connect()
        try:
            files = pack_study(self.study)
            self.digest = hashlib.sha256(pickle.dumps(files)).hexdigest()[:16]
            self.photos = len(read_splits(self.study))
            gpus = int(self.ray.cluster_resources().get("GPU", 0) > 0)
            # A fresh process for each cell: one framework in each, and memory that is given back.
            self.task = self.ray.remote(max_calls=1)(_train)
            self.options = {"num_cpus": self.cpus, "num_gpus": gpus, "max_retries": RETRIES}
            self.files = self.ray.put(files)
        except BaseException:
            self.ray.shutdown()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.ray.shutdown()

    def submit(self, cell: Cell, start: str | None) -> Future:
        """Start a cell somewhere; `start` names the recorded run that it goes on from."""
        memory = BESIDE_IMAGES + 3 * self.photos * cell.experiment.image_size**2
        packed = pack_run(self.study, start) if start else None
        task = self.task.options(memory=memory, **self.options)
        return task.remote(self.study.name, cell, self.files, self.digest, packed).future()

    def result(self, task: Future) -> dict:
        """Return the result of a finished task, and record its run."""
        try:
            result = task.result()
        except self.ray.exceptions.RayError as error:
            reason = f"given up after {RETRIES} retries: {str(error).strip().splitlines()[0]}"
            return {"run": "", "seconds": float("nan"), "error": reason}
        if packed := result.pop("packed", None):
            # On a node the package is no checkout.
            packed["row"] |= {"commit": packed["row"]["commit"] or runs.find_commit()}
            unpack_run(self.study, packed)
        return result

    def _connect(self) -> None:
        threads = dict.fromkeys(THREADS, str(self.cpus))
        environment = {"py_modules": [str(Path(__file__).parents[1])], "env_vars": threads}
        for left in reversed(range(CONNECTIONS)):
            try:
                self.ray.init(self.address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
                return
            except Exception as error:  # which is what Ray raises where its own processes do not come up in time
                self.ray.shutdown()
                if not (left and NO_SERVER in str(error)):
                    where = f"at {self.address}" if self.address else "here"
                    raise RuntimeError(f"no Ray cluster {where}: {error}") from error


def pack_study(study: Study) -> dict[str, bytes]:
    """Return what training reads, by its path: split, journal lines and bytes of training and validation photos."""
    splits = read_splits(study)
    wanted = set(splits.loc[splits["split"].isin(["train", "validation"]), "sha256"])
    photos = read_photos(study.data)
    photos = photos[photos["sha256"].isin(wanted)]
    files = {f"results/{study.name}/splits.csv": study.splits.read_bytes()}
    for journal in sorted(study.raw.glob("*/journal.jsonl")):
        lines = [json.dumps(line) for line in read_journal(journal) if line.get("sha256") in wanted]
        files[f"data/raw/{journal.parent.name}/journal.jsonl"] = "".join(f"{line}\n" for line in lines).encode()
    return files | {f"data/{path}": (study.data / path).read_bytes() for path in photos["path"]}


def unpack_study(name: str, files: dict[str, bytes], folder: Path) -> Study:
    """Write what `pack_study` returned into `folder`, once, however many processes ask; return the study there."""
    with hold(folder / ".lock"):
        if not (folder / "study").exists():
            part = folder / "part"
            shutil.rmtree(part, ignore_errors=True)
            for path, content in files.items():
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                (part / path).write_bytes(content)
            os.replace(part, folder / "study")
    return Study(name, folder / "study" / "data", folder / "study" / "results")


def pack_run(study: Study, run_id: str) -> dict[str, Any]:
    """Return a recorded run: its id, its row, its files' bytes by name."""
    run = store.load_run(study, run_id)
    files = {path.name: path.read_bytes() for path in run.folder.iterdir() if not path.name.startswith(".")}
    return {"run": run_id, "row": run.row, "files": files}


def unpack_run(study: Study, packed: dict[str, Any]) -> None:
    """Write a run that `pack_run` returned into the study, its folder first, then its row."""
    study.runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=study.runs, prefix=".part-"))
    for name, content in packed["files"].items():
        (folder / name).write_bytes(content)
    folder.chmod(0o755)
    shutil.rmtree(study.runs / packed["run"], ignore_errors=True)
    os.replace(folder, study.runs / packed["run"])
    store.append_row(study, packed["row"])


def _train(name: str, cell: Cell, files: dict[str, bytes], digest: str, start: dict | None) -> dict:
    """Train one cell where Ray put this process; return its result with the packed run, or with the error."""
    sweep = importlib.import_module("carspotter.models.sweep")
    node = _import_ray().get_runtime_context().get_node_id()
    folder = Path(tempfile.gettempdir()) / f"carspotter-{os.getuid()}-{digest}-{node[:12]}"
    study = unpack_study(name, files, folder)
    if start:
        with hold(folder / ".lock"):
            if start["run"] not in set(store.read_runs(study)["run"]):
                unpack_run(study, start)
    result = sweep.train_cell(study, cell)
    return result if result["error"] else result | {"packed": pack_run(study, result["run"])}


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ImportError("Ray is missing; install it with: pip install 'carspotter[cluster]'") from error
