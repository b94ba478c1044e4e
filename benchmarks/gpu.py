"""What does a GPU change? The original's longest training, `batch_norm` at 150 px for 200 epochs, in PyTorch.

    python benchmarks/gpu.py [--study sample_2] [--seeds 3] [--quick]

The original took 49 minutes for it on its GPU of 2019. The trainings are recorded runs of the study, so that a killed
benchmark goes on where it was. Beside them: photos a second against the card's rate in bfloat16 products, and two
epochs of Keras on its torch backend. `--quick` takes a few photos and two epochs, on whatever device there is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from machine import describe, run_contestant

from carspotter.models.experiments import BATCH_NORM, quick
from carspotter.models.runs import load_arrays, load_or_train
from carspotter.paths import Study

GFLOP = 1.38  # of the network at 150 px, per photo and step: forwards, and backwards to all weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="sample_2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--contestant", choices=("rate", "keras"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    study = Study.open(options.study)
    experiment = replace(BATCH_NORM, epochs=200)
    if options.quick:
        experiment = quick(experiment)
    if options.contestant == "rate":
        print(json.dumps(matrix_rate()))
    elif options.contestant == "keras":
        print(json.dumps(keras_on_torch(study, replace(experiment, epochs=2))))
    elif options.quick:  # its runs belong to nobody's results
        with tempfile.TemporaryDirectory() as folder:
            own = Study(study.name, study.data, Path(folder))
            own.folder.mkdir()
            shutil.copy(study.splits, own.splits)
            compare(own, experiment, options)
    else:
        compare(study, experiment, options)


def compare(study: Study, experiment, options: argparse.Namespace) -> None:
    print(describe("torch", "keras", "numpy"))
    common = ("--study", options.study, *(("--quick",) if options.quick else ()))
    rate = run_contestant(__file__, "--contestant", "rate", *common)
    print(f"bfloat16 products: {rate:,.1f} GFLOP/s")
    for seed in range(options.seeds):
        run = load_or_train(study, experiment, "torch", seed)
        row = run.row
        speed = row["photos_per_second"]
        share = f", {speed * GFLOP / rate:.3f} of the rate" if experiment.image_size == 150 else ""
        print(
            f"{run.id}: {row['epochs']} epochs of {row['train_photos']} photos in {row['seconds']:.0f} s, "
            f"{speed:.0f} photos a second{share}; validation {row['mean_last_five_validation_accuracy']:.3f}"
        )
    print(f"Keras on torch: {run_contestant(__file__, '--contestant', 'keras', *common):.0f} photos a second")


def matrix_rate(size: int = 4096, rounds: int = 5) -> float:
    """Return GFLOP/s of the best of some products of two bfloat16 matrices."""
    import torch  # noqa: PLC0415 - the contestant for Keras must choose its backend first

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size if device == "cuda" else size // 8
    left = torch.rand(size, size, dtype=torch.bfloat16, device=device)
    best = 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        float((left @ left)[0, 0])  # asking for a number waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def keras_on_torch(study: Study, experiment) -> float:
    """Return training photos a second of Keras on its torch backend, in the second epoch."""
    os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is imported
    import keras  # noqa: PLC0415

    from carspotter.models import keras_cnn  # noqa: PLC0415

    arrays = load_arrays(study, experiment)
    ends = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    model = keras_cnn.build_model(experiment, len(arrays.class_names))
    batches = keras_cnn.PhotoBatches(arrays.train_images, arrays.train_labels, experiment)
    keras_cnn.train(model, batches, experiment, callbacks=[watch])
    return len(arrays.train_images) / (ends[1] - ends[0])


if __name__ == "__main__":
    main()
