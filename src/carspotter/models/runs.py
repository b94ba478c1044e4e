"""One experiment, one framework, one seed: one recorded run. Importing this imports no framework."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from carspotter.models import history, store, transfer
from carspotter.models.experiments import SERIES, Experiment, changed_fields
from carspotter.models.metrics import accuracy
from carspotter.models.store import Run
from carspotter.paths import Study, atomic_write, git
from carspotter.photos.images import PREPROCESSING, load_images
from carspotter.photos.journal import hold
from carspotter.photos.splitting import read_splits, split_version
from carspotter.photos.table import read_photos, write_table


def load_or_train(
    study: Study, experiment: Experiment, framework: str = "keras", seed: int = 0, *, show_progress: bool = True
) -> Run:
    """Return the recorded run of `experiment`; where there is none, train it as `train_run` does."""
    if run := find_run(study, experiment, framework, seed):
        return store.load_run(study, run)
    return train_run(study, experiment, framework, seed, show_progress=show_progress)


def find_run(study: Study, experiment: Experiment, framework: str, seed: int = 0) -> str | None:
    """Return the id of the recorded run of these arguments, or None; needs neither photos nor weights.

    With weights "imagenet" a run recorded with any file of pretrained weights counts.
    """
    recorded = store.read_runs(study)
    weights = [experiment.weights]
    if experiment.backbone and experiment.weights == "imagenet":
        same = recorded[(recorded["experiment"] == experiment.name) & (recorded["framework"] == framework)]
        weights = sorted(set(same["weights"]) - {"", "none"})
    for name in weights:
        run = specify_run(study, replace(experiment, weights=name), framework, seed)["run"]
        if run in set(recorded["run"]):
            return run
    return None


def train_run(study: Study, experiment: Experiment, framework: str, seed: int = 0, show_progress: bool = True) -> Run:
    """Train `experiment` on the study's split in `framework` and record the run; it replaces a recorded one.

    Killed and called again, the run goes on after its last finished epoch. An experiment that starts from another
    trains that one first, or takes its recorded run. Raises TrainingDiverged, MemoryError, FileNotFoundError for
    weights or photos that are not here, RuntimeError when another process trains this run.
    """
    spec = specify_run(study, experiment, framework, seed)
    start = _starting_weights(study, experiment, framework, seed, show_progress)
    folder = study.runs / spec["run"]
    busy = f"{spec['run']} is being trained by another process; wait for it or end it"
    with hold(folder / ".lock", busy), explain_memory(spec["run"], experiment):
        lesson, builder = store.import_framework(framework), store.import_builder(experiment, framework)
        training, validation = read_training_photos(study, experiment)
        chosen = np.arange(len(training))
        if (subset := experiment.training_subset) is not None:  # a photo counts as often as it is named
            rows = pd.Series(chosen, index=training["sha256"])
            chosen = rows[[name for name in sorted(subset) if name in rows.index]].to_numpy()
        classes = spec["class_names"] = sorted(training["label"].iloc[chosen].unique())
        if not set(validation["label"]) <= set(classes) or len(classes) < 2:
            raise ValueError(
                f"{study.splits}: training has the classes {', '.join(classes)}, validation has "
                f"{', '.join(sorted(validation['label'].unique()))}; both need the same two or more: split again"
            )
        # Before the photos are decoded: weights or a size that do not fit are said at once.
        history.set_random_seed(framework, seed)
        model = builder.build_model(experiment, len(classes))
        if start:
            store.load_weights(framework, model, start)
        elif weights := transfer.find_weights(experiment):
            builder.load_backbone(model, weights, experiment)
        images, asked = (
            load_images(study.data, photos, experiment.image_size, show_progress) for photos in (training, validation)
        )
        labels, asked_labels = (photos["label"].map(classes.index).to_numpy() for photos in (training, validation))
        learner = transfer.Learner(study, spec, experiment, lesson, builder, model, show_progress)
        seen, copies = learner.views(validation, asked), learner.copies(training, images)
        if subset is not None:
            copies = [copy[chosen] for copy in copies]
        learned = copies[0] if len(copies) == 1 else np.concatenate(copies)
        batches = lesson.PhotoBatches(learned, np.tile(labels[chosen], len(copies)), experiment, seed)
        facts = history.describe_model(framework, learner.trained)
        if show_progress:
            _say_what_begins(study, spec["run"], experiment, framework, len(chosen), facts["device"])
        groups, epochs = validation["group"].to_numpy(), experiment.epochs
        predict = partial(learner.predict, seen)
        recorder = history.Recorder(folder, framework, asked_labels, groups, predict, epochs, show_progress)
        with recorder.bar:
            callbacks = [history.as_callback(framework, learner.trained, recorder)]
            lesson.train(learner.trained, batches, experiment, None, recorder.finished, callbacks)
        # In evaluation mode, on the photos as they are: the history's training figures have augmentation in them.
        known = [view[chosen] for view in learner.views(training, images)]
        facts["last_inference_train_accuracy"] = round(accuracy(labels[chosen], learner.predict(known)), 6)
        recorder.finish()
        facts["best_inference_train_accuracy"] = round(accuracy(labels[chosen], learner.predict(known)), 6)
        probabilities = learner.predict(seen)
        store.save_weights(framework, model, folder / store.CHECKPOINTS[framework])
        with atomic_write(folder / "spec.json") as part:
            part.write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
        predictions = validation[["sha256", "label"]].reset_index(drop=True)
        predictions[classes] = probabilities
        write_table(folder / "validation.csv", predictions, float_format="%.6g")
        facts |= {
            "train_photos": len(chosen),
            "validation_photos": len(validation),
            "photos_per_second": round(len(chosen) / recorder.history["seconds"].mean(), 1),
        }
        store.append_row(study, _summarise(spec, experiment, recorder.history) | facts)
        # What only a killed training needs, and parts of what it was writing.
        for path in (folder / store.STATE, *folder.glob(".part-*")):
            path.unlink(missing_ok=True)
    return store.load_run(study, spec["run"])


def specify_run(study: Study, experiment: Experiment, framework: str, seed: int = 0) -> dict[str, Any]:
    """Return everything that makes a run this run and no other, with its id."""
    if framework not in store.FRAMEWORKS:
        raise ValueError(f"framework {framework!r} is unknown; use one of {', '.join(store.FRAMEWORKS)}")
    # What is named by its content: a path or 2,000 hashes would say nothing on another machine.
    by_content = {"weights": transfer.identify_weights(experiment) if experiment.backbone else "imagenet"}
    if (subset := experiment.training_subset) is not None:
        by_content["training_subset"] = store.subset_digest(subset)
    identity = {"framework": framework, "seed": seed, "split_version": split_version(study)[:12]}
    identity |= {"recipe_version": store.RECIPE_VERSION}
    # Without what is at its default, so that a new field of Experiment gives no recorded run another name.
    spec = changed_fields(experiment) | {"name": experiment.name} | by_content
    named = {"experiment": spec} | identity
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
    return {
        "run": f"{experiment.name}-{framework}-s{seed}-{digest}",
        "experiment": asdict(experiment) | by_content,
        **identity,
        "preprocessing": PREPROCESSING,
        "pixels": transfer.PIXELS[experiment.backbone],
    }


def estimate_seconds(study: Study, experiment: Experiment, framework: str) -> float | None:
    """Return about how long training will take, by recorded runs of this experiment on as many processors, or None."""
    runs = store.read_runs(study)
    runs = runs[(runs["experiment"] == experiment.name) & (runs["framework"] == framework)]
    runs = runs[(runs["dtype"] == experiment.dtype) & runs["device"].str.startswith(f"CPU, {os.cpu_count()} cores")]
    if runs.empty or not study.splits.exists():
        return None
    a_photo = (runs["seconds"] / runs["epochs"] / runs["train_photos"] / runs["image_size"] ** 2).median()
    photos = len(experiment.training_subset or ()) or int((read_splits(study)["split"] == "train").sum())
    photos = min(photos, experiment.photo_limit or photos)
    return float(a_photo * experiment.epochs * photos * experiment.image_size**2)


def starting_experiment(experiment: Experiment) -> Experiment | None:
    """Return the experiment from whose trained weights this one goes on: of the same model, images and photos."""
    if experiment.starts_from is None:
        return None
    names = ("conv_channels", "dense_units", "backbone", "backbone_width", "pooling", "weights", "image_size")
    names += ("dtype", "training_subset", "photo_limit")
    before = replace(SERIES[experiment.starts_from], **{name: getattr(experiment, name) for name in names})
    if before.tuned_blocks > experiment.tuned_blocks:  # cached maps are those of the published weights
        raise ValueError(
            f"{experiment.name}: it starts from {before.name}, which tunes more blocks; use as many or more"
        )
    return replace(before, epochs=min(before.epochs, experiment.epochs)) if experiment.photo_limit else before


def read_training_photos(study: Study, experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training and the validation photos (sha256, label, group, path), ordered by hash.

    All training photos, whatever the subset: they are decoded once for all subsets. `photo_limit` takes as many of each
    class. Raises ValueError for a subset of other photos, FileNotFoundError for missing ones.
    """
    splits = read_splits(study)
    if (subset := experiment.training_subset) is not None:
        unknown = set(subset) - set(splits.loc[splits["split"] == "train", "sha256"])
        if unknown or not subset:
            which = f"{min(unknown)[:12]}… and {len(unknown) - 1} more are not" if unknown else "it is empty"
            raise ValueError(f"training_subset: {which}; name training photos of {study.splits} by their sha256")
        if experiment.photo_limit:
            splits = splits[(splits["split"] != "train") | splits["sha256"].isin(subset)]
    splits = splits[splits["split"].isin(["train", "validation"])].sort_values("sha256")
    photos = splits.merge(read_photos(study.data)[["sha256", "path"]], on="sha256", how="left")
    missing = photos["path"].isna()
    if missing.any():
        raise FileNotFoundError(
            f"{study.data}: {missing.sum()} of the {len(photos)} photos of {study.splits} are not on this machine, the "
            f"first is {photos.loc[missing, 'sha256'].iloc[0][:12]}…; scrape or import them, or pass --data; after a "
            f"`forget`, run `split` again"
        )
    parts = []
    for split, share in (("train", 3 / 4), ("validation", 1 / 4)):
        part = photos[photos["split"] == split]
        if part.empty:
            raise ValueError(f"{study.splits}: no {split} photos; collect more, curate and split again")
        if experiment.photo_limit:
            each = max(1, int(experiment.photo_limit * share / part["label"].nunique()))
            part = part.groupby("label", group_keys=False).head(each)
        parts.append(part[["sha256", "label", "group", "path"]].reset_index(drop=True))
    return parts[0], parts[1]


