"""How fast does training go? Photos a second with augmentation from JPEG files on disk, against the original recipe.

    python benchmarks/train_throughput.py [--photos 240] [--epochs 2] [--rounds 2] [--dtype auto]

The original as published: Keras' `ImageDataGenerator.flow_from_directory` and `fit`, float32, batches of 20, 150 px; it
decodes the files again in each epoch. Ours: the experiment `augmentation` in each framework; its arrays are decoded in
an epoch that is not counted, as the original's first one is not. Beside it the step alone (no augmentation), and the
share of the machine's matrix rate that training reaches. Each contestant in its own process, one after another, in
rounds; the median round counts. Beside photos a second stand those a processor second, which tell more where other
work runs. bfloat16 where its matrix rate is the higher one. Needs the extras keras and torch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from machine import ORIGINAL_AUGMENTATION, describe, matrix_rates, run_contestant, write_jpegs

from carspotter.models.experiments import AUGMENTATION, BASELINE
from carspotter.models.store import FRAMEWORKS, import_framework
from carspotter.photos.images import load_images

SIZE = 150
GFLOP = 1.38  # per photo and step: forwards, and backwards to all weights
WANTED = "wanted on 4 cores with bfloat16 units: 1.7 for the best, 1.4 for each; .35 end to end, .45 the step alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=2, help="that count, after one that does not")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--contestant", choices=("original", "rates", *FRAMEWORKS), help=argparse.SUPPRESS)
    parser.add_argument("--step-alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant == "rates":
        print(json.dumps(matrix_rates()))
    elif options.contestant == "original":
        print(json.dumps(original(options.folder, options.epochs)))
    elif options.contestant:
        print(json.dumps(ours(options.contestant, options)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    print(describe("keras", "tensorflow", "torch", "numpy"))
    rates = run_contestant(__file__, "--contestant", "rates")
    dtype = max(rates, key=rates.get) if options.dtype == "auto" else options.dtype
    print(f"matrix rate: {', '.join(f'{name} {rate:.1f} GFLOP/s' for name, rate in rates.items())}; ours: {dtype}")
    best = rates[dtype]
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), options.photos)
        common = ("--folder", folder, "--epochs", options.epochs, "--dtype", dtype)
        for _ in range(options.rounds):
            for name in ("original", *FRAMEWORKS):
                for alone in (False,) if name == "original" else (False, True):
                    step = ("--step-alone",) if alone else ()
                    rates = run_contestant(__file__, "--contestant", name, *step, *common)
                    print(f"  {name}{' step alone' * alone}: {rates[0]:.1f} and {rates[1]:.1f}", flush=True)
                    measured.setdefault((name, alone), []).append(rates)
    median = {key: np.median(values, axis=0) for key, values in measured.items()}
    base = median["original", False]
    print(f"original     {base[0]:6.1f} photos a second end to end, {base[1]:.1f} a processor second")
    for name in FRAMEWORKS:
        (whole, of_processor), (step, _) = median[name, False], median[name, True]
        print(
            f"{name:12} {whole:6.1f} photos a second end to end, {whole / base[0]:.2f} × the original "
            f"({whole * GFLOP / best:.2f} of the matrix rate); {of_processor:.1f} a processor second, "
            f"{of_processor / base[1]:.2f} × the original; step alone {step:.1f} a second"
        )
    print(WANTED)


def original(folder: Path, epochs: int) -> tuple[float, float]:
    """Train as the original notebook does; return photos a second and a processor second."""
    import tensorflow as tf  # noqa: PLC0415 - one framework a process

    keras = tf.keras
    generator = keras.preprocessing.image.ImageDataGenerator(rescale=1 / 255, **ORIGINAL_AUGMENTATION)
    batches = generator.flow_from_directory(
        folder, target_size=(SIZE, SIZE), batch_size=20, class_mode="binary", classes=["a", "b"]
    )
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3))])
    for channels in (32, 64, 128, 128):
        model.add(keras.layers.Conv2D(channels, 3, activation="relu"))
        model.add(keras.layers.MaxPooling2D(2))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(512, activation="relu"))
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile(keras.optimizers.RMSprop(1e-4), "binary_crossentropy", metrics=["acc"])
    model.fit(batches, epochs=1, verbose=0)
    started = time.perf_counter(), time.process_time()
    model.fit(batches, epochs=epochs, verbose=0)
    photos = batches.samples * epochs
    return photos / (time.perf_counter() - started[0]), photos / (time.process_time() - started[1])


def ours(framework: str, options: argparse.Namespace) -> tuple[float, float]:
    """Train `augmentation`, or without augmenting; return photos a second and a processor second."""
    sibling = import_framework(framework)
    base = BASELINE if options.step_alone else AUGMENTATION
    experiment = replace(base, dtype=options.dtype, epochs=options.epochs + 1)
    paths = sorted(options.folder.glob("[ab]/*.jpg"))
    photos = pd.DataFrame({"sha256": [path.stem for path in paths], "path": [str(path) for path in paths]})
    images = load_images(options.folder, photos, SIZE, show_progress=False)
    labels = np.array([path.parent.name == "b" for path in paths]).astype(np.int64)
    ends = []

    def on_epoch_end(epoch: int, logs: dict) -> None:
        ends.append((time.perf_counter(), time.process_time()))

    if framework == "keras":
        callback = sibling.keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
    else:
        callback = SimpleNamespace(on_train_begin=lambda *_: None, on_epoch_end=on_epoch_end)
    batches = sibling.PhotoBatches(images, labels, experiment)
    sibling.train(sibling.build_model(experiment, 2), batches, experiment, callbacks=[callback])
    photos = len(batches) * experiment.batch_size * options.epochs
    return tuple(photos / (last - first) for first, last in zip(ends[0], ends[-1], strict=True))


if __name__ == "__main__":
    main()
