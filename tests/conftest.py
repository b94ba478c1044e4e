import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def short_path():
    """A temporary folder with a short name, for a browser's TMPDIR.

    Chromium puts a socket there, whose path may have 107 bytes; pytest's own folders are longer in parallel runs.
    """
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        yield Path(folder)
