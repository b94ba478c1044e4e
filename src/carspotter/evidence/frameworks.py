"""Which framework: what each costs on this machine, the same recipe measured in fresh processes.

`python -m carspotter.evidence.frameworks torch …` is one such process; `compare_frameworks` starts them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from carspotter.models.experiments import SERIES
from carspotter.models.runs import FRAMEWORKS, import_framework

EPOCHS = 3  # the first one compiles; the quickest of the others counts


def compare_frameworks(
    experiment: str = "batch_norm",
    photos: int = 240,
    image_size: int = 150,
    frameworks: Sequence[str] = tuple(FRAMEWORKS),
    rounds: int = 1,
) -> pd.DataFrame:
    """Train `experiment` on noise in each framework, and say what that costs: one row per framework.

    Every measurement has a process of its own, `rounds` of them, in turns, so that a busy minute does not hit one
    alone; medians count. Columns: framework, photos_per_second (training, whole batches, after the first epoch),
    import_seconds, first_step_seconds (import to the end of the first step), peak_mb (resident memory),
    lines (of our sibling file, blank ones and comments left out), device, versions. Raises RuntimeError, with the
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
    """Count the lines of code in a framework's sibling file, without blank ones, comments and the opening lesson."""
    path = Path(__file__).resolve().parents[1] / "models" / f"{FRAMEWORKS[framework]}.py"
    text = path.read_text(encoding="utf-8")
    lesson = text.count("\n", 0, text.index('"""', 3)) + 1 if text.startswith('"""') else 0
    lines = [line.strip() for line in text.splitlines()[lesson:]]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def measure(framework: str, experiment: str, photos: int, image_size: int) -> dict:
    """Measure one framework in this process, which must not have imported it before."""
    if framework.replace("tensorflow", "tf") + "_models" in {name.rsplit(".", 1)[-1] for name in sys.modules}:
        raise RuntimeError(f"{framework} has been imported already; measure it in a fresh process")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (photos, image_size, image_size, 3), dtype=np.uint8)
    spec = replace(SERIES[experiment], image_size=image_size)
    steps, epochs = [], [time.perf_counter()]
    started = time.perf_counter()
    siblings = import_framework(framework)
    imported = time.perf_counter()
    model = siblings.build_model(spec, 2, image_size, 0)
    dataset = siblings.make_dataset(images, np.arange(photos) % 2, spec, 0)

    def on_batch(count: int) -> None:
        steps.append(time.perf_counter())

    def on_epoch(epoch: int, *_) -> bool:
        epochs.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as folder:
        siblings.train(model, dataset, images[:2], EPOCHS, Path(folder), on_epoch, on_batch)
    per_epoch = len(steps) // EPOCHS
    # from the end of an epoch's first step to that of its last: saving and validation are not training
    first, last = np.array(steps[::per_epoch]), np.array(steps[per_epoch - 1 :: per_epoch])
    trained = photos - spec.batch_size
    return {
        "photos_per_second": float(trained / (last - first)[1:].min()),
        "import_seconds": imported - started,
        "first_step_seconds": steps[0] - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 1024
        / (1024 if sys.platform == "darwin" else 1),
        **{name: siblings.describe(model)[name] for name in ("device", "versions")},
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
