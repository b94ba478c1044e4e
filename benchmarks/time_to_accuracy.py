"""How much compute until a wanted accuracy? `batch_norm` until its own final accuracy less half a point; `fast_recipe`.

    python benchmarks/time_to_accuracy.py --study civic_altima_2 [--data DIR] [--framework torch] [--seeds 3]
    python benchmarks/time_to_accuracy.py --study civic_altima_2 --image-size 64 --recorded     # trains nothing

Recorded runs are taken as they are; missing ones are trained (resumable: killed and called again, it goes on). Final
accuracy: mean of the last five epochs and of all seeds, on validation photos. A seed reaches the target in the first
epoch in which its validation accuracy is there; one that never does counts with all its epochs and is named. Compute is
what training needs, forwards and backwards, without validation; seconds are those of the runs' own machines and include
validation. Needs the extra torch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from machine import describe
from torch.utils.flop_counter import FlopCounterMode

from carspotter.models import torch_cnn
from carspotter.models.experiments import BATCH_NORM, FAST_RECIPE, Experiment
from carspotter.models.runs import load_or_train
from carspotter.models.store import FRAMEWORKS, Run, load_run, read_runs
from carspotter.paths import Study

HALF_A_POINT = 0.005


@dataclass(frozen=True)
class Reached:
    """Where a run first had the target: epoch, seconds since its start; all of them where it never did."""

    epoch: int
    seconds: float
    ever: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="sample_2")
    parser.add_argument("--data", help="photos and tables (default: data)")
    parser.add_argument("--framework", choices=FRAMEWORKS, default="torch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="of both (default: each experiment's own)")
    parser.add_argument("--recorded", action="store_true", help="take what is recorded and train nothing")
    options = parser.parse_args()
    study = Study.open(options.study, options.data)
    print(describe("torch", "numpy"))
    target, base = None, None
    for experiment in (BATCH_NORM, FAST_RECIPE):
        runs = collect(study, experiment, options)
        if not runs:
            print(f"{experiment.name}: no recorded {options.framework} run in {study.runs_table}; leave --recorded out")
            return
        final = [run.history["validation_accuracy"].tail(5).mean() for run in runs]
        if target is None:
            target = float(np.mean(final)) - HALF_A_POINT
            print(f"target: {target:.4f}, half a point below what {experiment.name} ends with")
        reached = [first_reach(run.history, target) for run in runs]
        gflop = count_gflop(replace(experiment, image_size=runs[0].row["image_size"]))
        photos = runs[0].row["train_photos"]
        teraflop = np.mean([r.epoch for r in reached]) * photos * gflop / 1000
        seconds = np.mean([r.seconds for r in reached])
        never = sum(not r.ever for r in reached)
        print(
            f"{experiment.name}: {len(runs)} seeds, ends with {np.mean(final):.4f} "
            f"({', '.join(f'{accuracy:.3f}' for accuracy in final)}); "
            f"reached in epochs {', '.join(str(r.epoch) for r in reached)} of {runs[0].row['epochs']}"
            + (f" ({never} never reached it and count whole)" if never else "")
            + f"; {gflop:.3f} GFLOP a photo, {teraflop:.2f} TFLOP, {seconds:.0f} s ({runs[0].row['device']})"
        )
        base = base or (teraflop, seconds)
    print(
        f"fast_recipe needs {teraflop / base[0]:.2f} of the compute and {seconds / base[1]:.2f} of the seconds "
        "(wanted: .33 or less)"
    )


def collect(study: Study, experiment: Experiment, options: argparse.Namespace) -> list[Run]:
    """Return the runs of the experiment at full length, one per seed."""
    if not options.recorded:
        experiment = replace(experiment, image_size=options.image_size or experiment.image_size)
        return [load_or_train(study, experiment, options.framework, seed) for seed in range(options.seeds)]
    rows = read_runs(study)
    rows = rows[(rows["experiment"] == experiment.name) & (rows["framework"] == options.framework)]
    rows = rows[
        (rows["epochs"] == experiment.epochs) & (rows["image_size"] == (options.image_size or experiment.image_size))
    ]
    return [load_run(study, run) for run in rows.drop_duplicates("seed", keep="last")["run"]]


def first_reach(history: pd.DataFrame, target: float) -> Reached:
    """Find the first epoch at or above the target; columns epoch, validation_accuracy, seconds (of each epoch)."""
    there = history["validation_accuracy"].to_numpy() >= target
    epochs = int(np.argmax(there)) + 1 if there.any() else len(history)
    return Reached(epochs, float(history["seconds"].iloc[:epochs].sum()), bool(there.any()))


def count_gflop(experiment: Experiment) -> float:
    """Count what one photo costs in a training step: two operations for each product and its sum, as PyTorch counts."""
    photos, size = 4, experiment.image_size
    model = torch_cnn.build_model(experiment, 2).train()
    images = torch.zeros(photos, 3, size, size, device=model.logits.weight.device)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops() / photos / 1e9


if __name__ == "__main__":
    main()
