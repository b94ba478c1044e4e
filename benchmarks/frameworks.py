"""What each framework costs on this machine, the same recipe in each: python benchmarks/frameworks.py

Training photos/s, start-up, peak memory, lines of our lesson file, export paths; and the accuracy of the recorded runs
with the verdict on their equality, where a study has runs of all three (`python -m carspotter sweep` makes them).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
from machine import describe, run_contestant

from carspotter.evidence.report import framework_verdicts, to_markdown
from carspotter.models.experiments import SERIES
from carspotter.models.history import describe_model
from carspotter.models.store import FRAMEWORKS, import_framework, sibling_lines
from carspotter.paths import Study
from carspotter_check.export import FORMATS

EPOCHS = 3  # the first one compiles; the quickest of the others counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="batch_norm", help="default: %(default)s")
    parser.add_argument("--photos", type=int, default=240, help="generated, per epoch (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=150, help="pixels (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per framework (default %(default)s)")
    parser.add_argument("--study", default="civic_altima_2", help="whose runs are compared (default %(default)s)")
    parser.add_argument("--contestant", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, options.experiment, options.photos, options.image_size)))
        return
    print(describe("keras", "torch", "tensorflow"))
    asked = ("--experiment", options.experiment, "--photos", options.photos, "--image-size", options.image_size)
    measured = {name: [] for name in FRAMEWORKS}
    for _ in range(options.rounds):  # in turns, so that a busy minute does not hit one alone
        for name in FRAMEWORKS:
            measured[name].append(run_contestant(__file__, "--contestant", name, *asked))
    rows = []
    for name, results in measured.items():
        numbers = pd.DataFrame(results)
        rows.append({"framework": name, **numbers.median(numeric_only=True), "lines": sibling_lines(name)})
        rows[-1] |= numbers[["device", "versions"]].iloc[0].to_dict() | {"exports": ", ".join(FORMATS[name])}
    print(to_markdown(pd.DataFrame(rows).round(2)))
    verdicts = framework_verdicts(Study.open(options.study), options.experiment)
    print(to_markdown(verdicts) if len(verdicts) else f"no runs of {options.experiment} in two frameworks to compare")


def measure(framework: str, experiment: str, photos: int, image_size: int) -> dict:
    """Train on noise in this process and return photos/s, start-up times in seconds, peak memory, device, versions."""
    started = time.perf_counter()
    lesson = import_framework(framework)
    imported = time.perf_counter()
    spec = replace(SERIES[experiment], image_size=image_size, epochs=EPOCHS)
    images = np.random.default_rng(0).integers(0, 256, (photos, image_size, image_size, 3), dtype=np.uint8)
    labels = np.arange(photos) % 2
    model = lesson.build_model(spec, 2)
    one_step = replace(spec, epochs=1)
    batch = lesson.PhotoBatches(images[: spec.batch_size], labels[: spec.batch_size], one_step)
    lesson.train(model, batch, one_step)
    stepped = time.perf_counter()

    ends = []
    callback = SimpleNamespace(
        on_train_begin=lambda *_: None, on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    )
    if framework == "keras":
        callback = lesson.keras.callbacks.LambdaCallback(on_epoch_end=callback.on_epoch_end)
    batches = lesson.PhotoBatches(images, labels, spec)
    lesson.train(model, batches, spec, callbacks=[callback])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, in kB elsewhere
    facts = describe_model(framework, model)
    return {
        "photos_per_second": float(len(batches) * spec.batch_size / np.diff(ends).min()),
        "import_seconds": imported - started,
        "first_step_seconds": stepped - started,
        "peak_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "device": facts["device"],
        "versions": facts["versions"],
    }


if __name__ == "__main__":
    main()
