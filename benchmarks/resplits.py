"""How much does the split matter? Frozen features on ten splits of the training and validation photos, by group.

    python benchmarks/resplits.py civic_altima_2 --weights FOLDER
    python benchmarks/resplits.py civic_altima_2 --weights FOLDER --train mobilenet_fine_tune     # on three of them

A logistic regression on each kind of features, trained on nested samples of each split's training photos and scored on
its validation photos; the sealed photos take part in nothing. With --train, recipes of the series are trained in Keras
on three of the splits (one seed, mean of the last five epochs), and their rows are added to the others. Writes
`results/<study>/resplits.csv`, one row per kind, split and size, and prints means with intervals over splits, and the
differences between kinds on the same splits.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from machine import describe
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from carspotter.curation.appearance import describe_photos
from carspotter.evidence.report import to_markdown
from carspotter.evidence.resampling import log_spaced_sizes, nested_samples, over_splits, resplits
from carspotter.models.experiments import SERIES, TRAINING_DTYPES, VGG16_FEATURES, Experiment
from carspotter.models.runs import train_run
from carspotter.models.store import import_framework
from carspotter.models.transfer import cached_features, find_weights, hash_file
from carspotter.paths import Study
from carspotter.photos.images import PREPROCESSING, load_images
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos

COUNT = 10
TRAINED = 3  # splits that recipes are trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--weights", type=Path, required=True, help="a folder with MobileNetV2's and VGG16's files")
    parser.add_argument("--train", nargs="+", choices=list(SERIES), metavar="EXPERIMENT", default=[])
    parser.add_argument("--dtype", choices=TRAINING_DTYPES, default="float32", help="of --train")
    parser.add_argument("--data", type=Path, help="photos and tables (default: the study's own)")
    options = parser.parse_args()
    study = Study.open(options.study, options.data)
    print(describe("scikit-learn", "keras", "tensorflow"))
    splits = read_splits(study)
    photos = splits[splits["split"].isin(["train", "validation"])].merge(read_photos(study.data)[["sha256", "path"]])
    sizes = log_spaced_sizes(int((splits["split"] == "train").sum()))
    path, found = study.folder / "resplits.csv", []
    if options.train:
        before = pd.read_csv(path)
        found.append(before[~before["features"].isin(options.train)])
        for name in options.train:
            experiment = replace(SERIES[name], weights=str(options.weights), dtype=options.dtype)
            found.append(train_on_resplits(study, splits, experiment).assign(features=name, size=sizes[-1]))
    else:
        for kind, features in describe_kinds(study, photos, options.weights):
            found.append(score_resplits(splits, features, sizes).assign(features=kind))
    found = pd.concat(found)[["features", "split", "size", "accuracy"]].round(6)
    found.to_csv(path, index=False)
    print(summarise(found, (splits["split"] == "validation").sum() / len(photos)))


def score_resplits(splits: pd.DataFrame, features: pd.DataFrame, sizes: list[int]) -> pd.DataFrame:
    """Return the accuracies of frozen features on COUNT resplits: one row per split and training size.

    `features`: indexed by sha256, of the training and validation photos. On nested samples of `sizes` training photos
    (all, where a split has fewer) a logistic regression is trained (C = .01, on standardised features, fixed
    beforehand); columns: split, size, accuracy on the split's validation photos.
    """
    rows = []
    for number, split in enumerate(resplits(splits, COUNT)):
        labels, held = split.set_index("sha256")["label"], split[split["split"] == "validation"]["sha256"]
        most = int((split["split"] == "train").sum())
        samples = nested_samples(split, [min(size, most) for size in sizes], number)
        for size in sizes:
            sample = samples[min(size, most)]
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2_000))
            head.fit(features.loc[sample], labels[sample])
            rows.append({"split": number, "size": size, "accuracy": head.score(features.loc[held], labels[held])})
    return pd.DataFrame(rows)


def train_on_resplits(study: Study, splits: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """Train an experiment on the first TRAINED resplits, seed 0; return split and accuracy on its validation photos."""
    rows = []
    for number, split in enumerate(resplits(splits, COUNT)[:TRAINED]):
        with tempfile.TemporaryDirectory() as folder:  # its runs belong to no recorded split
            own = Study(study.name, study.data, Path(folder))
            own.folder.mkdir()
            split.to_csv(own.splits, index=False)
            history = train_run(own, experiment, "keras").history
        rows.append({"split": number, "accuracy": history["validation_accuracy"].tail(5).mean()})
        print(f"{experiment.name}, split {number}: {rows[-1]['accuracy']:.3f}", flush=True)
    return pd.DataFrame(rows)


def describe_kinds(study: Study, photos: pd.DataFrame, weights: Path):
    """Yield the name of each kind of features with the features, float32 (N, D)."""
    names = photos["sha256"]
    mobilenet = next(weights.glob("mobilenet_v2_1.0_224*"))
    yield "MobileNetV2", describe_photos(study.data, read_photos(study.data), mobilenet, False).loc[names]
    vgg16 = find_weights(replace(VGG16_FEATURES, weights=str(weights)))
    key = f"{PREPROCESSING} 224 mean and maximum maps {hash_file(vgg16)}"
    table = cached_features(study.images, key, names, lambda: vgg16_features(study, photos, vgg16))
    yield "VGG16", pd.DataFrame(table, index=names)


def vgg16_features(study: Study, photos: pd.DataFrame, weights: Path) -> np.ndarray:
    """Return the means and maxima of VGG16's last maps at 224 px: float32 (N, 1024)."""
    images = load_images(study.data, photos, 224)
    keras = import_framework("keras").keras
    body = keras.applications.VGG16(include_top=False, weights=str(weights), input_shape=images.shape[1:])
    pooled = []
    for start in range(0, len(images), 50):
        pixels = keras.applications.vgg16.preprocess_input(images[start : start + 50].astype(np.float32))
        maps = body.predict_on_batch(pixels)
        pooled.append(np.concatenate([maps.mean(axis=(1, 2)), maps.max(axis=(1, 2))], axis=1))
    return np.concatenate(pooled)


def summarise(found: pd.DataFrame, share: float) -> str:
    """Return Markdown: accuracy by kind and size, and differences between kinds at the largest size."""
    rows = []
    for (kind, size), one in found.groupby(["features", "size"], sort=False):
        interval = over_splits(one["accuracy"], share)
        row = {"features": kind, "training photos": size, "splits": len(one), "accuracy [95 %]": str(interval)}
        rows.append(row | {"± between splits": f"{interval.seed_spread:.3f}", "lowest": one["accuracy"].min().round(3)})
    largest = found[found["size"] == found["size"].max()].pivot(index="split", columns="features", values="accuracy")
    pairs = list(itertools.combinations(largest.columns, 2))
    differences = []
    for a, b in pairs:
        points = over_splits(100 * (largest[b] - largest[a]).dropna(), share, 1 - 0.05 / len(pairs))
        ends = f"{points.estimate:+.1f} [{points.low:+.1f}, {points.high:+.1f}]"
        differences.append({"difference": f"{b} − {a}", f"points [{points.level:.2%}]": ends})
    return to_markdown(pd.DataFrame(rows)) + "\n" + to_markdown(pd.DataFrame(differences))


if __name__ == "__main__":
    main()
