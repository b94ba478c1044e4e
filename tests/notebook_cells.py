"""What all notebooks share."""

from pathlib import Path

import nbformat

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("[0-9]*.ipynb"))


def bootstraps(path: Path) -> list[str]:
    """Return the set-up cells of a notebook, tagged `bootstrap`."""
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if "bootstrap" in cell.metadata.get("tags", [])]


(BOOTSTRAP,) = bootstraps(NOTEBOOKS[0])
