"""Photos a second that curation fingerprints: SHA-256, decoding, perceptual copy, light and sharpness, at 640×480.

python -m benchmarks.hashing [--photos 400]
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.machine import describe, write_jpegs
from carspotter.photos.fingerprints import measure_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=400)
    options = parser.parse_args()
    print(describe("pillow", "numpy"))
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        write_jpegs(data, options.photos)
        files = sorted(data.rglob("*.jpg"))
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        photos = pd.DataFrame({"sha256": hashes, "path": [str(file.relative_to(data)) for file in files]})
        started, cpu = time.perf_counter(), time.process_time()
        fingerprints, unreadable = measure_photos(data, photos, show_progress=False)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert len(fingerprints) == options.photos and not unreadable
    print(f"{options.photos / seconds:.0f} photos a second, {options.photos / cpu:.0f} a second of CPU")


if __name__ == "__main__":
    main()
