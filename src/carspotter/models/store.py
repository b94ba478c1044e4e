"""Recorded runs on disk. Only `Run.model` and `Run.predict` need a framework."""

import contextlib
import ctypes
import difflib
import hashlib
import importlib
import json
import os
import pickle
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from carspotter.models.experiments import Experiment
from carspotter.models.metrics import softmax
from carspotter.paths import Study, atomic_write
from carspotter.photos.journal import hold
from carspotter.photos.table import write_table

# Raise this by hand when training changes meaning: runs recorded before are then no longer taken for the same.
RECIPE_VERSION = 2

PREDICTIONS, STATE = "validation_epochs.npz", "resume.state"
FILES = ("spec.json", "history.csv", "validation.csv", PREDICTIONS)  # of a finished run, beside its checkpoint
CHECKPOINTS = {"keras": "checkpoint.weights.h5", "torch": "checkpoint.pt", "tensorflow": "checkpoint.weights.h5"}
FRAMEWORKS = ("keras", "torch", "tensorflow")
COLUMNS = [
    "run", "experiment", "framework", "seed", "epochs", "quick", "train_on", "weights", "image_size", "dtype",
    "split_version", "recipe_version", "classes", "train_photos", "validation_photos", "parameters", "best_epoch",
    "best_validation_accuracy", "best_validation_loss", "best_inference_train_accuracy", "last_train_accuracy",
    "last_inference_train_accuracy", "last_validation_accuracy", "mean_last_five_validation_accuracy", "seconds",
    "processor_seconds", "photos_per_second", "device", "commit", "versions", "finished_time",
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run, as recorded; the checkpoint, which is not in git, may be missing."""

    id: str
    folder: Path
    spec: dict[str, Any]  # spec.json
    row: dict[str, Any]  # as in runs.csv
    history: pd.DataFrame  # one row per epoch: the columns HISTORY; losses in nats, accuracies 0 … 1
    validation: pd.DataFrame  # at the best epoch: sha256, label, one column of probabilities per class

    @cached_property
    def epoch_probabilities(self) -> np.ndarray:
        """Return the probabilities of `validation` after each epoch, to 3 digits: float32 (epochs, N, classes)."""
        with np.load(self.folder / PREDICTIONS) as file:
            return softmax(file["scores"].astype(np.float64)).astype(np.float32)

    @property
    def framework(self) -> str:
        return self.spec["framework"]

    @property
    def class_names(self) -> list[str]:
        return self.spec["class_names"]

    @property
    def image_size(self) -> int:
        return int(self.row["image_size"])

    @property
    def experiment(self) -> Experiment:
        """Return the experiment without its training subset. Raises ValueError for runs of an older recipe."""
        if self.spec["recipe_version"] != RECIPE_VERSION:
            raise ValueError(
                f"{self.id}: recorded with recipe {self.spec['recipe_version']}, this is recipe {RECIPE_VERSION}; its "
                "history and predictions can be read, its experiment and model cannot: train it anew"
            )
        fields = self.spec["experiment"]
        changed = {"conv_channels": tuple(fields["conv_channels"]), "training_subset": None}
        return Experiment(**fields | changed)

    @property
    def minutes(self) -> float:
        """Return how long training took, in processor minutes."""
        return float(self.row["processor_seconds"]) / 60

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINTS[self.framework]

    @cached_property
    def model(self) -> Any:
        """Return the trained model, in its own framework. Raises FileNotFoundError without its checkpoint."""
        if not self.checkpoint.exists():
            raise FileNotFoundError(
                f"{self.folder}: no checkpoint (weights are not in git); carspotter.models.runs.train_run with this "
                f"run's experiment, framework and seed trains it again"
            )
        model = import_builder(self.experiment, self.framework).build_model(self.experiment, len(self.class_names))
        load_weights(self.framework, model, self.checkpoint)
        return model

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the class probabilities of images uint8 (N, S, S, 3): float32 (N, classes), as `class_names`."""
        size = self.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"{self.id} needs images uint8 (N, {size}, {size}, 3), not {images.dtype} {images.shape}")
        return import_framework(self.framework).predict(self.model, images, self.experiment)

    def summary(self) -> pd.DataFrame:
        """Return accuracies, gap, epochs, minutes and device as a table of one column."""
        row, last_five = self.row, self.row["mean_last_five_validation_accuracy"]
        trained = float(row["last_inference_train_accuracy"] or "nan")  # runs recorded with 0.1.0 may not have it
        lines = {
            "training accuracy, last epoch, in evaluation mode": f"{trained:.3f}",
            "validation accuracy, mean of the last five epochs": f"{last_five:.3f}",
            "validation accuracy, best epoch (chosen on validation)": f"{row['best_validation_accuracy']:.3f}",
            "gap, the first minus the second": f"{trained - last_five:.3f}",
            "epochs": f"{len(self.history)}, best {row['best_epoch']}",
            "processor minutes": f"{self.minutes:.1f}",
            "device": row["device"],
            "commit": row["commit"],
        }
        return pd.DataFrame({self.id: lines})


def read_runs(study: Study) -> pd.DataFrame:
    """Return the study's finished runs, one row each, with the columns COLUMNS."""
    if not study.runs_table.exists():
        return pd.DataFrame(columns=COLUMNS)
    text = {"commit": str, "split_version": str, "train_on": str, "weights": str}
    try:
        table = pd.read_csv(study.runs_table, keep_default_na=False, dtype=text | {"seed": int})
        if "run" not in table:
            raise ValueError("it has no column run")
    except ValueError as error:  # of an empty file, or of the marks that git leaves where a merge has a conflict
        remedy = "restore it from git; after a merge, keep the rows of both sides and take git's marks out"
        raise ValueError(f"{study.runs_table}: not a table of runs ({error}); {remedy}") from None
    return table.reindex(columns=COLUMNS, fill_value="")  # a column that is younger than the table is empty


