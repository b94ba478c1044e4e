"""Each notebook runs top to bottom in quick mode, and each committed one is fit to be read on the web."""

import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One home for all notebooks, since each goes on from what the one before wrote."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARSPOTTER_HOME", str(folder))
        patch.setenv("IPYTHONDIR", str(folder / ".ipython"))
        yield folder


@BY_NAME
def test_runs_top_to_bottom_in_quick_mode(path, home):
    before = path.read_bytes()
    target = home / "notebooks" / path.name
    target.parent.mkdir(exist_ok=True)
    papermill.execute_notebook(
        path, target, {"QUICK": True}, cwd=target.parent, kernel_name="python3", progress_bar=False
    )
    assert path.read_bytes() == before, "the source notebook was written to"
    executed = nbformat.read(target, as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    figures = [cell for cell in executed.cells if "main-figure" in cell.metadata.get("tags", [])]
    assert any("image/jpeg" in json.dumps(cell) for cell in figures), "no cell tagged main-figure drew one"


@BY_NAME
def test_is_committed_executed_and_fit_to_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert path.stat().st_size < 600_000
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|tmp|mnt|kaggle)/", text), "an absolute path of a machine"


@BY_NAME
def test_keeps_to_the_form_of_the_series(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", [])
    for name in ("FRAMEWORK", "QUICK", "SEED", "DATA"):
        assert re.search(rf"^{name} = ", code[0].source, re.MULTILINE), f"{name} is missing among the parameters"
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    assert len(notebook.cells) <= 35
    assert not any(re.search(r"^class ", cell.source, re.MULTILINE) for cell in code)
