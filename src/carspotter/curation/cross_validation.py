"""Doubt labels by models trained on the other photos, for curation.

A listing's photos are in one fold; a model learns from all folds but one and is asked about that one: a small network
from scratch, or the last blocks of a backbone where its weights are given. Nothing here is a recorded run.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold

from carspotter.curation.ranking import first_listings
from carspotter.models.experiments import FAST_RECIPE, MOBILENET_FINE_TUNE, Experiment
from carspotter.models.history import StateKeeper, TrainingDiverged, as_callback, set_random_seed
from carspotter.models.store import import_builder, import_framework
from carspotter.models.transfer import cached_features, find_weights, identify_weights, read_features, width_in_name
from carspotter.photos.fingerprints import readable_photos
from carspotter.photos.images import PREPROCESSING, load_images
from carspotter.photos.journal import hold
from carspotter.progress import progress_bar

FOLDS = 3


def learn_photos(
    data: Path, photos: pd.DataFrame, framework: str, weights: Path | None = None
) -> tuple[pd.Series, pd.DataFrame]:
    """Return doubts and features of the readable ones of `photos`, indexed by sha256: see `cross_validate`.

    `weights`: MobileNetV2's, then it learns on from them; else the experiment is `fast_recipe`. Kept in `data`/images;
    a killed call goes on from its last epoch. Raises RuntimeError while another process learns from the same photos.
    """
    experiment = choose_experiment(framework, weights)
    photos = readable_photos(data, photos)
    names, labels = photos["sha256"].tolist(), photos["label"].fillna("").tolist()
    listings = first_listings(photos["listings"])
    named = replace(experiment, weights=identify_weights(experiment) or "none")  # by its bytes, wherever the file is
    key = f"{PREPROCESSING} learnt {framework} {named} {_digest(labels, listings)}"
    folder = data / "images" / f"learning-{_digest(key, names)}"

    def learn() -> np.ndarray:
        images = load_images(data, photos, experiment.image_size)
        with hold(folder / ".lock", f"{folder}: another process learns from these photos; wait for it or end it"):
            return np.column_stack(cross_validate(images, labels, listings, framework, folder, experiment))

    learnt = cached_features(data / "images", key, names, learn)
    shutil.rmtree(folder, ignore_errors=True)
    return pd.Series(learnt[:, 0], index=names), pd.DataFrame(learnt[:, 1:], index=names)


def choose_experiment(framework: str, weights: Path | None) -> Experiment:
    """Return what learns from the photos: `fast_recipe`, or MobileNetV2 as wide as its `weights`, in Keras alone."""
    if weights is None:
        return FAST_RECIPE
    if framework != "keras":
        raise ValueError(f"--train {framework} with --weights: MobileNetV2 is built in Keras alone; use --train keras")
    return replace(MOBILENET_FINE_TUNE, backbone_width=width_in_name(weights), weights=str(weights))


def cross_validate(
    images: np.ndarray,
    labels: Sequence[str],
    listings: Sequence[str],
    framework: str,
    folder: Path,
    experiment: Experiment,
    show_progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return doubts and features of photos by models that were trained on the others: float32 (N,) and (N, F).

    A doubt is the probability that the label is wrong, 0 … 1, by the model that saw none of the photo's listing:
    confident learning (Northcutt, Jiang & Chuang 2021). Features are what all models see in a photo, each model's of
    length 1. `images`: uint8 (N, S, S, 3). `labels`, `listings`: N names each, "" for no listing. `folder` holds the
    state from which a killed call goes on. Raises TrainingDiverged when a model has no finite output.
    """
    classes, numbers = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    groups = [listing or f"photo {photo}" for photo, listing in enumerate(listings)]
    if len(classes) < 2 or len(set(groups)) < FOLDS:
        raise ValueError(
            f"{len(classes)} labels in {len(set(groups))} listings: to learn what tells labels apart takes two labels "
            f"and {FOLDS} listings"
        )
    lesson, builder = import_framework(framework), import_builder(experiment, framework)
    doubts, features = np.empty(len(images), np.float32), []
    folds = GroupKFold(FOLDS, shuffle=True, random_state=0).split(images, groups=groups)
    photos = (FOLDS - 1) * len(images) * experiment.epochs
    with progress_bar(photos, "learn the labels", "photos", show_progress) as progress:
        for number, (learnt, asked) in enumerate(folds):
            set_random_seed(framework, number)
            model = builder.build_model(experiment, len(classes))
            if weights := find_weights(experiment):
                builder.load_backbone(model, weights, experiment)
            batches = lesson.PhotoBatches(images[learnt], numbers[learnt], experiment, number)
            keeper = StateKeeper(folder / f"fold-{number}", framework, partial(progress.update, len(learnt)))
            progress.update(keeper.finished * len(learnt))  # what a killed call had learnt counts
            lesson.train(model, batches, experiment, None, keeper.finished, [as_callback(framework, model, keeper)])
            said = lesson.predict(model, images[asked], experiment)
            if not np.isfinite(said).all():
                raise TrainingDiverged(f"{experiment.name}, fold {number + 1}: no finite output; train in float32")
            doubts[asked] = 1 - said[np.arange(len(asked)), numbers[asked]]
            features.append(_to_length_1(read_features(framework, model, images, experiment.average_mirror_images)))
    return doubts, np.hstack(features)


def join_features(features: pd.DataFrame, learnt: pd.DataFrame) -> pd.DataFrame:
    """Put the `learnt` features of `learn_photos` beside others; both parts have the length 1."""
    both = features.index.intersection(learnt.index)
    parts = [_to_length_1(part.loc[both].to_numpy(dtype=np.float32)) for part in (features, learnt)]
    return pd.DataFrame(np.hstack(parts), index=both)


def _to_length_1(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
