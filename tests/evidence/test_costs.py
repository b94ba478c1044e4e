"""What an accuracy costs, and what a framework costs: fronts by brute force, processes that are fresh."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from carspotter.evidence import frameworks
from carspotter.evidence.costs import inference_ms, pareto_front


def test_the_front_is_what_no_other_beats_by_brute_force():
    rng = np.random.default_rng(0)
    costs, accuracies = rng.integers(1, 12, 40), rng.integers(1, 12, 40)  # many ties
    expected = [
        not any(
            (c <= cost and a >= accuracy) and (c < cost or a > accuracy) for c, a in zip(costs, accuracies, strict=True)
        )
        for cost, accuracy in zip(costs, accuracies, strict=True)
    ]
    assert pareto_front(costs, accuracies).tolist() == expected
    assert 0 < sum(expected) < 40
    assert pareto_front([1, 1], [0.9, 0.9]).tolist() == [True, True]


def test_inference_is_timed_after_a_first_call_and_left_out_without_a_checkpoint(tmp_path):
    calls = []
    run = SimpleNamespace(folder=tmp_path, predict=calls.append)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    assert np.isnan(inference_ms(run, images)) and np.isnan(inference_ms(run, None)) and not calls
    (tmp_path / "checkpoint.pt").touch()
    assert inference_ms(run, images, repeats=2) >= 0 and len(calls) == 3


def test_lines_are_counted_without_lesson_comments_and_blanks(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "evidence").mkdir()
    (tmp_path / "models" / "torch_cnn.py").write_text('"""A lesson\n\nof three lines."""\n\n# why\nimport a\n\nb = 1\n')
    monkeypatch.setattr(frameworks, "__file__", str(tmp_path / "evidence" / "frameworks.py"))
    assert frameworks.sibling_lines("torch") == 2


def test_frameworks_are_measured_in_turns_each_in_a_fresh_process_and_medians_count(monkeypatch):
    started, seconds = [], iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])

    def run(command, **_):
        started.append(command[3])
        found = {"import_seconds": next(seconds), "device": "CPU", "versions": "1"}
        return SimpleNamespace(returncode=0, stdout=f"chatter\n{json.dumps(found)}\n")

    monkeypatch.setattr(frameworks.subprocess, "run", run)
    table = frameworks.compare_frameworks(frameworks=("torch", "keras"), rounds=3)
    assert started == ["torch", "keras"] * 3
    assert table["import_seconds"].tolist() == [2.0, 20.0]
    assert (table["lines"] > 100).all()
    failed = SimpleNamespace(returncode=1, stdout="", stderr="no such module")
    monkeypatch.setattr(frameworks.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="measuring torch failed: no such module"):
        frameworks.compare_frameworks(frameworks=("torch",))


def test_a_framework_that_was_imported_already_is_not_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "carspotter.models.tensorflow_cnn", SimpleNamespace())
    with pytest.raises(RuntimeError, match="measure it in a fresh process"):
        frameworks.measure("tensorflow", "baseline_cnn", 8, 64)


def test_one_real_process_gives_all_measures():
    table = frameworks.compare_frameworks("baseline_cnn", photos=24, image_size=64, frameworks=("torch",))
    (row,) = table.to_dict("records")
    assert 0 < row["import_seconds"] < row["first_step_seconds"]
    assert row["photos_per_second"] > 0 and row["peak_mb"] > 50
    assert pd.notna(row["device"]) and "torch" in row["versions"]
