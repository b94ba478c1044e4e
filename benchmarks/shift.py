"""What does another site cost each recipe? Recorded runs on fresh rendered photos of both sites, no study's.

    python benchmarks/shift.py --photos FOLDER [--study sample_2] [--listings 200 60] [--seeds 51 52]

Draws listings of the main site and of the second one, which is in another city, into FOLDER, unless they are there;
only photos of cars count, without copies. For each recipe whose checkpoints are on this machine: accuracy on both, all
seeds together, and how much lower it is on the second, with 95 % intervals over listings. No label is sealed here, so
every recipe may be asked, and it may be asked again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from machine import describe

from carspotter.evidence.bias_variance import generalisation_gap
from carspotter.evidence.intervals import Interval, accuracy_interval
from carspotter.evidence.selection import recorded_recipes
from carspotter.models.store import Run
from carspotter.paths import Study
from carspotter.photos.images import load_images
from carspotter_sample.listings import CITIES, SHIFTED_CITY, write_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, metavar="FOLDER", help="outside the repository")
    parser.add_argument("--study", default="sample_2", help="whose runs (default: %(default)s)")
    parser.add_argument("--listings", type=int, nargs=2, default=[200, 60], metavar="N", help="main and second site")
    parser.add_argument("--seeds", type=int, nargs=2, default=[51, 52], metavar="S", help="never those of the study")
    options = parser.parse_args()
    print(describe("numpy", "pillow"))
    study = Study.open(options.study, None)
    models = tuple(sorted({name for runs in recorded_recipes(study).values() for name in runs[0].class_names}))
    sites = []
    for name, cities, count, seed in zip(
        ("main", "second"), (CITIES, (SHIFTED_CITY,)), options.listings, options.seeds, strict=True
    ):
        sites.append(cars_of(options.photos, f"{name}-{count}-{seed}", count, seed, models, cities))
    print(f"{len(sites[0])} photos of the main site, {len(sites[1])} of the second")
    for recipe, runs in recorded_recipes(study).items():
        runs = [run for run in runs if any(run.folder.glob("checkpoint.*"))]
        if runs:
            here, there = (score(runs, options.photos, cars) for cars in sites)
            print(
                f"{recipe}, {len(runs)} seeds: main {here}, second {there}, drop {generalisation_gap(here, there)}",
                flush=True,
            )


def cars_of(
    folder: Path, name: str, listings: int, seed: int, models: tuple[str, ...], cities: tuple[str, ...]
) -> pd.DataFrame:
    """Return the photos of cars, with the columns that `load_images` wants; they are drawn where they are missing."""
    if not (folder / name).exists():
        write_photos(folder / name, listings, seed, models, cities=cities)
    truth = pd.read_csv(folder / name / "truth.csv", keep_default_na=False)
    cars = truth[(truth["kind"] == "car") & (truth["copy"] == "")].reset_index(drop=True)
    return cars.assign(path=f"{name}/" + cars["file"])


def score(runs: list[Run], folder: Path, cars: pd.DataFrame) -> Interval:
    images = load_images(folder, cars, runs[0].image_size, show_progress=False)
    named = [np.array(run.class_names)[run.predict(images).argmax(axis=1)] for run in runs]
    return accuracy_interval(np.array(named) == cars["model"].to_numpy(), cars["listing"].to_numpy())


if __name__ == "__main__":
    main()
