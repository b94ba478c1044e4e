"""On Kaggle: each way it mounts data, notebooks run as they are, the package from the wheel alone, input untouched."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from generated_photos import published_photos
from notebook_cells import BOOTSTRAP, NOTEBOOKS

from carspotter import paths
from carspotter.kaggle import open_study
from carspotter_project.kaggle_push import build_wheel, write_notebook

LAYOUTS = ["cars-wagonr-swift", "datasets/ajaykgp12/cars-wagonr-swift", "ajaykgp12/cars-wagonr-swift"]
BY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=["by name", "datasets/owner", "owner"])
PER_CLASS = {"train": 20, "validation": 8, "test": 8}
# What Kaggle does with a notebook, in QUICK mode.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
cell.source = cell.source.replace("QUICK = False", "QUICK = True")
try:
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
finally:
    nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def photos():
    return published_photos(PER_CLASS)


@pytest.fixture
def bare_python(tmp_path):
    """An interpreter that has the libraries of this one, as Kaggle's image has them, but not the package."""
    folder = tmp_path / "python"
    venv.create(folder, with_pip=False, symlinks=True)
    own = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
    # A path in a .pth file is searched, but the .pth files in it, such as that of an editable install, are not read.
    (Path(own) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def lay_out(root, layout, photos, wheel, user="tester"):
    dataset = root / "input" / layout
    for name, content in photos.items():
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).write_bytes(content)
    attached = root / "input" / layout.replace("cars-wagonr-swift", "carspotter-wheel").replace("ajaykgp12", user)
    attached.mkdir(parents=True)
    shutil.copy(wheel, attached)
    (root / "working").mkdir()
    for path in (root / "input").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return root


def contents(folder):
    """Every path below a folder, with its mode, its time of change and its bytes' checksum."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
        )
        for path in folder.rglob("*")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "name"), list(zip(LAYOUTS, ("01_collect", "03_split", "04_baseline_cnn"), strict=True))
)
def test_a_notebook_runs_on_kaggle(tmp_path, bare_python, wheel, photos, layout, name):
    root = lay_out(tmp_path / "kaggle", layout, photos, wheel)
    source = next(path for path in NOTEBOOKS if path.stem == name)
    write_notebook(source, tmp_path / "pushed", "tester", False, [])
    before = contents(root / "input")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CARSPOTTER", "PYTHON"))}
    environment |= {
        "HOME": str(tmp_path / "home"),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KAGGLE_URL_BASE": "https://www.kaggle.com",
        # no net: whatever asks for it fails at once
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "PIP_NO_CACHE_DIR": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    target = tmp_path / "executed.ipynb"
    command = [bare_python, "-c", EXECUTE, tmp_path / "pushed" / source.name, target]
    finished = subprocess.run(command, cwd=root / "working", env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert contents(root / "input") == before, "input is read-only on Kaggle"
    assert {path.name for path in root.iterdir()} == {"input", "working"}
    study = paths.Study("swift_wagonr", root / "working" / "data", root / "working" / "results")
    assert study.splits.is_file() and list(study.raw.glob("kaggle-train/journal.jsonl"))
    executed = nbformat.read(target, as_version=4)
    said = "\n".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert "split of swift_wagonr, the published one: 0 photos excluded" in said


@pytest.fixture
def working(tmp_path, monkeypatch):
    """An empty Kaggle, and this process in its working folder."""
    (tmp_path / "input").mkdir()
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    monkeypatch.delenv("CARSPOTTER_HOME", raising=False)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    return tmp_path


@BY_LAYOUT
def test_the_data_are_found_in_every_layout(working, layout):
    assert paths.find_kaggle_dataset("ajaykgp12", "cars-wagonr-swift") is None
    (working / "input" / layout).mkdir(parents=True)
    assert paths.find_kaggle_dataset("ajaykgp12", "cars-wagonr-swift") == working / "input" / layout
    assert paths.Study.open("x").data == working / "working" / "data"


def test_without_the_data_set_the_notebook_says_what_to_attach(working):
    with pytest.raises(FileNotFoundError, match="attach the data set ajaykgp12/cars-wagonr-swift"):
        open_study("sample_2")


@pytest.mark.parametrize("above", ["", "datasets/tester/", "tester/"])
def test_the_sample_study_is_there_with_its_recorded_runs(working, above):
    (working / "input" / f"{above}carspotter-sample-2" / "sample_2").mkdir(parents=True)  # as Kaggle unzips an archive
    recorded = working / "input" / f"{above}carspotter-wheel" / "results" / "sample_2"
    recorded.mkdir(parents=True)
    (recorded / "splits.csv").write_text("sha256,label,group,split\n")
    (recorded / "splits.csv").chmod(0o444)
    study = open_study("sample_2")
    assert study.name == "sample_2" and study.folder == working / "working" / "results" / "sample_2"
    assert study.splits.read_text() == "sha256,label,group,split\n"
    study.splits.write_text("mine")  # what is recorded on Kaggle is written beside it
    assert open_study("sample_2").splits.read_text() == "mine"


def test_elsewhere_nothing_is_kaggle(working, monkeypatch):
    (working / "input" / LAYOUTS[0]).mkdir()
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    assert paths.kaggle() is None and paths.find_kaggle_dataset("ajaykgp12", "cars-wagonr-swift") is None
    assert open_study("sample_2").name == "sample_2"
    assert paths.home() == working / "working"


def test_without_wheel_and_address_the_set_up_cell_says_what_to_attach(tmp_path):
    finished = subprocess.run(
        # -S: without the libraries, so that the package is missing as on a fresh Kaggle
        [sys.executable, "-S", "-c", f'STUDY = "sample_2"\n{BOOTSTRAP}'],
        env=os.environ | {"PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1 and "attach its wheel" in finished.stderr
    assert "Traceback" not in finished.stderr and list(tmp_path.iterdir()) == []


def test_the_bootstrap_cell_clones_the_repository_where_no_wheel_is_attached(working, bare_python):
    """From a repository on this machine, in place of one on the net; run twice, as after a restart of the kernel."""
    place = working / "origin"
    package = place / "carspotter"
    package.mkdir(parents=True)
    (package / "kaggle.py").write_text("def open_study(name):\n    return f'{name} from git'\n")
    (place / "notebooks").mkdir()
    (place / "notebooks" / "01_collect.ipynb").write_text("{}")
    (place / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "carspotter"\nversion = "9"\n[tool.setuptools]\npackages = ["carspotter"]\n'
    )
    git = ["git", "-C", str(place), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    cell = BOOTSTRAP.replace('GIT = ""', f'GIT = "file://{place}"')
    code = f'STUDY = "sample_2"\n{cell}\nprint(study, "in", Path.cwd().name)\n'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for _ in range(2):
        finished = subprocess.run(
            [bare_python, "-c", code],
            env=environment | {"PIP_NO_BUILD_ISOLATION": "0"},
            cwd=working / "working",
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.split() == ["sample_2", "from", "git", "in", "notebooks"]
