"""How much junk does a person find by looking at the worst-ranked photos, before and after some have been reviewed?

    python benchmarks/curation.py REAL_PHOTOS --cache DIR [--weights FILE] [--train FRAMEWORK] [--seeds 10 11 12]
                                  [--curve FILE.csv --name COLUMN]

REAL_PHOTOS holds two class folders and the folders `other-model` and `unusable`; photos of the latter are given one of
the two labels at random, by seed. A reviewer works down the ranking in three rounds of 20 and always says the truth;
the photos are ranked anew after each round. The reviewed photos count as looked at. With `--train` models learn from
the falsely labelled photos first, as `carspotter curate --train` has them do: from scratch, or from the weights given.
`--curve` adds the first pass to a table that notebook 02 draws: share of the junk found by share of photos inspected,
mean over the seeds.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from carspotter.curation.appearance import SIDE, describe_images
from carspotter.curation.cross_validation import choose_experiment, cross_validate, join_features
from carspotter.curation.ranking import rank_photos
from carspotter.models.experiments import TRAINING_DTYPES
from carspotter.models.store import FRAMEWORKS
from carspotter.models.transfer import cached_features, extract_features, hash_file, identify_weights
from carspotter.photos.images import decode_image
from carspotter.photos.table import write_table

JUNK = ("other-model", "unusable")
ROUNDS = (20, 20, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--cache", type=Path, required=True, help="features are kept here; outside the repository")
    parser.add_argument("--train", choices=FRAMEWORKS)
    parser.add_argument("--dtype", choices=TRAINING_DTYPES, default="float32")
    parser.add_argument("--curve", type=Path)
    parser.add_argument("--name", default="found", help="of the curve's column")
    options = parser.parse_args()
    files = sorted(file for folder in options.photos.iterdir() for file in folder.iterdir())
    kinds = np.array([file.parent.name for file in files])
    key = hash_file(options.weights) if options.weights else "appearance"
    features = cached_features(options.cache, key, [file.name for file in files], lambda: describe(files, options))
    rows, curves = zip(*(measure(features, kinds, seed, files, options) for seed in options.seeds), strict=True)
    if options.curve:
        new = pd.DataFrame({"inspected": np.linspace(0, 1, 101).round(2)})
        drawn = pd.read_csv(options.curve) if options.curve.exists() else new
        found = np.r_[0, np.mean(curves, axis=0)]
        drawn[options.name] = found[np.round(drawn["inspected"] * len(files)).astype(int)].round(4)
        write_table(options.curve, drawn)
    table = pd.DataFrame(rows, index=pd.Index(options.seeds, name="seed"))
    print(table.round(3).to_string())
    print(f"mean  {table.mean().round(3).to_dict()}")


def describe(files: list[Path], options) -> np.ndarray:
    size = 224 if options.weights else SIDE
    images = np.stack([decode_image(file, size) for file in files])
    return extract_features(images, options.weights) if options.weights else describe_images(images)


def learn(labels: np.ndarray, files: list[Path], seed: int, options) -> tuple[np.ndarray, np.ndarray]:
    """Return doubts and features as `curate --train` has them: they depend on the labels, and so on the seed."""
    experiment = replace(choose_experiment(options.train, options.weights), dtype=options.dtype)
    named = replace(experiment, weights=identify_weights(experiment))
    key = f"learnt {options.train} {named} {seed}"

    def train() -> np.ndarray:
        images = np.stack([decode_image(file, experiment.image_size) for file in files])
        state = options.cache / f"learning-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        listings = [""] * len(files)
        return np.column_stack(cross_validate(images, labels, listings, options.train, state, experiment))

    learnt = cached_features(options.cache, key, [file.name for file in files], train)
    return learnt[:, 0], learnt[:, 1:]


def measure(
    features: np.ndarray, kinds: np.ndarray, seed: int, files: list[Path], options
) -> tuple[dict[str, float], np.ndarray]:
    """Return the figures of a seed, and the share of the junk found after each photo of the first pass."""
    junk = np.isin(kinds, JUNK)
    classes = sorted(set(kinds) - set(JUNK))
    labels = np.where(junk, np.random.default_rng(seed).choice(classes, len(kinds)), kinds)
    doubts = None
    if options.train:
        doubts, learnt = learn(labels, files, seed, options)
        features = join_features(pd.DataFrame(features), pd.DataFrame(learnt)).to_numpy()
    groups = [str(photo) for photo in range(len(kinds))]  # these photos have no listing ids
    said = np.full(len(kinds), np.nan)
    budget = round(0.2 * len(kinds))
    scores = rank_photos(features, labels, groups, doubts=doubts)["score"].to_numpy()
    order = np.argsort(-scores, kind="stable")
    worst, curve = order[:budget], junk[order].cumsum() / junk.sum()
    row = {"first pass": junk[worst].sum() / junk.sum()}
    row |= {kind: np.isin(np.flatnonzero(kinds == kind), worst).mean() for kind in JUNK}
    for photos in ROUNDS:
        unseen = np.flatnonzero(np.isnan(said))
        looked_at = unseen[np.argsort(-scores[unseen], kind="stable")[:photos]]
        said[looked_at] = junk[looked_at]
        scores = rank_photos(features, labels, groups, said, doubts=doubts)["score"].to_numpy()
    unseen = np.flatnonzero(np.isnan(said))
    rest = unseen[np.argsort(-scores[unseen], kind="stable")[: budget - sum(ROUNDS)]]
    found = junk[rest].sum() + np.nansum(said)
    return row | {"rejects in 60": np.nanmean(said), "after 60": found / junk.sum()}, curve


if __name__ == "__main__":
    main()
