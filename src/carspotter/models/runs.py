"""One experiment, one framework, one seed: one recorded run.

A run is named by what it is (spec, epochs, framework, seed, split …), so that asking twice trains once, and a killed
run goes on where it was. Importing this module imports no framework, and recorded runs need neither one nor photos.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from carspotter.models.experiments import PIXELS, SERIES, Experiment
from carspotter.models.features import cached_features
from carspotter.models.metrics import accuracy
from carspotter.models.records import (
    COLUMNS,
    FRAMEWORKS,
    Run,
    append_row,
    import_framework,
    load_run,
    locked,
    read_runs,
)
from carspotter.models.watch import Watch, best_epoch, write_whole
from carspotter.models.weights import find_weights, identify_weights, width_in_name
from carspotter.models.workers import this_worker
from carspotter.paths import Study
from carspotter.photos.images import PREPROCESSING, load_images
from carspotter.photos.splitting import read_splits, split_version
from carspotter.photos.table import read_photos

# Raise this by hand when training changes meaning: runs recorded before are then no longer taken for the same.
RECIPE_VERSION = 1

QUICK_PHOTOS, QUICK_SIZE, QUICK_EPOCHS = 48, 64, 2  # 36 for training and 12 for validation: about 15 s a notebook


def load_or_train(
    study: Study,
    experiment: Experiment,
    framework: str = "keras",
    seed: int = 0,
    *,
    show_progress: bool = True,
    **options,
) -> Run:
    """Give the recorded run of these arguments, which are those of `train_run`; where there is none, train it."""
    run_id = specify_run(study, experiment, framework, seed, **options)["run"]
    if run_id in set(read_runs(study)["run"]):
        return load_run(study, run_id)
    return train_run(study, experiment, framework, seed, show_progress=show_progress, **options)


def train_run(
    study: Study,
    experiment: Experiment,
    framework: str = "keras",
    seed: int = 0,
    *,
    quick: bool = False,
    epochs: int | None = None,
    image_size: int | None = None,
    dtype: str | None = None,
    train_on: Collection[str] | None = None,
    weights: str | Path = "imagenet",
    show_progress: bool = True,
) -> Run:
    """Train `experiment` on the study's split in `framework` and record the run; it replaces a recorded one.

    `epochs`, `image_size` (pixels) and `dtype` (float32, or bfloat16, which is quicker where the hardware has units for
    it) override the spec; `quick` is for trying things out: 48 photos of 64 px, 2
    epochs. `train_on` names some of the training photos by their hashes, in any order and as often as each shall count
    (a subset for learning curves, a bootstrap sample); validation stays whole. `weights` are those of the experiment's
    backbone, if it has one: "imagenet", a file, or "none" (`models.weights`); the finished checkpoint holds them. An
    experiment that starts from another trains that one first, or takes its recorded run.

    Killed and called again, the run goes on after the last epoch that was finished. Only training and validation labels
    are read. Raises TrainingDiverged, MemoryError with advice, ValueError for hashes that are no training photos,
    FileNotFoundError for weights that cannot be had, and RuntimeError when another process is training this run.

    Processes that train one model together (`models.workers`) all call this; the first of them records the run, and the
    others wait for it.
    """
    worker = this_worker(framework)
    show_progress = show_progress and worker.number == 0
    train_on = None if train_on is None else sorted(train_on)
    experiment = _as_asked(experiment, weights, dtype)
    options = {"quick": quick, "epochs": epochs, "image_size": image_size, "train_on": train_on, "weights": weights}
    spec = specify_run(study, experiment, framework, seed, **options)
    start = _train_start(study, experiment, framework, seed, show_progress, options)
    folder = study.runs / spec["run"]
    folder.mkdir(parents=True, exist_ok=True)
    message = f"{spec['run']} is being trained by another process; wait for it or end it"
    with contextlib.nullcontext() if worker.number else locked(folder, message):
        siblings = import_framework(framework)
        training, validation = _read_photos(study, quick, train_on)
        chosen = _positions(training, train_on)
        spec["class_names"] = sorted(training["label"].iloc[chosen].unique())
        if not set(validation["label"]) <= set(spec["class_names"]) or len(spec["class_names"]) < 2:
            raise ValueError(
                f"{study.splits}: training has the classes {', '.join(spec['class_names'])}, validation has "
                f"{', '.join(sorted(validation['label'].unique()))}; both need the same two or more: split again"
            )
        size = spec["image_size"]
        numbers = {name: number for number, name in enumerate(spec["class_names"])}
        # Before the photos are decoded: weights or a size that do not fit are said at once.
        model = siblings.build_model(experiment, len(numbers), size, seed, weights=start)
        if experiment.backbone and start is None and (file := find_weights(experiment, weights)):
            siblings.load_backbone(model, file)
            spec["weights_file"] = {"name": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        if worker.number == 0:
            write_whole(folder / "spec.json", json.dumps(spec, indent=2) + "\n")
        training_images, validation_images = (
            load_images(study.data, photos, size, show_progress) for photos in (training, validation)
        )
        training_labels, validation_labels = (
            photos["label"].map(numbers).to_numpy() for photos in (training.iloc[chosen], validation)
        )
        if experiment.frozen:
            with _explained(spec):
                training_images, validation_images = (
                    _features(study, spec, siblings, model, photos, images)
                    for photos, images in ((training, training_images), (validation, validation_images))
                )
        if train_on is not None:
            training_images = training_images[chosen]
        with _explained(spec):
            dataset = siblings.make_dataset(training_images, training_labels, experiment, seed)
            facts = siblings.describe(model)
            with Watch(spec, folder, facts["device"], len(chosen), validation_labels, show_progress) as watch:
                siblings.train(
                    model, dataset, validation_images, spec["epochs"], folder, watch.on_epoch, watch.on_batch
                )
            if worker.number:
                with locked(folder, wait=True):  # which the first lets go of when the run is recorded
                    return load_run(study, spec["run"])
            # As at inference, on the photos as they are: the history's training figures have augmentation in them.
            of_last = accuracy(training_labels, siblings.predict_probabilities(model, training_images))
            checkpoint = _keep_checkpoint(folder, int(watch.best()["epoch"]))
            model = siblings.build_model(experiment, len(numbers), size, weights=checkpoint)
            of_best = accuracy(training_labels, siblings.predict_probabilities(model, training_images))
            probabilities = siblings.predict_probabilities(model, validation_images)
        facts |= {"best_inference_train_accuracy": of_best, "last_inference_train_accuracy": of_last}
        facts |= {"train_photos": len(chosen), "validation_photos": len(validation)}
        predictions = validation[["sha256", "label"]].reset_index(drop=True)
        predictions[spec["class_names"]] = probabilities
        write_whole(folder / "validation.csv", predictions.to_csv(index=False, float_format="%.6g"))
        append_row(study, _summarise(spec, facts, watch.history))
        for state in folder.glob("resume*"):
            state.unlink()
    return load_run(study, spec["run"])


def specify_run(
    study: Study,
    experiment: Experiment,
    framework: str,
    seed: int,
    *,
    quick: bool = False,
    epochs: int | None = None,
    image_size: int | None = None,
    dtype: str | None = None,
    train_on: Collection[str] | None = None,
    weights: str | Path = "imagenet",
) -> dict[str, Any]:
    """Give everything that makes a run this run and no other, with its name."""
    experiment = _as_asked(experiment, weights, dtype)
    image_size = image_size or experiment.image_size
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework {framework!r} is unknown; use one of {', '.join(FRAMEWORKS)}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs}; at least one is needed")
    spec = {
        "experiment": asdict(experiment),
        "framework": framework,
        "seed": seed,
        "epochs": epochs or (QUICK_EPOCHS if quick else experiment.epochs),
        "quick": quick,
        "image_size": min(image_size, QUICK_SIZE) if quick else image_size,
        "dtype": experiment.dtype,
        "split_version": split_version(study)[:12],
        "recipe_version": RECIPE_VERSION,
        "train_on": "",
        "weights": identify_weights(weights) if experiment.backbone else "",
        "pixels": PIXELS[experiment.backbone],
    }
    if train_on is not None:
        spec["train_on"] = hashlib.sha256("\n".join(sorted(train_on)).encode()).hexdigest()[:12]
    # Without what is at its default, so that a new field of Experiment gives no recorded run another name.
    defaults = {field.name: field.default for field in fields(Experiment)}
    special = {name: value for name, value in spec["experiment"].items() if value != defaults[name]}
    named = json.dumps(spec | {"experiment": special}, sort_keys=True)
    digest = hashlib.sha256(named.encode()).hexdigest()[:8]
    quickly = "-quick" if quick else ""
    return {"run": f"{experiment.name}-{framework}-s{seed}{quickly}-{digest}"} | spec


def _as_asked(experiment: Experiment, weights: str | Path, dtype: str | None) -> Experiment:
    """Give the experiment in the dtype asked for, and as wide as its weights file where one is named."""
    if experiment.backbone == "mobilenet_v2" and Path(weights).is_file():
        experiment = replace(experiment, backbone_width=width_in_name(Path(weights)))
    return replace(experiment, dtype=dtype) if dtype else experiment


def _read_photos(study: Study, quick: bool, train_on: list[str] | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give the training and the validation photos (sha256, label, path), ordered by hash.

    All training photos, whatever is to be trained on: they are decoded once for all subsets. Quick runs take few.
    """
    splits = read_splits(study)
    if train_on is not None:
        unknown = set(train_on) - set(splits.loc[splits["split"] == "train", "sha256"])
        if unknown or not train_on:
            which = f"{min(unknown)[:12]}… and {len(unknown) - 1} more are not" if unknown else "it is empty"
            raise ValueError(f"train_on: {which}; name training photos of {study.splits} by their sha256")
        if quick:
            splits = splits[(splits["split"] != "train") | splits["sha256"].isin(train_on)]
    splits = splits[splits["split"].isin(["train", "validation"])].sort_values("sha256")
    photos = splits.merge(read_photos(study.data)[["sha256", "path"]], on="sha256", how="left")
    missing = photos["path"].isna()
    if missing.any():
        raise FileNotFoundError(
            f"{study.data}: {missing.sum()} of the {len(photos)} photos of {study.splits} are not on this machine, the "
            f"first is {photos.loc[missing, 'sha256'].iloc[0][:12]}…; scrape or import them, or pass --data"
        )
    parts = []
    for split, share in (("train", 3 / 4), ("validation", 1 / 4)):
        part = photos[photos["split"] == split]
        if part.empty:
            raise ValueError(f"{study.splits}: no {split} photos; collect more, curate and split again")
        if quick:
            each = max(1, int(QUICK_PHOTOS * share / part["label"].nunique()))
            part = part.groupby("label", group_keys=False).head(each)
        parts.append(part[["sha256", "label", "path"]].reset_index(drop=True))
    return parts[0], parts[1]


