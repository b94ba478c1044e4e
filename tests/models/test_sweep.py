"""Sweeps: the cells that a file asks for; every cell in its own process, a failed one not fatal."""

import numpy as np
import pytest
from generated_photos import noise_study

from carspotter.models.runs import read_runs
from carspotter.models.sweep import Cell, read_sweep, run_sweep


@pytest.fixture
def study(tmp_path):
    return noise_study(tmp_path)


def write(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_a_file_names_every_combination_once(tmp_path):
    text = 'experiments = ["baseline_cnn", "dropout"]\nframeworks = ["torch", "keras"]\nseeds = [0, 1, 2]\nepochs = 5\n'
    text += 'dtype = "bfloat16"\n'
    cells = read_sweep(write(tmp_path, text))
    assert len(set(cells)) == len(cells) == 12
    assert Cell("dropout", "torch", seed=2, epochs=5, dtype="bfloat16") in cells


def test_without_image_sizes_each_experiment_keeps_its_own(tmp_path):
    cells = read_sweep(write(tmp_path, 'experiments = ["baseline_cnn", "fast_recipe"]'))
    assert [cell.image_size for cell in cells] == [150, 96]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments = [", "not TOML"),
        ("seeds = [1]", "experiments is missing"),
        ('experiments = ["dropout"]\nseeds = 3', "seeds is 3; write a list"),
        ('experiments = ["vgg99"]', "vgg99.*baseline_cnn"),
        ('experiments = ["dropout"]\nframeworks = ["caffe"]', "caffe.*torch"),
        ('experiments = ["dropout"]\ndtype = "float8"', "dtype is 'float8'; use one of float32"),
        ('experiments = ["dropout"]\nseed = [1]', "seed is unknown; use.*seeds"),
    ],
    ids=[
        "broken",
        "no experiments",
        "not a list",
        "unknown experiment",
        "unknown framework",
        "unknown dtype",
        "unknown key",
    ],
)
def test_what_a_file_gets_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"sweep\.toml: .*{message}"):
        read_sweep(write(tmp_path, text))


def test_a_failed_cell_is_reported_and_the_rest_is_recorded(study):
    pytest.importorskip("torch")
    good = Cell("baseline_cnn", "torch", image_size=48, quick=True)
    bad = Cell("baseline_cnn", "torch", image_size=20, quick=True)
    table = run_sweep(study, [bad, good, good], processes=2, show_progress=False)
    assert list(table["image_size"]) == [20, 48], "a cell asked for twice is one cell"
    assert "20 px vanish" in table["error"][0] and np.isnan(table["best_validation_accuracy"][0])
    assert table["error"][1] == ""
    recorded = read_runs(study)
    assert list(recorded["run"]) == [table["run"][1]]

    again = run_sweep(study, [good], show_progress=False)
    assert again["run"][0] == table["run"][1]
    assert list(read_runs(study)["finished_time"]) == list(recorded["finished_time"]), "found, not trained again"
