"""What models say of photos that they have not seen, when all photos are to be judged: curation's doubts.

The photos are dealt into folds, a listing's into one; a small model learns from all folds but one and is asked about
that one. Nothing here is a recorded run: the labels are as listed, one in ten may be wrong, and no split is made yet.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold

from carspotter.models.experiments import FAST_RECIPE, Experiment
from carspotter.models.features import cached_features
from carspotter.models.records import import_framework
from carspotter.models.watch import TrainingDiverged
from carspotter.paths import Study
from carspotter.photos.curation import readable_photos
from carspotter.photos.images import PREPROCESSING, load_images
from carspotter.progress import progress_bar

FOLDS = 3


def doubt_photos(
    study: Study, framework: str, dtype: str | None = None, experiment: Experiment = FAST_RECIPE
) -> pd.Series:
    """Give the doubt in the listed label of each of the study's readable photos, indexed by sha256: see `doubt_labels`.

    `dtype`: another than the experiment's own. Kept in data/images; a killed call goes on from its last epoch.
    """
    experiment = replace(experiment, dtype=dtype) if dtype else experiment
    photos = readable_photos(study.data)
    names, labels = photos["sha256"].tolist(), photos["label"].fillna("").tolist()
    listings = [next(iter(listings), "") for listings in photos["listings"]]
    key = f"{PREPROCESSING} doubts {framework} {experiment} {_digest(labels, listings)}"
    folder = study.images / f"doubts-{_digest(key, names)}"

    def learn() -> np.ndarray:
        images = load_images(study.data, photos, experiment.image_size)
        return doubt_labels(images, labels, listings, framework, folder, experiment)

    doubts = cached_features(study.images, key, names, learn)
    shutil.rmtree(folder, ignore_errors=True)
    return pd.Series(doubts, index=names)


def doubt_labels(
    images: np.ndarray,
    labels: Sequence[str],
    listings: Sequence[str],
    framework: str,
    folder: Path,
    experiment: Experiment = FAST_RECIPE,
    seed: int = 0,
    show_progress: bool = True,
) -> np.ndarray:
    """Give the probability that a photo's label is wrong, by a model that saw none of its listing: float32 (N,), 0 … 1.

    `images`: uint8 (N, S, S, 3), S the experiment's image size. `labels`, `listings`: N names each; "" is no listing.
    `folder` holds the state from which a killed call goes on. Raises ValueError for fewer than two labels or three
    listings, TrainingDiverged when a model has no finite output, ImportError without the framework. Out-of-fold
    probabilities are what confident learning (Northcutt, Jiang & Chuang 2021) starts from.
    """
    classes, numbers = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    groups = [listing or f"photo {photo}" for photo, listing in enumerate(listings)]
    if len(classes) < 2 or len(set(groups)) < FOLDS:
        raise ValueError(
            f"{len(classes)} labels in {len(set(groups))} listings: to learn what tells labels apart takes two labels "
            f"and {FOLDS} listings"
        )
    siblings = import_framework(framework)
    doubts = np.empty(len(images), np.float32)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed).split(images, groups=groups)
    photos = (FOLDS - 1) * len(images) * experiment.epochs
    with progress_bar(photos, "learn the labels", "photos", show_progress) as progress:
        for number, (learnt, asked) in enumerate(folds):
            model = siblings.build_model(experiment, len(classes), images.shape[1], seed + number)
            dataset = siblings.make_dataset(images[learnt], numbers[learnt], experiment, seed + number)
            state = folder / f"fold-{number}"
            state.mkdir(parents=True, exist_ok=True)
            siblings.train(
                model, dataset, images[asked[:1]], experiment.epochs, state, _keeps_none, on_batch=progress.update
            )
            said = siblings.predict_probabilities(model, images[asked])
            if not np.isfinite(said).all():
                raise TrainingDiverged(f"{experiment.name}, fold {number + 1}: no finite output; train in float32")
            doubts[asked] = 1 - said[np.arange(len(asked)), numbers[asked]]
    return doubts


def _keeps_none(epoch: int, loss: float, accuracy: float, probabilities: np.ndarray) -> bool:
    """No epoch is the best: there is nothing to choose by."""
    return False


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
