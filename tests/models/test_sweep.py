"""Sweeps: the cells that a file asks for; every cell in its own process, a failed one not fatal."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from carspotter.models import sweep
from carspotter.models.experiments import DROPOUT, FAST_RECIPE, VGG16_FEATURES, VGG16_FINE_TUNE, quick
from carspotter.models.store import read_runs
from carspotter.models.sweep import Cell, LocalEngine, read_sweep, run_sweep, train_cell

SMALL = quick(replace(DROPOUT, image_size=48))


def write(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_a_file_names_every_combination_once(tmp_path):
    text = 'experiments = ["baseline_cnn", "dropout"]\nframeworks = ["torch", "keras"]\nseeds = [0, 1, 2]\nepochs = 5\n'
    text += 'dtype = "bfloat16"\nimage_sizes = [64]\n'
    cells = read_sweep(write(tmp_path, text))
    assert len(set(cells)) == len(cells) == 12
    assert Cell(replace(DROPOUT, epochs=5, dtype="bfloat16", image_size=64), "torch", 2) in cells


def test_without_changes_each_experiment_keeps_its_own(tmp_path):
    cells = read_sweep(write(tmp_path, 'experiments = ["dropout", "fast_recipe"]'))
    assert cells == [Cell(DROPOUT), Cell(FAST_RECIPE)]
    (cell,) = read_sweep(write(tmp_path, 'experiments = ["vgg16_features"]\nquick = true\nweights = "none"'))
    assert cell.experiment == quick(replace(VGG16_FEATURES, weights="none"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments = [", "not TOML"),
        ("seeds = [1]", "experiments is missing"),
        ('experiments = ["dropout"]\nseeds = 3', "seeds is 3; it is a list"),
        ('experiments = ["vgg99"]', "vgg99.*baseline_cnn"),
        ('experiments = ["dropout"]\nframeworks = ["caffe"]', "caffe.*torch"),
        ('experiments = ["dropout"]\ndtype = "float8"', "dtype has 'float8'; use one of float32"),
        ('experiments = ["dropout"]\nepochs = "ten"', "epochs has 'ten'; use a whole number from 1"),
        ('experiments = ["dropout"]\nepochs = true', "epochs has True; use a whole number"),
        ('experiments = ["dropout"]\nquick = 1', "quick has 1; use one of true, false"),
        ('experiments = ["dropout"]\nweights = 1', "weights has 1; use a text"),
        ('experiments = ["dropout"]\nimage_sizes = ["64"]', "image_sizes has '64'; use a whole number"),
        ('experiments = ["dropout"]\nimage_sizes = [0]', "image_sizes has 0"),
        ('experiments = ["dropout"]\nseeds = [-1]', "seeds has -1; use a whole number from 0"),
        ('experiments = ["dropout"]\nseeds = []', r"seeds is \[\]"),
        ("experiments = [1]", "experiments has 1; use one of baseline_cnn"),
        ('experiments = [["a"]]', r"experiments has \['a'\]"),
        ("experiments = []", r"experiments is \[\]"),
        ('experiments = ["dropout"]\nseed = [1]', "seed is unknown; use.*seeds"),
    ],
)
def test_what_a_file_gets_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"sweep\.toml: .*{message}"):
        read_sweep(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.toml: cannot be read"):
        read_sweep(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes('experiments = ["dropout"]  # für'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml: not TOML in UTF-8"):
        read_sweep(tmp_path / "latin.toml")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_sweep_leaves_no_training_behind(tmp_path):
    """The child is kept busy by what it reads: sleep stands for a training."""
    code = """
import sys
from carspotter.models import sweep
class Slow:
    def __reduce__(self):
        here = f"__import__('pathlib').Path({sys.argv[1]!r}).write_text(str(__import__('os').getpid()))"
        return eval, (f"({here}, __import__('time').sleep(120))",)
