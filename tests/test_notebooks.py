"""Each notebook runs top to bottom in quick mode, and each committed one is fit to be read on the web."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from carspotter.walkthrough import execute_notebook

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
    execute_notebook(path, target, QUICK=True)
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


def test_a_failing_cell_is_named_and_the_copy_is_kept(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("N = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("raise ValueError(f'seven is not {N}')"),
    ]
    source = tmp_path / "99_broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source)
    with pytest.raises(RuntimeError, match=r"99_broken.ipynb failed.*seven is not 3"):
        execute_notebook(source, tmp_path / "out" / source.name, N=3)
    assert "seven is not 3" in (tmp_path / "out" / source.name).read_text()


def test_a_notebook_without_parameters_is_refused(tmp_path):
    source = tmp_path / "98_bare.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), source)
    with pytest.raises(RuntimeError, match="no cell tagged `parameters`"):
        execute_notebook(source, tmp_path / "out.ipynb", N=3)
