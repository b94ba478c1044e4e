"""Other training sets from the same photos: smaller, resampled, mislabelled, uncurated.

Samples are lists of hashes for `load_or_train(train_on=…)`. Other labels need another split file, and so a study of
their own, with the same validation photos and without sealed ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from carspotter.evidence.learning_curves import nested_group_subsets
from carspotter.paths import Study


def log_spaced_sizes(largest: int, count: int = 5, factor: float = 2.0) -> list[int]:
    """Give `count` training sizes, each `factor` times the one before, up to `largest`; at least 8 photos each."""
    sizes = (round(largest / factor**step) for step in reversed(range(count)))
    return sorted({max(8, size) for size in sizes if size <= largest})


def nested_samples(splits: pd.DataFrame, sizes: Sequence[int], seed: int = 0) -> dict[int, list[str]]:
    """Draw nested training samples of whole groups (`learning_curves.nested_group_subsets`): size asked for -> hashes.

    `splits`: as `photos.splitting.read_splits` gives it; only its training photos are drawn from.
    """
    training = _training(splits)
    subsets = nested_group_subsets(training["label"], training["group"], sizes, seed)
    return {size: training["sha256"].iloc[positions].tolist() for size, positions in subsets.items()}


def bootstrap_sample(splits: pd.DataFrame, seed: int = 0, share: float = 1.0) -> list[str]:
    """Draw a training set as another collection might have given it: whole groups of each class, with replacement.

    `share`: how many groups are drawn, of those that there are (0 … 1); a smaller collection is trained on sooner.
    Photos of a group drawn twice are named twice. Only training photos of `splits` are drawn from. Raises ValueError
    for a share that is not above 0.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; draw more than none of the groups, and at most all (1.0)")
    rng = np.random.default_rng(seed)
    hashes = []
    for _, members in _training(splits).groupby("label", sort=True):
        groups = [group["sha256"].tolist() for _, group in members.groupby("group", sort=True)]
        for number in rng.integers(len(groups), size=max(1, round(share * len(groups)))):
            hashes += groups[number]
    return hashes


def mislabel(splits: pd.DataFrame, share: float, seed: int = 0) -> pd.DataFrame:
    """Give the split with about `share` (0 … 1) of the training photos under another class's name, group by group.

    A wrong label comes with a whole listing, which claims to be what it is not. Groups are taken in a random order that
    is the same for all shares, so that larger shares hold the smaller ones. Raises ValueError for one class.
    """
    training = _training(splits)
    classes = sorted(training["label"].unique())
    if len(classes) < 2:
        raise ValueError(f"training has the class {', '.join(classes)} alone; there is no other name to give")
    rng = np.random.default_rng(seed)
    sizes = training.groupby("group", sort=True).size()
    order = rng.permutation(len(sizes))
    steps = rng.integers(1, len(classes), size=len(sizes))
    before = sizes.to_numpy()[order].cumsum() - sizes.to_numpy()[order] / 2
    wrong = {sizes.index[number]: steps[number] for number in order[before < share * len(training)]}
    changed = splits.copy()
    for row in training[training["group"].isin(wrong)].itertuples():
        number = (classes.index(row.label) + wrong[row.group]) % len(classes)
        changed.loc[row.Index, "label"] = classes[number]
    return changed


def mix_in(splits: pd.DataFrame, rejects: pd.DataFrame, share: float, seed: int = 0) -> pd.DataFrame:
    """Give the split with `share` of the training photos replaced by rejected ones, under the names they came with.

    `rejects`: sha256 and label (what the site claimed), of photos that curation threw out. The number of training
    photos stays the same, so that curated and uncurated are compared at one size. Raises ValueError where there are
    fewer rejects than asked for.
    """
    training = _training(splits)
    usable = rejects[rejects["label"].isin(training["label"].unique()) & ~rejects["sha256"].isin(splits["sha256"])]
    count = round(share * len(training))
    if count > len(usable):
        raise ValueError(
            f"{count} rejects asked for, {len(usable)} are there; ask for {len(usable) / len(training):.1%} at most"
        )
    rng = np.random.default_rng(seed)
    leave = training.index[rng.permutation(len(training))[:count]]
    come = usable.sort_values("sha256").iloc[rng.permutation(len(usable))[:count]][["sha256", "label"]]
    come = come.assign(group=come["sha256"].str[:12], split="train")
    return pd.concat([splits.drop(index=leave), come], ignore_index=True)


def derive_study(study: Study, name: str, splits: pd.DataFrame) -> Study:
    """Write a study `<study>_<name>` with these training and validation photos, on the same data; no photo is sealed.

    Its split is always the one given: runs of another split keep their own version and are not mixed up with its.
    """
    derived = Study(f"{study.name}_{name}", study.data, study.results)
    derived.folder.mkdir(parents=True, exist_ok=True)
    splits[splits["split"].isin(["train", "validation"])].sort_values("sha256").to_csv(derived.splits, index=False)
    return derived


def _training(splits: pd.DataFrame) -> pd.DataFrame:
    return splits[splits["split"] == "train"].sort_values("sha256")
