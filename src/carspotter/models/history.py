"""What is recorded while a run trains: its epochs, its validation predictions, its best epoch, its progress.

The files grow epoch by epoch and are written whole each time, so that a killed run leaves nothing half.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carspotter.models.metrics import accuracy, log_loss
from carspotter.models.store import (
    append_predictions,
    finished_epochs,
    load_state,
    save_state,
    save_weights,
    suffix_of_weights,
)
from carspotter.paths import atomic_write
from carspotter.progress import progress_bar

HISTORY = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"]
HISTORY += ["processor_seconds", "choosing_loss", "choosing_accuracy"]  # the last two on the half that chooses
GPU = Path("/dev/nvidia0")  # there wherever a driver has found one


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message says in which run and epoch, and what to change."""


class Recorder:
    """A callback of the lesson files: validates after each epoch, records it, keeps the best weights and the state.

    `model` is the one whose weights are kept; it may hold more than what is trained, a frozen backbone. `labels` are
    the class numbers of the validation photos, `groups` what belongs together among them, `predict()` returns their
    probabilities now. Used in `with`, which ends its progress bar.
    """

    def __init__(
        self,
        folder: Path,
        framework: str,
        model: Any,
        labels: np.ndarray,
        groups: np.ndarray,
        predict: Callable[[], np.ndarray],
        epochs: int,
        photos: int,
        show_progress: bool = True,
    ):
        self.folder, self.framework, self.model = folder, framework, model
        self.labels, self.predict, self.epochs, self.photos = labels, predict, epochs, photos
        self.choosing = halves(groups)
        self.show_progress, self.finished = show_progress, finished_epochs(folder)
        self.path = folder / "history.csv"
        self.history = pd.DataFrame(columns=HISTORY)
        if self.finished:  # what a killed call recorded after its last saved state is done again
            self.history = pd.read_csv(self.path).iloc[: self.finished]

    def __enter__(self) -> Recorder:
        on_terminal = self.show_progress and sys.stderr.isatty()
        self.bar = progress_bar(self.epochs, self.folder.name, "epochs", on_terminal, self.finished)
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def on_train_begin(self, model: Any, optimizer: Any, schedule: Any) -> None:
        self.training = model, optimizer, schedule
        load_state(self.framework, self.folder, self.training)
        self.started = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Record the epoch, counted from 0. Raises TrainingDiverged."""
        epoch, probabilities = epoch + 1, self.predict()
        if not (np.isfinite(logs["loss"]) and np.isfinite(probabilities).all()):
            raise TrainingDiverged(
                f"{self.folder.name}: the training loss is {logs['loss']} in epoch {epoch}. Lower learning_rate or "
                f"train in float32; the epochs before are in {self.path}"
            )
        self._add([epoch, logs["loss"], logs["accuracy"]], probabilities)
        if self.best_epoch == epoch:
            save_weights(self.framework, self.model, self._checkpoint(epoch))
        save_state(self.framework, self.folder, epoch, self.training)
        # Only now: the state is on disk, and no resumed run can need an older best epoch.
        for path in self.folder.glob("best-*"):
            if path != self._checkpoint(self.best_epoch):
                path.unlink()
        self._show(epoch)

    @property
    def best_epoch(self) -> int:
        return int(best_epoch(self.history)["epoch"])

    def keep_best(self) -> Path:
        """Make the best epoch's weights the run's checkpoint, and remove what only a resumed training needs."""
        checkpoint = self.folder / f"checkpoint{suffix_of_weights(self.framework)}"
        if (best := self._checkpoint(self.best_epoch)).exists():
            os.replace(best, checkpoint)
        return checkpoint

    def _checkpoint(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch}{suffix_of_weights(self.framework)}"

    def _add(self, figures: list[float], probabilities: np.ndarray) -> None:
        now = time.perf_counter(), time.process_time()
        row = [*figures, log_loss(self.labels, probabilities), accuracy(self.labels, probabilities)]
        row += [round(after - before, 3) for before, after in zip(self.started, now, strict=True)]
        chosen_by = self.labels[self.choosing], probabilities[self.choosing]
        row += [log_loss(*chosen_by), accuracy(*chosen_by)]
        # As the file has them: a resumed run, which reads them there, must come to the same best epoch.
        row = [row[0], *(float(f"{value:.7g}") for value in row[1:])]
        new = pd.DataFrame([row], columns=HISTORY)
        self.history = new if self.history.empty else pd.concat([self.history, new], ignore_index=True)
        with atomic_write(self.path) as part:
            self.history.to_csv(part, index=False, float_format="%.7g")
        append_predictions(self.folder, row[0], probabilities)
        self.started = now

    def _show(self, epoch: int) -> None:
        last = self.history.iloc[-1]
        figures = f"train {last['train_accuracy']:.3f}, validation {last['validation_accuracy']:.3f}"
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update()
        if self.show_progress and self.bar.disable:
            minutes = (self.epochs - epoch) * self.history["seconds"].tail(3).median() / 60
            rate = self.photos / last["seconds"]
            print(
                f"epoch {epoch}/{self.epochs}: {figures}, {rate:.0f} photos/s, about {minutes:.1f} min left",
                file=sys.stderr,
                flush=True,
            )


class StateKeeper:
    """A callback that only lets a killed training go on: where nothing is recorded and no epoch is the best."""

    def __init__(self, folder: Path, framework: str, on_epoch: Callable[[], Any]):
        self.folder, self.framework, self.on_epoch = folder, framework, on_epoch
        self.finished = finished_epochs(folder)

    def on_train_begin(self, model: Any, optimizer: Any, schedule: Any) -> None:
        self.training = model, optimizer, schedule
        load_state(self.framework, self.folder, self.training)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        save_state(self.framework, self.folder, epoch + 1, self.training)
        self.on_epoch()


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """Return the best epoch's row of a history: highest accuracy on the half of `halves`, then lowest loss there."""
    return history.sort_values(["choosing_accuracy", "choosing_loss"], ascending=[False, True]).iloc[0]


