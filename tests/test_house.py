"""The walls of the house: who may import whom, who may open what."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "carspotter"
WINGS = ["photos", "models", "curation", "evidence"]  # each imports only from wings above it
# They import carspotter, never the other way.
NEIGHBOURS = ["carspotter_check", "carspotter_project", "carspotter_review", "carspotter_sample"]
FRAMEWORKS = {"keras", "torch", "tensorflow"}
LESSONS = {"keras_cnn", "torch_cnn", "tensorflow_cnn"}
MAY_IMPORT_A_FRAMEWORK = LESSONS | {"parity", "keras_transfer", "torch_transfer", "explain", "export", "onnx_graph"}
SHARED = ("carspotter.photos.decoding", "carspotter.photos.journal")  # one decoder, one journal, for the scraper too


def python_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports_of(path):
    """All modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_only_from_wings_above_it(wing):
    below = [f"carspotter.{name}" for name in (*WINGS[WINGS.index(wing) + 1 :], "cli", "kaggle")] + NEIGHBOURS
    offences = [
        f"{name_of(path)} imports {module}"
        for path in python_files(f"src/carspotter/{wing}")
        for module in imports_of(path)
        if any(module == other or module.startswith(f"{other}.") for other in below)
    ]
    assert offences == []


def test_scraper_and_carspotter_do_not_know_each_other():
    offences = [
        f"{name_of(path)} imports {module}"
        for folder, other in (("scraper", "carspotter"), ("src", "scraper"))
        for path in python_files(folder)
        for module in imports_of(path)
        if module.split(".")[0] == other and not (folder == "scraper" and module.startswith(SHARED))
    ]
    assert offences == []
    shared = [ROOT / "src" / f"{module.replace('.', '/')}.py" for module in SHARED]
    shared.append(shared[0].with_name("headers.py"))  # the decoder's other room
    heavy = {"carspotter", "pandas"}
    assert not {
        module
        for path in shared
        for module in imports_of(path)
        if module.split(".")[0] in heavy and not module.startswith("carspotter.photos.headers")
    }


def test_framework_files_import_their_own_framework_and_no_sibling():
    for path in python_files("src"):
        modules = imports_of(path)
        frameworks = FRAMEWORKS & {module.split(".")[0] for module in modules}
        if path.stem not in MAY_IMPORT_A_FRAMEWORK:
            assert not frameworks, f"{name_of(path)} imports {frameworks}"
        if path.stem in LESSONS:
            siblings = {module for module in modules if module.rsplit(".", 1)[-1] in LESSONS}
            assert not siblings, f"{name_of(path)} imports {siblings}"


def test_only_the_data_side_and_the_sealed_test_touch_the_sealed_file():
    allowed = {"paths.py", "splitting.py", "verification.py", "archive.py", "sealed_test.py"}
    offences = [
        f"{name_of(path)}: {line.strip()}"
        for path in python_files("src")
        if path.name not in allowed
        for line in path.read_text().splitlines()
        if re.search(r"\.sealed\b|[\"']sealed[\"'/]", line)
    ]
    assert offences == []


def test_only_paths_knows_where_kaggle_mounts_things():
    offences = [name_of(path) for path in python_files("src", "scraper") if "/kaggle/" in path.read_text()]
    assert offences == ["src/carspotter/paths.py"]


def test_importing_the_package_loads_no_framework():
    light = (
        "carspotter, carspotter.cli, carspotter_project.walkthrough, carspotter.models.runs, carspotter.evidence.report"
    )
    code = f"""
import sys, {light}, carspotter.evidence.plots, carspotter_check.photo_check, carspotter.curation.curate
carspotter.cli._parser()
print(sorted({FRAMEWORKS!r} & set(sys.modules)))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "[]"


def test_every_requirement_is_pinned_exactly():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] not in "#"]
    assert lines and all(re.fullmatch(r"[A-Za-z0-9_.\-]+(\[[a-z]+\])?==[0-9][0-9A-Za-z.]*", line) for line in lines), (
        lines
    )


@pytest.mark.parametrize("goal", ["demo", "lab", "study", "setup-light"])
def test_the_light_installation_never_replaces_the_whole_one(tmp_path, goal):
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    for name in (".venv/bin/python", ".venv/.installed", ".venv/.light", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.utime(tmp_path / "requirements.txt", (4e9, 4e9))  # changed since
    planned = subprocess.run(
        ["make", "--dry-run", f"--makefile={ROOT / 'Makefile'}", goal], capture_output=True, text=True, cwd=tmp_path
    )
    assert "-r requirements.txt" in planned.stdout and "light.txt" not in planned.stdout
    assert ("--allow-root" in planned.stdout) == (goal == "lab" and os.geteuid() == 0)  # Jupyter asks root for it


def test_no_tracked_file_holds_a_path_of_a_machine():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    suffixes = {".py", ".md", ".toml", ".ipynb", ".txt", ".csv", ".json", ".jsonl", ".yaml", ""}
    homes = [str(ROOT) + "/", str(Path.home()) + "/"]
    offences = [
        name
        for name in tracked
        if Path(name).suffix in suffixes and (ROOT / name).is_file()
        for home in homes
        if home in (ROOT / name).read_text(encoding="utf-8")
    ]
    assert offences == []