class Arrays(NamedTuple):
    """A study's training and validation photos as a notebook wants them."""

    train_images: np.ndarray  # uint8 (N, S, S, 3)
    train_labels: np.ndarray  # class numbers, int64 (N,)
    validation_images: np.ndarray
    validation_labels: np.ndarray
    class_names: list[str]


def load_arrays(study: Study, experiment: Experiment) -> Arrays:
    """Return the images and class numbers that `experiment` trains on and is validated on, ordered by hash."""
    training, validation = read_training_photos(study, experiment)
    classes = sorted(training["label"].unique())
    parts = []
    for photos in (training, validation):
        parts += [load_images(study.data, photos, experiment.image_size, show_progress=False)]
        parts += [photos["label"].map(classes.index).to_numpy()]
    return Arrays(*parts, classes)


def _starting_weights(
    study: Study, experiment: Experiment, framework: str, seed: int, show_progress: bool
) -> Path | None:
    """Return the checkpoint from which `experiment` goes on, trained now where it is missing; None for a fresh one."""
    if (before := starting_experiment(experiment)) is None:
        return None
    run = load_or_train(study, before, framework, seed, show_progress=show_progress)
    if not run.checkpoint.exists():
        run = train_run(study, before, framework, seed, show_progress=show_progress)
    return run.checkpoint