def halves(groups, seed: int = 0) -> np.ndarray:
    """Return which validation photos are in the first half of the groups, bool (N,), of `groups` (N,).

    The first half chooses (epoch, recipe, temperature), the other certifies what the photo check promises.
    """
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) < len(names) / 2)[index]


def as_callback(framework: str, model: Any, recorder: Recorder | StateKeeper) -> Any:
    """Return the recorder as the framework's lesson file wants it; Keras hands its callbacks no optimizer."""
    if framework != "keras":
        return recorder

    def on_train_begin(logs: dict | None) -> None:
        model.optimizer.build(model.trainable_variables)  # `fit` does so at the first step, too late to load its state
        recorder.on_train_begin(model, model.optimizer, None)

    return sys.modules["keras"].callbacks.LambdaCallback(
        on_train_begin=on_train_begin, on_epoch_end=recorder.on_epoch_end
    )


def set_random_seed(framework: str, seed: int) -> None:
    """Seed what draws initial weights and dropout in the framework, which is imported."""
    if framework == "torch":
        sys.modules["torch"].manual_seed(seed)
    else:
        sys.modules["keras"].utils.set_random_seed(seed)


def describe_model(framework: str, model: Any) -> dict[str, Any]:
    """Return what a run records of its model and machine: parameters (those that learn), device, versions."""
    if framework == "torch":
        torch = sys.modules["torch"]
        parameters = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
        gpu, version = torch.cuda.is_available(), f"torch {torch.__version__}"
        device = torch.cuda.get_device_name() if gpu else ""
    else:
        keras = sys.modules["keras"]
        backend = keras.backend.backend()
        library = sys.modules[backend]
        parameters = sum(int(np.prod(weights.shape)) for weights in model.trainable_variables)
        gpu = library.cuda.is_available() if backend == "torch" else library.config.list_physical_devices("GPU")
        device, version = "GPU" if gpu else "", f"keras {keras.__version__} on {backend} {library.__version__}"
    return {
        "parameters": parameters,
        "device": device or f"CPU, {os.cpu_count()} cores",
        "versions": f"{version}, numpy {np.__version__}, python {platform.python_version()}",
    }


def explain_device(device: str, framework: str) -> str:
    """Return the device, and for a CPU why it is no GPU."""
    if not device.startswith("CPU"):
        return device
    if GPU.exists():
        return f"{device}: the GPU of this machine is not seen by {framework}; install {framework}'s build for CUDA"
    return f"{device}, no GPU found"
