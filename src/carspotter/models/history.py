"""Record the epochs of a training, keep its best weights, and let a killed one go on."""

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
from carspotter.models.store import load_state, save_state, write_predictions
from carspotter.photos.table import write_table
from carspotter.progress import progress_bar

HISTORY = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"]
HISTORY += ["processor_seconds", "choosing_loss", "choosing_accuracy"]  # the last two on the half that chooses
GPU = Path("/dev/nvidia0")  # there wherever a driver has found one


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number; the message says in which run and epoch, and what to change."""


class StateKeeper:
    """A callback of the lesson files that lets a killed training go on; `kept` is a subclass's part of the state."""

    def __init__(self, folder: Path, framework: str, on_epoch: Callable[[], Any] = lambda: None):
        self.folder, self.framework, self.on_epoch = folder, framework, on_epoch
        self.finished, self.state, self.kept = load_state(folder) or (0, None, {})

    def on_train_begin(self, model: Any, optimizer: Any, schedule: Any) -> None:
        self.training = model, optimizer, schedule
        if self.finished:
            _set_state(self.framework, self.training, self.state)
        self.state = None

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        save_state(self.folder, (epoch + 1, _get_state(self.framework, self.training), self.kept))
        self.on_epoch()


class Recorder(StateKeeper):
    """Validates after each epoch, records it and keeps the best weights; the caller closes its progress `bar`.

    `labels`: class numbers of the validation photos; `groups`: theirs; `predict()` returns their probabilities now.
    """

    def __init__(
        self,
        folder: Path,
        framework: str,
        labels: np.ndarray,
        groups: np.ndarray,
        predict: Callable[[], np.ndarray],
        epochs: int,
        show_progress: bool = True,
    ):
        super().__init__(folder, framework)
        self.kept = self.kept or {"rows": [], "probabilities": [], "best": None}
        self.labels, self.choosing, self.predict = labels, halves(groups), predict
        self.bar = progress_bar(epochs, folder.name, "epochs", show_progress, self.finished)

    def on_train_begin(self, model: Any, optimizer: Any, schedule: Any) -> None:
        super().on_train_begin(model, optimizer, schedule)
        self.started = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Record the epoch, counted from 0. Raises TrainingDiverged."""
        probabilities = self.predict()
        if not (np.isfinite(logs["loss"]) and np.isfinite(probabilities).all()):
            raise TrainingDiverged(
                f"{self.folder.name}: the training loss is {logs['loss']} in epoch {epoch + 1}. Lower learning_rate or "
                f"train in float32; the epochs before are in {self.folder / 'history.csv'}"
            )
        now = time.perf_counter(), time.process_time()
        row = [epoch + 1, logs["loss"], logs["accuracy"]]
        row += [log_loss(self.labels, probabilities), accuracy(self.labels, probabilities)]
        row += [round(after - before, 3) for before, after in zip(self.started, now, strict=True)]
        chosen_by = self.labels[self.choosing], probabilities[self.choosing]
        row += [log_loss(*chosen_by), accuracy(*chosen_by)]
        self.started = now
        self.kept["rows"].append(row)
        self.kept["probabilities"].append(probabilities)
        if best_epoch(self.history)["epoch"] == epoch + 1:
            self.kept["best"] = _get_weights(self.framework, self.training[0])
        write_table(self.folder / "history.csv", self.history, float_format="%.7g")
        super().on_epoch_end(epoch, logs)
        self.bar.set_postfix_str(f"train {row[2]:.3f}, validation {row[4]:.3f}", refresh=False)
        self.bar.update()

    @property
    def history(self) -> pd.DataFrame:
        return pd.DataFrame(self.kept["rows"], columns=HISTORY)

    def finish(self) -> None:
        """Write the predictions of all epochs and load the best epoch's weights into the model."""
        write_predictions(self.folder, np.stack(self.kept["probabilities"]))
        model, best = self.training[0], self.kept["best"]
        model.load_state_dict(best) if self.framework == "torch" else model.set_weights(best)


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """Return the best epoch's row of a history: highest accuracy on the half of `halves`, then lowest loss there."""
    return history.sort_values(["choosing_accuracy", "choosing_loss"], ascending=[False, True]).iloc[0]


def halves(groups, seed: int = 0) -> np.ndarray:
    """Return which photos are in the half of the `groups` (N,) that chooses, bool (N,); the other half certifies."""
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) < len(names) / 2)[index]


def as_callback(framework: str, model: Any, keeper: StateKeeper) -> Any:
    """Return the keeper as the framework's lesson file wants it."""
    if framework != "keras":
        return keeper

    def on_train_begin(logs: dict | None) -> None:
        model.optimizer.build(model.trainable_variables)  # `fit` does so at the first step, too late to load its state
        keeper.on_train_begin(model, model.optimizer, None)

    return sys.modules["keras"].callbacks.LambdaCallback(
        on_train_begin=on_train_begin, on_epoch_end=keeper.on_epoch_end
    )


def set_random_seed(framework: str, seed: int) -> None:
    """Seed initial weights and dropout in the framework, which is imported."""
    if framework == "torch":
        sys.modules["torch"].manual_seed(seed)
    else:
        sys.modules["keras"].utils.set_random_seed(seed)


def describe_model(framework: str, model: Any) -> dict[str, Any]:
    """Return what a run records of its model and machine: parameters that learn, device, versions."""
    if framework == "torch":
        torch = sys.modules["torch"]
        parameters = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        version = f"torch {torch.__version__}"
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
    """Return the device, and for a CPU why no GPU is used."""
    if not device.startswith("CPU"):
        return device
    if GPU.exists():
        return f"{device}: the GPU of this machine is not seen by {framework}; install {framework}'s build for CUDA"
    return f"{device}, no GPU found"


def _get_state(framework: str, training: tuple) -> list:
    """Return everything from which training goes on: weights, optimizer, schedule, and the random state of dropout."""
    if framework == "torch":
        torch = sys.modules["torch"]
        parts = [part.state_dict() for part in training if part]
        return [*parts, torch.get_rng_state(), torch.cuda.get_rng_state_all()]  # an empty list without a GPU
    return [sys.modules["keras"].ops.convert_to_numpy(variable) for variable in _variables(training)]


def _set_state(framework: str, training: tuple, state: list) -> None:
    if framework == "torch":
        torch = sys.modules["torch"]
        *parts, random, on_gpus = state
        for part, values in zip(filter(None, training), parts, strict=True):
            part.load_state_dict(values)
        torch.set_rng_state(random)
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(on_gpus)
    else:
        for variable, values in zip(_variables(training), state, strict=True):
            variable.assign(values)


def _variables(training: tuple) -> list:
    model, optimizer, _ = training
    return [*model.variables, *optimizer.variables]  # Keras' layers of dropout hold their random state


def _get_weights(framework: str, model: Any) -> Any:
    if framework == "torch":
        return {name: values.detach().cpu().clone() for name, values in model.state_dict().items()}
    return model.get_weights()