def how_to_train(study: Study) -> str:
    """Return the advice for a study that lacks a run."""
    return f"train one: carspotter train fast_recipe --study {study.name}"


def subset_digest(subset: Iterable[str]) -> str:
    """Return the name of a training subset in runs.csv: 12 hex digits over the sorted hashes of its photos."""
    return hashlib.sha256("\n".join(sorted(subset)).encode()).hexdigest()[:12]


def load_run(study: Study, run_id: str) -> Run:
    """Return the recorded run `run_id`. Raises ValueError where the study has none of that name, or not its files."""
    rows = read_runs(study)
    row = rows[rows["run"] == run_id]
    if row.empty:
        near = difflib.get_close_matches(run_id, rows["run"], n=5, cutoff=0.3)
        known = f"did you mean {', '.join(near)}?" if near else f"it has {len(rows)} runs"
        raise ValueError(f"{study.runs_table}: no run {run_id!r}; {known}")
    folder = study.runs / run_id
    try:
        return Run(
            id=run_id,
            folder=folder,
            spec=json.loads((folder / "spec.json").read_text(encoding="utf-8")),
            row=row.iloc[0].to_dict(),
            history=pd.read_csv(folder / "history.csv"),
            validation=pd.read_csv(folder / "validation.csv", dtype={"sha256": str, "label": str}),
        )
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename} is missing, though runs.csv lists its run; restore it from git or delete the row"
        ) from None


def append_row(study: Study, row: dict[str, Any]) -> None:
    """Append one row to runs.csv, atomically and one process at a time; it replaces a row of the same run."""
    with hold(study.folder / ".lock"):
        rows = read_runs(study)
        rows = rows[rows["run"] != row["run"]]
        new = pd.DataFrame([row], columns=COLUMNS)
        write_table(study.runs_table, new if rows.empty else pd.concat([rows, new], ignore_index=True))


def import_framework(framework: str) -> ModuleType:
    """Import the lesson file of `framework`. Raises ImportError with advice where the framework is missing."""
    if platform.libc_ver()[0] == "glibc":
        # Keep freed memory for the next step (M_MMAP_MAX 0, M_TRIM_THRESHOLD at its most): the system fills fresh
        # pages with zeros, which cost PyTorch a third of its time.
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0), libc.mallopt(-1, 2**31 - 1)
    # PyTorch's threads sleep while they wait for one another. By default they spin, which on a busy machine takes up
    # the time that the others need: an epoch took five times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with without_banner():
            return importlib.import_module(f"carspotter.models.{framework}_cnn")
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; install it with: pip install 'carspotter[{framework}]'") from error


def import_builder(experiment: Experiment, framework: str) -> ModuleType:
    """Import what builds the experiment's model: the lesson file, or the backbones of the framework."""
    lesson = import_framework(framework)
    if experiment.backbone is None:
        return lesson
    if experiment.backbone == "mobilenet_v2" and framework != "keras":
        raise ValueError(f"{experiment.name}: MobileNetV2 runs in Keras only, not in {framework}; use keras")
    return importlib.import_module(f"carspotter.models.{'torch' if framework == 'torch' else 'keras'}_transfer")


def sibling_lines(framework: str) -> int:
    """Return the lines of code in a framework's lesson file, without blank ones, comments and its docstring."""
    text = Path(__file__).with_name(f"{framework}_cnn.py").read_text(encoding="utf-8")
    code = text.split('"""', 2)[2] if text.startswith('"""') else text
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in code.splitlines())


@contextlib.contextmanager
def without_banner() -> Iterator[None]:
    """Hide TensorFlow's banner, which is written before its log level counts."""
    sys.stderr.flush()
    kept, silent = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silent)


def save_weights(framework: str, model: Any, path: Path) -> None:
    """Write a model's weights, in its framework's own format."""
    with atomic_write(path) as part:
        if framework == "torch":
            importlib.import_module("torch").save(model.state_dict(), part)
        else:
            model.save_weights(part)


def load_weights(framework: str, model: Any, path: Path) -> None:
    """Load weights that `save_weights` wrote."""
    if framework == "torch":
        weights = importlib.import_module("torch").load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(weights)
    else:
        model.load_weights(path)


def save_state(folder: Path, state: Any) -> None:
    """Write all that a killed training needs to go on, replacing that of an earlier epoch."""
    with atomic_write(folder / STATE) as part:
        part.write_bytes(pickle.dumps(state))


def load_state(folder: Path) -> Any:
    """Return what `save_state` wrote last, None where there is nothing."""
    path = folder / STATE
    return pickle.loads(path.read_bytes()) if path.exists() else None


def write_predictions(folder: Path, probabilities: np.ndarray) -> None:
    """Write the validation probabilities after each epoch, (epochs, N, classes), for `Run.epoch_probabilities`."""
    # Logarithms, less the largest: float16 would round probabilities near 1 together, and ties decide accuracies.
    logarithms = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    scores = (logarithms - logarithms.max(axis=-1, keepdims=True)).astype(np.float16)
    with atomic_write(folder / PREDICTIONS) as part:
        np.savez_compressed(part, scores=scores)
