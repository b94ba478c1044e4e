"""What is seen while a run trains: its history, its validation predictions, its best epoch, its progress.

Both files grow epoch by epoch and are written whole each time, so that a killed run leaves nothing half.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from carspotter.models.metrics import accuracy, log_loss

HISTORY = ["epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"]
EPOCHS = "validation_epochs.npz"
GPU = Path("/dev/nvidia0")  # there wherever a driver has found one


class TrainingDiverged(ArithmeticError):
    """The loss is no longer a finite number; the message says in which run and epoch, and what to change."""


class Watch:
    """Writes the history and the predictions of each epoch, knows the best one; stops a run that diverges.

    `labels` are the class numbers of the validation photos. Used in `with`, for the sake of its progress bar.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        folder: Path,
        device: str,
        train_photos: int,
        labels: np.ndarray,
        show_progress: bool,
    ):
        self.spec, self.folder, self.train_photos, self.labels = spec, folder, train_photos, labels
        self.path = folder / "history.csv"
        self.history = pd.read_csv(self.path) if self.path.exists() else pd.DataFrame(columns=HISTORY)
        self.scores = list(np.load(folder / EPOCHS)["scores"]) if (folder / EPOCHS).exists() else []
        self.show_progress, self.bar, self.started = show_progress, None, time.perf_counter()
        self.headline = f"{spec['run']}: {train_photos} photos of {spec['image_size']} px, {_explain(device, spec)}"

    def __enter__(self) -> Watch:
        if self.show_progress and sys.stderr.isatty():
            resumed = len(self.history) if any(self.folder.glob("resume.*")) else 0
            self.bar = tqdm(
                total=self.train_photos * self.spec["epochs"], initial=self.train_photos * resumed,
                desc=self.spec["run"], unit=" photos", smoothing=0.05, dynamic_ncols=True,
            )  # fmt: skip
        elif self.show_progress:
            print(self.headline, file=sys.stderr, flush=True)
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_batch(self, photos: int) -> None:
        if self.bar is not None:
            self.bar.update(photos)

    def on_epoch(self, epoch: int, train_loss: float, train_accuracy: float, probabilities: np.ndarray) -> bool:
        """Record epoch `epoch`; True when it is the best so far: highest validation accuracy, then lowest loss."""
        seconds, self.started = time.perf_counter() - self.started, time.perf_counter()
        if not (np.isfinite(train_loss) and np.isfinite(probabilities).all()):
            raise TrainingDiverged(
                f"{self.spec['run']}: the training loss is {train_loss} in epoch {epoch}. Lower learning_rate (it is "
                f"{self.spec['experiment']['learning_rate']}) or train in float32; the epochs before are in {self.path}"
            )
        # What a killed process recorded after its last saved state is repeated, and recorded anew.
        history = self.history[self.history["epoch"] < epoch]
        row = [epoch, float(train_loss), float(train_accuracy)]
        row += [log_loss(self.labels, probabilities), accuracy(self.labels, probabilities), round(seconds, 3)]
        # As the file has them: a resumed run, which reads them there, must come to the same best epoch.
        row = [epoch, *(float(f"{value:.7g}") for value in row[1:])]
        new = pd.DataFrame([row], columns=HISTORY)
        self.history = new if history.empty else pd.concat([history, new], ignore_index=True)
        write_whole(self.path, self.history.to_csv(index=False, float_format="%.7g"))
        self.scores = [*self.scores[: epoch - 1], _scores(probabilities)]
        _save_scores(self.folder / EPOCHS, self.scores)
        best = int(self.best()["epoch"])
        self._drop_checkpoints(keep=best, before=epoch)
        self._show(epoch, row)
        return best == epoch

    def best(self) -> pd.Series:
        return best_epoch(self.history)

    def _drop_checkpoints(self, keep: int, before: int) -> None:
        # The state of the epoch before is on disk by now, so no resumed run can want an older best one again; the
        # best one so far stays, in case this epoch is interrupted before its own checkpoint is written.
        earlier = self.history[self.history["epoch"] < before]
        if earlier.empty:
            return
        kept = {keep, int(best_epoch(earlier)["epoch"])}
        for path in self.folder.glob("checkpoint_*"):
            if int(path.name.split("_")[1].split(".")[0]) not in kept:
                path.unlink()

    def _show(self, epoch: int, row: list[float]) -> None:
        figures = f"train {row[2]:.3f}, validation {row[4]:.3f}"
        if self.bar is not None:
            self.bar.set_postfix_str(figures)
        elif self.show_progress:
            left = (self.spec["epochs"] - epoch) * row[5]
            print(
                f"epoch {epoch}/{self.spec['epochs']}: {figures}, {self.train_photos / row[5]:.0f} photos/s, "
                f"{left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )


def best_epoch(history: pd.DataFrame) -> pd.Series:
    """Give the best epoch's row of a history: highest validation accuracy, then lowest loss."""
    return history.sort_values(["validation_accuracy", "validation_loss"], ascending=[False, True]).iloc[0]


def probabilities_of_epochs(folder: Path) -> np.ndarray:
    """Give a run's validation probabilities after each epoch: float32 (epochs, N, classes).

    Good to about 3 digits, and each photo's most probable class is exact. Raises FileNotFoundError for a run that was
    recorded before they were kept.
    """
    path = folder / EPOCHS
    if not path.exists():
        raise FileNotFoundError(f"{path}: this run kept no predictions of its epochs; train_run records it anew")
    with np.load(path) as file:
        exponentials = np.exp(file["scores"].astype(np.float64))
    return (exponentials / exponentials.sum(axis=2, keepdims=True)).astype(np.float32)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old one or the new one."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text)
    os.replace(partial, path)


def _explain(device: str, spec: dict[str, Any]) -> str:
    """Say of a run without a GPU why it has none."""
    if not device.startswith("CPU"):
        return device
    if GPU.exists():
        framework = spec["framework"]
        return f"{device}: the GPU of this machine is not seen by {framework}; install {framework}'s build for CUDA"
    return f"{device}, no GPU found"


def _scores(probabilities: np.ndarray) -> np.ndarray:
    # Logarithms, less the largest: float16 would round probabilities near 1 together, and ties decide accuracies.
    logarithms = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    return (logarithms - logarithms.max(axis=1, keepdims=True)).astype(np.float16)


def _save_scores(path: Path, scores: list[np.ndarray]) -> None:
    partial = path.with_suffix(".part.npz")
    np.savez_compressed(partial, scores=np.stack(scores))
    os.replace(partial, path)
