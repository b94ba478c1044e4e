"""Each notebook runs alone in quick mode, offline, and each committed one is fit to be read on the web."""

import re
import runpy
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest
from generated_photos import noise_study
from notebook_cells import BOOTSTRAP, NOTEBOOKS, bootstraps

from carspotter.paths import Study

BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
LESSONS = [path for path in NOTEBOOKS if 4 <= int(path.stem[:2]) <= 11]
# What is true of one study only, and so may not be typed.
OF_ONE_STUDY = r"rendered photos|hundred epochs|thirty epochs|2,4\d\d|civic|altima"


def committed_code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A home that holds a small generated study, not curated and without runs; each notebook gets a copy."""
    folder = tmp_path_factory.mktemp("toy")
    noise_study(folder, 60)
    return folder


@pytest.mark.slow
@BY_NAME
def test_runs_alone_in_quick_mode(path, toy, tmp_path, monkeypatch):
    home = shutil.copytree(toy, tmp_path / "home")
    monkeypatch.setenv("CARSPOTTER_HOME", str(home))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    before = path.read_bytes()
    target = tmp_path / path.name
    papermill.execute_notebook(path, target, {"QUICK": True, "STUDY": "toy"}, progress_bar=False, cwd=path.parent)
    assert path.read_bytes() == before, "the source notebook was written to"
    executed = nbformat.read(target, as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) or "image/jpeg" in output.get("data", {}) for output in outputs)
    assert not re.search(r"\bnan\b", " ".join(output.get("text", "") for output in outputs))


@BY_NAME
def test_is_committed_executed_and_fit_to_be_read(path):
    code = committed_code(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert path.stat().st_size < 800_000
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|tmp|mnt|kaggle|work)/", text), "an absolute path of a machine"


@BY_NAME
def test_keeps_to_the_form_of_the_series(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    assert code[0].metadata.tags == ["parameters"]
    names = re.findall(r"^([A-Z_]+) = ", code[0].source, re.MULTILINE)
    assert {"QUICK", "STUDY"} <= set(names) and len(names) <= 6
    assert bootstraps(path) == [BOOTSTRAP], "the set-up cell is the same in all notebooks"
    (answer,) = [cell for cell in code if "answer" in cell.metadata.get("tags", [])]
    assert answer is code[2], "the answer comes right after parameters and set-up, before all other imports"
    assert [cell.metadata["_kg_hide-input"] for cell in code[1:3]] == [True, True], "Kaggle folds their code away"
    assert len(notebook.cells) <= 32
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert text.count("<details>") >= 3, "three exercises, with their outcome folded away"


@BY_NAME
def test_no_sentence_speaks_of_one_study_only(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = re.sub(r"(?s)## On real photos.*?(?=\n## |\Z)|<details>.*?</details>", "", text)
    assert re.findall(OF_ONE_STUDY, prose, re.IGNORECASE) == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_builds_its_layers_and_trains_in_its_cells(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert any(re.search(r"layers\.(Conv2D|Dense)\(|nn\.Conv2d\(|lesson\.build_model\(", cell) for cell in cells)
    assert any(re.search(r"\.fit\(|\.backward\(|GradientTape", cell) for cell in cells)
    assert any("assert_allclose" in cell or "assert_close" in cell for cell in cells), "no proof of equality"


@pytest.mark.parametrize("path", NOTEBOOKS[3:15], ids=lambda path: path.stem)
def test_the_answer_on_the_first_screen_follows_from_the_recorded_runs(path, capsys, monkeypatch):
    monkeypatch.delenv("CARSPOTTER_HOME", raising=False)
    parameters, _, answer = committed_code(path)[:3]
    names = {"display": lambda figure: None}
    exec(parameters.source, names)
    exec(answer.source, names | {"study": Study.open(names["STUDY"])})
    assert capsys.readouterr().out == "".join(o.text for o in answer.outputs if o.output_type == "stream")


@pytest.mark.parametrize("number", ["04", "05", "09", "10"])
def test_what_a_lesson_trains_ends_near_the_recorded_runs(number):
    (path,) = [path for path in LESSONS if path.stem.startswith(number)]
    text = " ".join(output.get("text", "") for cell in committed_code(path) for output in cell.outputs)
    found = re.findall(r"validation, epochs \d+ to \d+: (\S+) here, (\S+) in recorded runs \(.*?([\d,]+) photos", text)
    assert len(found) == (2 if number == "05" else 1)
    for here, recorded, photos in found:
        assert abs(float(here) - float(recorded)) <= 0.05
        assert int(photos.replace(",", "")) >= 400


def test_the_address_reaches_title_set_up_cell_and_readme_and_leaves_them(tmp_path):
    root = Path(NOTEBOOKS[0]).parents[1]
    shutil.copytree(root / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("[!0]*", "0[!4]*"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, tmp_path)
    write_badges = runpy.run_path(str(root / "book" / "badges.py"))["main"]
    notebook, readme = tmp_path / "notebooks" / "04_baseline_cnn.ipynb", tmp_path / "README.md"
    write_badges(tmp_path)
    assert notebook.read_bytes() == (root / "notebooks" / notebook.name).read_bytes(), "what is in git has its address"
    assert readme.read_bytes() == (root / "README.md").read_bytes()
    own = (tmp_path / "pyproject.toml").read_text()
    address = "https://github.com/somebody/carspotter"
    own = re.sub(r"(?m)^Repository = .*\n", "", own).replace(
        "[project.urls]", f'[project.urls]\nRepository = "{address}"'
    )
    (tmp_path / "pyproject.toml").write_text(own)
    for _ in range(2):  # the second time changes nothing more
        write_badges(tmp_path)
        cells = nbformat.read(notebook, as_version=4).cells
        title, badges, text = cells[0].source.split("\n\n")[:3]
        assert title.startswith("# 04 · ") and not text.startswith("[![")
        assert (
            "colab.research.google.com/github/somebody/carspotter/blob/main/notebooks/04_baseline_cnn.ipynb" in badges
        )
        assert f"kaggle.com/kernels/welcome?src={address}/blob/main/notebooks/04_baseline_cnn.ipynb" in badges
        assert [f'GIT = "{address}"' in source for source in bootstraps(notebook)] == [True]
        assert readme.read_text().startswith("# Carspotter\n\n[![Open in Colab]")