def _train_start(
    study: Study, experiment: Experiment, framework: str, seed: int, show_progress: bool, options: dict
) -> Path | None:
    """Give the checkpoint from which `experiment` goes on, trained now where it is missing; None for a fresh start."""
    if experiment.starts_from is None:
        return None
    shared = ("conv_channels", "dense_units", "backbone", "backbone_width", "image_size", "batch_size", "dtype")
    before = replace(SERIES[experiment.starts_from], **{name: getattr(experiment, name) for name in shared})
    run = load_or_train(study, before, framework, seed, show_progress=show_progress, **options)
    if not (found := sorted(run.folder.glob("checkpoint.*"))):
        run = train_run(study, before, framework, seed, show_progress=show_progress, **options)
        found = sorted(run.folder.glob("checkpoint.*"))
    return found[0]


def _features(
    study: Study, spec: dict, siblings: ModuleType, model: Any, photos: pd.DataFrame, images: np.ndarray
) -> np.ndarray:
    """Give the frozen backbone's features of these photos, computed once for all runs with the same backbone."""
    wide = [
        spec["experiment"][name]
        for name in ("backbone", "backbone_width", "conv_channels", "dtype", "mirrored", "multi_level")
    ]
    # Random weights are another draw with each seed.
    source = spec["weights"] if spec["weights"] != "none" else f"none {spec['seed']}"
    key = json.dumps([PREPROCESSING, spec["pixels"], spec["image_size"], spec["framework"], source, *wide])
    return cached_features(study.images, key, photos["sha256"], lambda: siblings.compute_features(model, images))


