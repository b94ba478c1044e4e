"""What works on this machine and what to install: the verb `doctor`."""

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from carspotter.paths import home

# What each part needs: modules, and the extra that brings them.
PARTS = {
    "Keras": (("keras", "tensorflow"), "keras"),
    "PyTorch": (("torch",), "torch"),
    "TensorFlow": (("tensorflow",), "tensorflow"),
    "notebooks": (("papermill", "ipykernel"), "notebooks"),
    "photo check server": (("onnxruntime", "fastapi", "uvicorn"), "serve"),
    "ONNX export": (("onnx",), "export"),
    "Ray sweeps": (("ray",), "cluster"),
    "Kaggle": (("kaggle",), "kaggle"),
    "HEIC photos": (("pillow_heif",), "heic"),
}
UNITS = {"avx512_bf16", "amx_bf16"}  # names in /proc/cpuinfo of the units that make bfloat16 quicker than float32
SPACE = 5 * 2**30  # bytes: the packages, and images of a few thousand photos


class Finding(NamedTuple):
    """One line of the report: what was looked at, whether it works, and what was found or what to do."""

    what: str
    works: bool
    says: str


def examine() -> list[Finding]:
    """Return what was found out about Python, packages, processor, browser, weights and disk; loads no framework."""
    owners = metadata.packages_distributions()  # tensorflow may come from tensorflow-cpu
    findings = [Finding("Python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}")]
    for what, (modules, extra) in PARTS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            says = f"{', '.join(missing)} missing: pip install 'carspotter[{extra}]'"
        else:
            says = ", ".join(" ".join([name, *map(metadata.version, owners.get(name, ()))]) for name in modules)
        findings.append(Finding(what, not missing, says))

    flags = Path("/proc/cpuinfo")
    found = UNITS & set(flags.read_text().split()) if flags.exists() else set()
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
    units = f"units for bfloat16 ({', '.join(sorted(found))})" if found else "no units for bfloat16: train in float32"
    findings.append(Finding("processor", True, f"{cores} cores, {units}"))

    gpu = "none found; everything works without one, more slowly"
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        gpu = "NVIDIA; PyTorch and TensorFlow use it if their builds have CUDA"
    elif sys.platform == "darwin" and platform.machine() == "arm64":
        gpu = "Apple's, used by PyTorch"
    findings.append(Finding("GPU", True, gpu))

    driven = shutil.which("chromedriver") and any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    missing = "no Chromium with chromedriver; the scraper needs it: make browser"
    findings.append(Finding("browser", bool(driven), "Chromium with its driver" if driven else missing))

    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    names = sorted(path.name for path in folder.glob("*notop*")) + sorted(path.name for path in folder.glob("*no_top*"))
    says = ", ".join(dict.fromkeys(names)) or "none in Keras' cache; downloaded when first used, or --weights FILE"
    findings.append(Finding("pretrained weights", bool(names), says))

    free = shutil.disk_usage(home()).free
    disk = f"{free / 2**30:.0f} GiB free where data and results are kept"
    return [*findings, Finding("disk", free > SPACE, disk)]
