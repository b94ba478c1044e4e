"""Which framework: what each costs on this machine, the same recipe measured in fresh processes.

`python -m carspotter.evidence.frameworks torch …` is one such process; `compare_frameworks` starts them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from carspotter.models.experiments import SERIES
from carspotter.models.history import describe_model
from carspotter.models.store import FRAMEWORKS, import_framework

EPOCHS = 3  # the first one compiles; the quickest of the others counts


def compare_frameworks(
    experiment: str = "batch_norm",
    photos: int = 240,
    image_size: int = 150,
    frameworks: Sequence[str] = tuple(FRAMEWORKS),
    rounds: int = 1,
) -> pd.DataFrame:
    """Train `experiment` on noise in each framework, and return what that costs: one row per framework.

    Every measurement has a process of its own, `rounds` of them, in turns, so that a busy minute does not hit one
    alone; medians count. Columns: framework, photos_per_second (of the quickest epoch after the first),
    import_seconds, first_step_seconds (import to the end of the first step), peak_mb (resident memory),
    lines (of the lesson file, blank ones and comments left out), device, versions. Raises RuntimeError, with the
    last lines of its output, where a process fails.
    """
    measured = {name: [] for name in frameworks}
    for _ in range(rounds):
        for name in frameworks:
            measured[name].append(_in_own_process(name, experiment, photos, image_size))
    rows = []
    for name, results in measured.items():
        numbers = pd.DataFrame(results)
        row = {"framework": name, **numbers.drop(columns=["device", "versions"]).median().to_dict()}
        rows.append(row | {"lines": sibling_lines(name)} | numbers[["device", "versions"]].iloc[0].to_dict())
    return pd.DataFrame(rows)


def sibling_lines(framework: str) -> int:
    """Return the lines of code in a framework's lesson file, without blank ones, comments and the opening lesson."""
    path = Path(__file__).resolve().parents[1] / "models" / f"{FRAMEWORKS[framework]}.py"
    text = path.read_text(encoding="utf-8")
    lesson = text.count("\n", 0, text.index('"""', 3)) + 1 if text.startswith('"""') else 0
    lines = [line.strip() for line in text.splitlines()[lesson:]]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def measure(framework: str, experiment: str, photos: int, image_size: int) -> dict:
    """Measure one framework in this process, which must not have imported it before."""
    if f"carspotter.models.{FRAMEWORKS[framework]}" in sys.modules:
        raise RuntimeError(f"{framework} has been imported already; measure it in a fresh process")
    started = time.perf_counter()
    sibling = import_framework(framework)
    imported = time.perf_counter()
    spec = replace(SERIES[experiment], image_size=image_size, epochs=EPOCHS)
    images = np.random.default_rng(0).integers(0, 256, (photos, image_size, image_size, 3), dtype=np.uint8)
    labels = np.arange(photos) % 2
    model = sibling.build_model(spec, 2)
    one_step = replace(spec, epochs=1)
    batch = sibling.PhotoBatches(images[: spec.batch_size], labels[: spec.batch_size], one_step)
    sibling.train(model, batch, one_step)
    stepped = time.perf_counter()

    ends = []
    callback = SimpleNamespace(
        on_train_begin=lambda *_: None, on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    )
    if framework == "keras":
        callback = sibling.keras.callbacks.LambdaCallback(on_epoch_end=callback.on_epoch_end)
    batches = sibling.PhotoBatches(images, labels, spec)
    sibling.train(model, batches, spec, callbacks=[callback])
    return {
        "photos_per_second": float(len(batches) * spec.batch_size / np.diff(ends).min()),
        "import_seconds": imported - started,
        "first_step_seconds": stepped - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 1024
        / (1024 if sys.platform == "darwin" else 1),
        **{name: describe_model(framework, model)[name] for name in ("device", "versions")},
    }


def _in_own_process(framework: str, experiment: str, photos: int, image_size: int) -> dict:
    command = [sys.executable, "-m", "carspotter.evidence.frameworks", framework, experiment, photos, image_size]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")])
        ),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if finished.returncode:
        raise RuntimeError(f"measuring {framework} failed: {finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