def _positions(training: pd.DataFrame, train_on: list[str] | None) -> np.ndarray:
    """Give the rows to train on, int64, one as often as it is named."""
    rows = pd.Series(np.arange(len(training)), index=training["sha256"])
    return rows.to_numpy() if train_on is None else rows[[name for name in train_on if name in rows.index]].to_numpy()


def _keep_checkpoint(folder: Path, best: int) -> Path:
    """Make the best epoch's weights the run's checkpoint and drop the others."""
    for path in folder.glob(f"checkpoint_{best:04}.*"):
        os.replace(path, folder / path.name.replace(f"_{best:04}", ""))
    for path in folder.glob("checkpoint_*"):
        path.unlink()
    return next(iter(folder.glob("checkpoint.*")))


def _summarise(spec: dict, facts: dict, history: pd.DataFrame) -> dict[str, Any]:
    best, last, seconds = best_epoch(history), history.iloc[-1], history["seconds"].sum()
    values = spec | facts | {
        "experiment": spec["experiment"]["name"],
        "classes": " ".join(spec["class_names"]),
        "best_epoch": int(best["epoch"]),
        "best_validation_accuracy": round(best["validation_accuracy"], 6),
        "best_validation_loss": round(best["validation_loss"], 6),
        "best_inference_train_accuracy": round(facts["best_inference_train_accuracy"], 6),
        "last_inference_train_accuracy": round(facts["last_inference_train_accuracy"], 6),
        "last_train_accuracy": round(last["train_accuracy"], 6),
        "last_validation_accuracy": round(last["validation_accuracy"], 6),
        "mean_last_five_validation_accuracy": round(history["validation_accuracy"].tail(5).mean(), 6),
        "seconds": round(seconds, 1),
        # Whole epochs: validation and saving included.
        "photos_per_second": round(facts["train_photos"] * len(history) / seconds, 1),
        "commit": find_commit(),
        "versions": f"{facts['versions']}, numpy {np.__version__}, python {platform.python_version()}",
        "finished_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return {column: values[column] for column in COLUMNS}


@contextlib.contextmanager
def _explained(spec: dict) -> Iterator[None]:
    """Turn each framework's own way of running out of memory into one sentence that helps."""
    try:
        yield
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"OutOfMemoryError", "ResourceExhaustedError", "MemoryError"} or "not enough memory" in str(error):
            raise MemoryError(
                f"{spec['run']}: out of memory with batches of {spec['experiment']['batch_size']} images of "
                f"{spec['image_size']} px; use a smaller batch_size or image_size, or free the device"
            ) from error
        raise


def find_commit() -> str:
    """Give the commit of the checkout this file belongs to, "-dirty" when it was changed; "" outside a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here.parent, *arguments], capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()

    try:
        if git("ls-files", here.name):
            return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        pass
    return ""