def _say_what_begins(study: Study, run: str, experiment: Experiment, framework: str, photos: int, device: str) -> None:
    seconds = estimate_seconds(study, experiment, framework)
    about = f", about {seconds / 60:.0f} min by recorded runs" if seconds and seconds > 60 else ""
    what = f"{photos} photos of {experiment.image_size} px, {experiment.epochs} epochs"
    print(f"{run}: {what}, {history.explain_device(device, framework)}{about}", file=sys.stderr, flush=True)


def _summarise(spec: dict, experiment: Experiment, epochs: pd.DataFrame) -> dict[str, Any]:
    best, last, seconds = history.best_epoch(epochs), epochs.iloc[-1], epochs["seconds"].sum()
    return {
        "run": spec["run"],
        "experiment": experiment.name,
        "framework": spec["framework"],
        "seed": spec["seed"],
        "epochs": experiment.epochs,
        "quick": experiment.photo_limit is not None,
        "train_on": spec["experiment"]["training_subset"] or "",
        "weights": spec["experiment"]["weights"] if experiment.backbone else "",
        "image_size": experiment.image_size,
        "dtype": experiment.dtype,
        "split_version": spec["split_version"],
        "recipe_version": store.RECIPE_VERSION,
        "classes": " ".join(spec["class_names"]),
        "best_epoch": int(best["epoch"]),
        "best_validation_accuracy": round(best["validation_accuracy"], 6),
        "best_validation_loss": round(best["validation_loss"], 6),
        "last_train_accuracy": round(last["train_accuracy"], 6),
        "last_validation_accuracy": round(last["validation_accuracy"], 6),
        "mean_last_five_validation_accuracy": round(epochs["validation_accuracy"].tail(5).mean(), 6),
        "seconds": round(seconds, 1),
        "processor_seconds": round(epochs["processor_seconds"].sum(), 1),
        "commit": find_commit(),
        "finished_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def explain_memory(run: str, experiment: Experiment) -> Iterator[None]:
    """Turn each framework's own out-of-memory error into one sentence that helps."""
    try:
        yield
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if names & {"OutOfMemoryError", "ResourceExhaustedError", "MemoryError"} or "not enough memory" in str(error):
            raise MemoryError(
                f"{run}: out of memory with batches of {experiment.batch_size} images of {experiment.image_size} px; "
                "use a smaller batch_size or image_size, or free the device"
            ) from error
        raise


def find_commit() -> str:
    """Return the commit of the checkout this file belongs to, "-dirty" when it was changed; "" outside a checkout."""
    here = Path(__file__).resolve()
    known = git(here.parent, "ls-files", here.name)
    return git(here.parent, "describe", "--always", "--dirty", "--abbrev=12").strip() if known else ""
