import os
import signal
import tempfile
from pathlib import Path

import pytest
from generated_photos import noise_study

# Two workers share two cores: with a thread for each core in both, the threads would mostly wait for one another.
for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(variable, "1")

# A shell starts jobs in the background with Ctrl-C ignored; tests that send it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def short_path():
    """A temporary folder with a short name, for a browser's TMPDIR.

    Chromium puts a socket there, whose path may have 107 bytes; pytest's own folders are longer in parallel runs.
    """
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        yield Path(folder)


@pytest.fixture
def toy_study(tmp_path):
    """A study of 40 photos of noise in two classes, dark and bright, ten of them for validation."""
    return noise_study(tmp_path)
