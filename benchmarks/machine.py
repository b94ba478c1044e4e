"""What the benchmarks share: words for the machine, its matrix rate, contestants in their own processes, JPEG files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

# The original study's arguments of Keras' ImageDataGenerator.
ORIGINAL_AUGMENTATION = {
    "rotation_range": 40,
    "width_shift_range": 0.2,
    "height_shift_range": 0.2,
    "shear_range": 0.2,
    "zoom_range": 0.2,
    "horizontal_flip": True,
}


def describe(*packages: str) -> str:
    """Say on what was measured: processor, cores that may be used, load of other work, versions of `packages`."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    flags = ""
    if information.exists():
        lines = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        model = lines.get("model name", model)
        present = set(lines.get("flags", "").split())
        flags = ", ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in present)
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{len(os.sched_getaffinity(0))} cores, {model} ({flags}), load of the minute before "
        f"{os.getloadavg()[0]:.1f}; python {platform.python_version()}, {versions}"
    )


def run_contestant(script: str, *arguments: object) -> dict:
    """Run `python script arguments` in a process of its own, warnings out of sight; its last line is JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def matrix_rates(seconds: float = 3.0, side: int = 2048) -> dict[str, float]:
    """Return the GFLOP/s of PyTorch's matrix product on all cores, by dtype: the best of the repetitions."""
    import torch  # noqa: PLC0415 - not every benchmark needs it

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - started)
        rates[str(dtype).removeprefix("torch.")] = 2 * side**3 / best / 1e9
    return rates


def write_jpegs(folder: Path, count: int, classes: tuple[str, ...] = ("a", "b")) -> None:
    """Write `count` JPEG files of 640×480, smooth shapes under noise (70 kB or so each), into one folder per class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(pixels + rng.integers(-12, 13, (480, 640, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / classes[number % len(classes)] / f"{number:05}.jpg", quality=85)
