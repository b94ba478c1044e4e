"""What is recorded of runs: a table with a row for each, a folder with spec, history and predictions, a checkpoint.

Reading needs neither a framework nor the photos; only `Run.model` and `Run.predict` load the framework of the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from carspotter.memory import keep_freed_memory
from carspotter.models.experiments import Experiment
from carspotter.models.watch import probabilities_of_epochs, write_whole
from carspotter.paths import Study

FRAMEWORKS = {"keras": "keras_models", "torch": "torch_models", "tensorflow": "tf_models"}
COLUMNS = [
    "run", "experiment", "framework", "seed", "epochs", "quick", "train_on", "weights", "image_size", "dtype",
    "split_version", "recipe_version", "classes", "train_photos", "validation_photos", "parameters", "best_epoch",
    "best_validation_accuracy", "best_validation_loss", "best_inference_train_accuracy", "last_train_accuracy",
    "last_inference_train_accuracy", "last_validation_accuracy", "mean_last_five_validation_accuracy", "seconds",
    "photos_per_second", "device", "commit", "versions", "finished_time",
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
        """What the model said of the photos in `validation` after each epoch: float32 (epochs, N, classes).

        About 3 digits; each photo's most probable class is exact. Raises FileNotFoundError for older runs without.
        """
        return probabilities_of_epochs(self.folder)

    @property
    def class_names(self) -> list[str]:
        return self.spec["class_names"]

    @property
    def experiment(self) -> Experiment:
        fields = self.spec["experiment"]
        channels = tuple(tuple(c) if isinstance(c, list) else c for c in fields["conv_channels"])
        return Experiment(**fields | {"conv_channels": channels})

    @cached_property
    def model(self) -> Any:
        """The trained model, in its own framework; raises FileNotFoundError where the checkpoint is missing."""
        weights = next(iter(sorted(self.folder.glob("checkpoint.*"))), None)
        if weights is None:
            raise FileNotFoundError(
                f"{self.folder}: no checkpoint (weights are not in git); carspotter.models.runs.train_run with this "
                f"run's experiment, framework and seed trains it again"
            )
        framework = import_framework(self.spec["framework"])
        return framework.build_model(self.experiment, len(self.class_names), self.spec["image_size"], weights=weights)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Give the class probabilities of images uint8 (N, S, S, 3): float32 (N, classes), as `class_names`.

        S is the run's image size (`photos.images.decode_image` makes such arrays). Raises ValueError for other shapes
        or types, FileNotFoundError where the checkpoint is missing.
        """
        size = self.spec["image_size"]
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"{self.id} wants images uint8 (N, {size}, {size}, 3), not {images.dtype} {images.shape}; "
                "make them with carspotter.photos.images.decode_image"
            )
        return import_framework(self.spec["framework"]).predict_probabilities(self.model, images)


def read_runs(study: Study) -> pd.DataFrame:
    """Give the study's finished runs, one row each, with the columns COLUMNS; no rows where nothing was trained yet."""
    if not study.runs_table.exists():
        return pd.DataFrame(columns=COLUMNS)
    text = {"commit": str, "split_version": str, "train_on": str}
    # A column that is younger than the table is empty.
    return pd.read_csv(study.runs_table, keep_default_na=False, dtype=text).reindex(columns=COLUMNS, fill_value="")


def load_run(study: Study, run_id: str) -> Run:
    """Give the recorded run `run_id`; raises KeyError where the study has none of that name."""
    rows = read_runs(study)
    row = rows[rows["run"] == run_id]
    if row.empty:
        known = ", ".join(rows["run"]) or "none yet"
        raise KeyError(f"{study.runs_table}: no run {run_id!r}; recorded: {known}")
    folder = study.runs / run_id
    return Run(
        id=run_id,
        folder=folder,
        spec=json.loads((folder / "spec.json").read_text()),
        row=row.iloc[0].to_dict(),
        history=pd.read_csv(folder / "history.csv"),
        validation=pd.read_csv(folder / "validation.csv", dtype={"sha256": str, "label": str}),
    )


def import_framework(framework: str) -> ModuleType:
    """Import the sibling that speaks `framework`; raises ValueError for an unknown name, ImportError with advice."""
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework {framework!r} is unknown; use one of {', '.join(FRAMEWORKS)}")
    keep_freed_memory()
    try:
        with without_banner():
            return importlib.import_module(f"carspotter.models.{FRAMEWORKS[framework]}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; install it with: pip install 'carspotter[{framework}]'") from error


def append_row(study: Study, row: dict[str, Any]) -> None:
    """Append one row to runs.csv, atomically and one process at a time; a row of the same run is replaced."""
    with locked(study.folder, wait=True):
        rows = read_runs(study)
        rows = rows[rows["run"] != row["run"]]
        new = pd.DataFrame([row], columns=COLUMNS)
        table = new if rows.empty else pd.concat([rows, new], ignore_index=True)
        write_whole(study.runs_table, table.to_csv(index=False))


@contextlib.contextmanager
def locked(folder: Path, message: str = "", wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RuntimeError(message) from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def without_banner() -> Iterator[None]:
    """Keep TensorFlow's banner out of terminals and notebooks: it is written before its log level is looked at."""
    sys.stderr.flush()
    kept, silent = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silent)