sweep.LocalEngine(Slow(), 1)._run(None)
"""
    noted = tmp_path / "child"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(noted)], env=environment)
    child = wait_until(lambda: noted.exists() and int(noted.read_text() or 0))
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(child))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def is_running(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{number}/stat")  # an orphan that nobody has waited for is done
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_failed_cell_is_reported_and_the_rest_is_recorded(toy_study, capsys):
    pytest.importorskip("torch")
    good, bad = Cell(SMALL, "torch"), Cell(replace(SMALL, image_size=20), "torch")
    table = run_sweep(toy_study, [bad, good, good], processes=2, show_progress=False)
    assert list(table["image_size"]) == [20, 48], "a cell asked for twice is one cell"
    assert "20 px vanish" in table["error"][0] and np.isnan(table["best_validation_accuracy"][0])
    assert table["error"][1] == ""
    recorded = read_runs(toy_study)
    assert list(recorded["run"]) == [table["run"][1]]

    again = run_sweep(toy_study, [good], show_progress=False)
    assert again["run"][0] == table["run"][1] and again["seconds"][0] == 0
    assert list(read_runs(toy_study)["finished_time"]) == list(recorded["finished_time"]), "found, not trained again"


class InOrder:
    """An engine that notes what it is given, lets everything run side by side, and fails what it is told to fail."""

    def __init__(self, fails=()):
        self.fails, self.log = fails, []

    def __call__(self, study, processes):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, cell, start):
        self.log.append(f"begin {cell.experiment.name}")
        return cell.experiment.name

    def result(self, task):
        self.log.append(f"end {task}")
        return {"run": "", "seconds": 1.0, "error": "it broke" if task in self.fails else ""}


def test_a_cell_waits_for_the_one_it_starts_from(toy_study, monkeypatch):
    engine = InOrder()
    monkeypatch.setattr(sweep, "LocalEngine", engine)
    monkeypatch.setattr(sweep, "wait", lambda running, **_: SimpleNamespace(done=[list(running)[-1]]))
    tuned = Cell(replace(VGG16_FINE_TUNE, weights="none"), "torch")
    table = run_sweep(toy_study, [tuned, Cell(DROPOUT, "torch")], processes=3, show_progress=False)
    assert list(table["experiment"]) == ["vgg16_features", "vgg16_fine_tune", "dropout"], "the start has a row too"
    assert engine.log.index("end vgg16_features") < engine.log.index("begin vgg16_fine_tune")
    assert engine.log.index("begin dropout") < engine.log.index("end vgg16_features"), "others do not wait"

    engine.fails, engine.log = ("vgg16_features",), []
    table = run_sweep(toy_study, [tuned, Cell(DROPOUT, "torch")], processes=3, show_progress=False)
    assert list(table["error"].astype(bool)) == [True, True, False]
    assert "starts from vgg16_features, torch, 224 px, seed 0, which failed" in table["error"][1]
    assert "begin vgg16_fine_tune" not in engine.log


@pytest.mark.slow
def test_features_and_fine_tuning_side_by_side_are_both_recorded(toy_study):
    pytest.importorskip("torch")
    small = {"image_size": 32, "weights": "none", "photo_limit": 16, "epochs": 1, "batch_size": 4}
    cells = [Cell(replace(VGG16_FINE_TUNE, **small), "torch"), Cell(replace(VGG16_FEATURES, **small), "torch")]
    assert cells[0].start != cells[1], "the one asked for has another batch size than the one to start from"
    table = run_sweep(toy_study, cells, processes=3, show_progress=False)
    assert list(table["error"]) == [""] * 3
    assert sorted(read_runs(toy_study)["experiment"]) == ["vgg16_features", "vgg16_features", "vgg16_fine_tune"]


def test_a_programming_error_shows_where_it_was_made(toy_study, monkeypatch, capsys):
    def mistaken(*_, **__):
        return {}["nobody has this key"]

    monkeypatch.setattr(sweep, "load_or_train", mistaken)
    result = train_cell(toy_study, Cell(SMALL))
    assert result["error"] == "KeyError: 'nobody has this key'"
    assert "in mistaken" in result["traceback"]
    monkeypatch.setattr(LocalEngine, "_run", lambda self, cell: train_cell(toy_study, cell))
    run_sweep(toy_study, [Cell(SMALL)], show_progress=False)
    assert "in mistaken" in capsys.readouterr().err

    def expected(*_, **__):
        raise FileNotFoundError("photos are missing")

    monkeypatch.setattr(sweep, "load_or_train", expected)
    assert train_cell(toy_study, Cell(SMALL))["traceback"] == ""


def test_a_killed_process_is_named(toy_study, monkeypatch):
    monkeypatch.setattr(sweep.sys, "executable", "/bin/false")
    result = LocalEngine(toy_study, 1)._run(Cell(SMALL))
    assert result["error"] == "its process ended with status 1" and result["run"] == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_python_lost_ends_the_sweep_before_the_next_cell_does(toy_study, monkeypatch, capsys):
    class Reference:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    class Engine(LocalEngine):
        def submit(self, cell, start):
            task = Future()
            if cell.seed == 0:  # the other one goes on for hours
                task.set_result({"run": "", "seconds": 1.0, "error": "not trained"})
            return task

        def result(self, task):
            Reference()
            return task.result()

    monkeypatch.setattr(sweep, "LocalEngine", Engine)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(toy_study, [Cell(SMALL, "torch", seed) for seed in range(2)])
    assert "not trained" in capsys.readouterr().err, "it was lost, and heard later"
    assert signal.getsignal(signal.SIGINT) is before
