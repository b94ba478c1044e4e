"""The verbs, one after the other, as a person at a terminal would type them."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from carspotter.cli import GROUPS, _parser, main, study_of
from carspotter.doctor import examine

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def carspotter(home):
    """Run `python -m carspotter …` in a home of its own; give the finished process."""
    environment = {
        **os.environ,
        "CARSPOTTER_HOME": str(home),
        "PYTHONPATH": str(ROOT / "src"),
        "CARSPOTTER_REAL_PHOTOS": "",
    }

    def run(*arguments):
        command = [sys.executable, "-m", "carspotter", *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def photos(home, carspotter):
    """A class folder tree of rendered photos, with files in it that are no photos."""
    folder = home / "photos"
    finished = carspotter("sample", "photos", "--listings", 16, "--seed", 5, "--longest-side", 400, "--out", folder)
    assert finished.returncode == 0, finished.stderr
    swift = sorted((folder / "swift").iterdir())
    (folder / "swift" / "empty.jpg").write_bytes(b"")
    (folder / "swift" / "cut.jpg").write_bytes(swift[0].read_bytes()[:2000])
    (folder / "swift" / "page.jpg").write_text("<!doctype html><title>Not found</title>")
    Image.new("1", (9000, 9000)).save(folder / "swift" / "bomb.png")
    with Image.open(swift[1]) as photo:
        photo.convert("CMYK").save(folder / "swift" / "cmyk.jpg")
        photo.quantize(32).save(folder / "swift" / "palette.png")
        photo.save(folder / "swift" / "animated.gif", save_all=True, append_images=[photo.rotate(90)])
    return folder


@pytest.fixture(scope="module")
def split_photos(carspotter, photos):
    """Import, curate and split the photos; return what these verbs did."""
    verbs = (("import", photos), ("curate",), ("split", "--classes", "swift", "wagonr"))
    finished = [carspotter(*verb) for verb in verbs]
    assert [done.returncode for done in finished] == [0, 0, 0], finished
    return finished


@pytest.mark.slow
def test_the_whole_road_from_a_folder_to_a_checked_photo(home, carspotter, photos, split_photos):
    finished = split_photos[0]
    for name in ("empty.jpg", "cut.jpg", "page.jpg", "bomb.png"):
        assert f"swift/{name}: " in finished.stdout, "a refused file must be named with its reason"
    for name in ("cmyk.jpg", "palette.png", "animated.gif"):
        assert name not in finished.stdout, "a photo in an unusual form is still a photo"

    assert (home / "data" / "curation.csv").is_file()
    splits = pd.read_csv(home / "results" / "my_cars" / "splits.csv", keep_default_na=False)
    assert set(splits.loc[splits["split"] == "test", "label"]) == {""}
    assert set(splits.loc[splits["split"] == "train", "label"]) == {"swift", "wagonr"}
    finished = carspotter("split", "--verify")
    assert finished.returncode == 0, finished.stdout + finished.stderr

    finished = carspotter("train", "baseline_cnn", "--quick")
    assert finished.returncode == 0, finished.stderr
    assert "validation accuracy" in finished.stdout
    finished = carspotter("report")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == (home / "results" / "my_cars" / "report.md").read_text()
    assert "baseline_cnn" in finished.stdout

    photo = next((photos / "wagonr").iterdir())
    finished = carspotter("check", photo, photos / "swift" / "empty.jpg", "--claim", "swift", "--json")
    assert finished.returncode == 0, finished.stderr
    good, bad = map(json.loads, finished.stdout.splitlines())
    assert good["photo"] == photo.name
    assert sum(good["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert bad["verdict"] == "unusable" and "empty" in bad["reason"]


def test_importing_again_adds_nothing(home, carspotter, photos):
    carspotter("import", photos)
    journal = home / "data" / "raw" / "import" / "journal.jsonl"
    before = journal.read_text()
    assert carspotter("import", photos).returncode == 0
    assert journal.read_text() == before


def test_a_split_that_tears_a_group_apart_is_found(home, split_photos):
    other = home / "torn"
    shutil.copytree(home / "data", other / "data")
    shutil.copytree(home / "results", other / "results")
    path = other / "results" / "my_cars" / "splits.csv"
    splits = pd.read_csv(path, keep_default_na=False)
    training = splits[splits["split"] == "train"]
    torn = training[training["group"].duplicated(keep=False)].index[0]
    splits.loc[torn, "split"] = "validation"
    splits.to_csv(path, index=False)
    environment = {**os.environ, "CARSPOTTER_HOME": str(other), "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "carspotter", "split", "--verify"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 1, finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "nowhere"), "nowhere"),
        (("check", "nowhere.jpg"), "nowhere.jpg"),
        (("report", "--study", "unheard_of"), "train one"),
        (("train", "baseline_cnn", "--study", "unheard_of"), "carspotter split"),
        (("split", "--study", "../escape"), "cannot be a folder name"),
        (("forget", "abc"), "abc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(carspotter, photos, arguments, words):
    finished = carspotter(*arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert finished.stderr.startswith("carspotter: ") and "Traceback" not in finished.stderr


@pytest.mark.parametrize("data", [None, "elsewhere"])
def test_the_study_of_a_fetch_or_a_study_is_the_next_verbs_own(tmp_path, monkeypatch, data):
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "packed.zip").write_bytes(b"")  # a study with an archive has a data folder for itself
    monkeypatch.setattr("carspotter.kaggle.fetch", lambda *_: "fetched")
    monkeypatch.setattr("carspotter_project.walkthrough.run_study", lambda study, *_: study.data / "index.html")
    monkeypatch.setattr("carspotter.evidence.report.runs_report", lambda study: pd.DataFrame())
    options = ["--data", data] if data else []
    known = argparse.Namespace(study=None, data=data and Path(data))
    assert study_of(known).name == "my_cars"
    for verb, name in (
        (["study"], "my_cars"),
        (["kaggle", "fetch"], "swift_wagonr"),
        (["study", "--study", "packed"], "packed"),
        (["kaggle", "fetch", "--study", "published"], "published"),
        (["study", "--classes", "Alto", "i20"], "alto_i20"),
        (["study"], "alto_i20"),
    ):
        assert main([*verb, *options]) == 0
        assert study_of(known).name == name


def test_every_verb_is_in_one_group_of_the_help_and_has_an_example():
    verbs = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    grouped = [name for group in GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(verbs.choices)
    for name, parser in verbs.choices.items():
        assert f"carspotter {name}" in parser.epilog and parser.description


@pytest.mark.parametrize(
    "arguments, proposal",
    [
        (("chek",), "did you mean check"),
        (("train", "basline_cnn"), "did you mean baseline_cnn"),
        (("train", "baseline_cnn", "--framwork=torch"), "did you mean --framework"),
        (("kaggle", "fetch", "--minuts", "3"), "did you mean --minutes"),
    ],
)
def test_a_typing_error_gets_a_proposal(capsys, arguments, proposal):
    with pytest.raises(SystemExit, match="2"):
        main(list(arguments))
    assert proposal in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("serve", "--port", "99999"), "'99999' is no whole number from 0 to 65535"),
        (("review", "--port", "99999"), "'99999' is no whole number from 0 to 65535"),
        (("sample", "serve", "--port", "-1"), "'-1' is no whole number from 0 to 65535"),
        (("train", "dropout", "--seed", "-1"), "'-1' is no whole number from 0 to 4294967295"),
        (("review", "--quiz", "3", "--seed", "4294967296"), "'4294967296' is no whole number"),
        (("sample", "photos", "--out", "here", "--seed", "x"), "'x' is no whole number"),
        (("check", "photo.jpg", "--model", "bundle", "--run", "nope"), "not allowed with argument"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_is_done(capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        main(list(arguments))
    assert words in capsys.readouterr().err


def test_a_review_without_a_curation_says_so_before_it_describes_photos(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path))
    monkeypatch.setattr("carspotter.curation.appearance.describe_photos", lambda *_: pytest.fail("described"))
    assert main(["review"]) == 2
    assert "not curated yet" in capsys.readouterr().err


def test_a_host_that_is_not_there_is_named(capsys):
    assert main(["serve", "--host", "nohost.invalid"]) == 2
    assert "host nohost.invalid cannot be found" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["64MP", "inf", "0", "nan"])
def test_a_limit_of_pixels_that_is_none_is_named(given):
    environment = {**os.environ, "CARSPOTTER_MEGAPIXELS": given, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "carspotter", "import", "."]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    assert f"CARSPOTTER_MEGAPIXELS is '{given}'; give millions" in finished.stderr


def test_failed_cells_of_a_sweep_are_not_counted_as_trained(tmp_path, monkeypatch, capsys):
    table = pd.DataFrame({"seconds": [3600.0, 1800.0, 0.0], "error": ["", "it broke", ""]})
    monkeypatch.setattr("carspotter.models.sweep.read_sweep", lambda _: [])
    monkeypatch.setattr("carspotter.models.sweep.run_sweep", lambda *_: table)
    assert main(["sweep", "any.toml"]) == 1
    assert "cost: 1.50 cell-hours; 1 cells trained now, 1 failed" in capsys.readouterr().out


def test_a_bug_shows_its_traceback_and_bad_input_does_so_when_asked(monkeypatch, capsys):
    def break_down(*_, **__):
        raise AttributeError("a bug")

    monkeypatch.setattr("carspotter.doctor.examine", break_down)
    with pytest.raises(AttributeError):
        main(["doctor"])
    assert main(["forget", "abc"]) == 2
    monkeypatch.setenv("CARSPOTTER_DEBUG", "1")
    with pytest.raises(ValueError, match="abc"):
        main(["forget", "abc"])


def test_doctor_says_what_is_missing_and_how_to_get_it(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    findings = {finding.what: finding for finding in examine()}
    assert not findings["PyTorch"].works and "carspotter[torch]" in findings["PyTorch"].says
    assert findings["Python"].works and findings["disk"].says


def test_doctor_knows_tensorflow_by_the_name_under_which_the_light_setup_installs_it(monkeypatch):
    from importlib import metadata

    there, owners = metadata.version, metadata.packages_distributions() | {"tensorflow": ["tensorflow_cpu"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)

    def version(name):
        if name == "tensorflow":
            raise metadata.PackageNotFoundError(name)
        return "2.99" if name == "tensorflow_cpu" else there(name)

    monkeypatch.setattr(metadata, "version", version)
    findings = {finding.what: finding for finding in examine()}
    assert findings["TensorFlow"].says == "tensorflow 2.99"


def test_a_real_folder_of_photos_can_be_imported_and_split(tmp_path):
    folder = os.environ.get("CARSPOTTER_REAL_PHOTOS")
    if not folder:
        pytest.skip("CARSPOTTER_REAL_PHOTOS names no folder of real photos")
    environment = {**os.environ, "CARSPOTTER_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())[:2]
    for arguments in (
        ["import", folder, "--classes", *classes],
        ["curate"],
        ["split", "--classes", *classes],
        ["split", "--verify"],
    ):
        command = [sys.executable, "-m", "carspotter", *arguments]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.slow
def test_the_study_verb_goes_from_class_folders_to_a_page(tmp_path, photos):
    """The verb behind `make study`, with one epoch of the baseline."""
    environment = {**os.environ, "CARSPOTTER_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    command = [
        sys.executable,
        "-m",
        "carspotter",
        "study",
        str(photos),
        "--classes",
        "Swift",
        "wagonr",
        "--epochs",
        "1",
    ]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert "| fast_recipe | torch | 0 |" in finished.stdout
    page = (tmp_path / "data" / "reports" / "swift_wagonr" / "index.html").read_text()
    assert page.count('class="card"') == 3 and "study swift_wagonr" in page


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_a_verb_without_a_word(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` leaves it
    drawing = ["sample", "photos", "--listings", "1", "--longest-side", "100", "--out", str(tmp_path / "photos")]
    finished = subprocess.run(
        [sys.executable, "-m", "carspotter", *drawing],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    os.close(writing)
    assert finished.returncode == 141 and "roken pipe" not in finished.stderr
    assert (tmp_path / "photos" / "truth.csv").exists()
