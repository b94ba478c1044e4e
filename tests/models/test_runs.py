"""Runs: recorded once, found again, resumed after a kill, read without photos or frameworks."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from carspotter.models import history, runs, store
from carspotter.models.experiments import AUGMENTATION, Experiment, quick
from carspotter.models.history import HISTORY, TrainingDiverged
from carspotter.photos.journal import hold
from carspotter.photos.splitting import read_splits
from carspotter.photos.table import read_photos

# Small enough for seconds, with everything that has a state: batch norm, dropout, augmentation, a schedule.
TINY = Experiment(
    "tiny", conv_channels=(4, 8), dense_units=8, batch_size=10, epochs=3, learning_rate=1e-3, image_size=24
)
STATEFUL = replace(
    TINY, name="stateful", augmentation="mild", dropout_rate=0.5, batch_norm="after_relu", schedule="warmup_cosine"
)


@pytest.fixture(params=["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("keras", "tensorflow"))])
def framework(request):
    pytest.importorskip(request.param)
    return request.param


def images_of(study, photos, size):
    photos = photos[["sha256"]].merge(read_photos(study.data)[["sha256", "path"]], on="sha256")
    return np.array(runs.load_images(study.data, photos, size, show_progress=False))


def training_photos(study):
    splits = read_splits(study)
    return splits[splits["split"] == "train"].sort_values("sha256")


def test_a_run_is_recorded_and_its_checkpoint_gives_the_recorded_probabilities(toy_study, framework):
    run = runs.train_run(toy_study, STATEFUL, framework, show_progress=False)

    assert list(run.history.columns) == HISTORY and list(run.history["epoch"]) == [1, 2, 3]
    assert list(run.validation.columns) == ["sha256", "label", "bright", "dark"] and len(run.validation) == 10
    table = store.read_runs(toy_study)
    assert list(table.columns) == store.COLUMNS and len(table) == 1
    assert (run.row["train_photos"], run.row["validation_photos"], run.row["classes"]) == (30, 10, "bright dark")
    labels = (run.validation["label"] == "dark").to_numpy()
    recorded = run.validation[["bright", "dark"]].to_numpy()
    assert run.row["best_validation_accuracy"] == pytest.approx((recorded.argmax(axis=1) == labels).mean())
    groups = read_splits(toy_study).set_index("sha256")["group"][run.validation["sha256"]]
    first = history.halves(groups)
    assert run.history["choosing_accuracy"].max() == pytest.approx((recorded.argmax(axis=1) == labels)[first].mean())
    assert run.row["processor_seconds"] == pytest.approx(run.history["processor_seconds"].sum(), abs=0.1)
    assert run.minutes == pytest.approx(run.row["processor_seconds"] / 60)
    files = {path.name for path in run.folder.iterdir() if path.name != ".lock"}
    checkpoint = "checkpoint.pt" if framework == "torch" else "checkpoint.weights.h5"
    assert files == {"spec.json", "history.csv", "validation.csv", "validation_epochs.npz", checkpoint}

    accuracies = (run.epoch_probabilities.argmax(axis=2) == labels).mean(axis=1)
    np.testing.assert_allclose(accuracies, run.history["validation_accuracy"])
    assert run.experiment == STATEFUL
    images = images_of(toy_study, run.validation, 24)
    np.testing.assert_allclose(run.predict(images), recorded, atol=1e-4)
    with pytest.raises(ValueError, match="24, 24, 3"):
        run.predict(images.astype(np.float32))
    training = training_photos(toy_study)
    hits = run.predict(images_of(toy_study, training, 24)).argmax(axis=1) == (training["label"] == "dark").to_numpy()
    assert run.row["best_inference_train_accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
    summary = run.summary()[run.id]
    assert summary["epochs"].startswith("3, best")
    trained, validated = run.row["last_inference_train_accuracy"], run.row["mean_last_five_validation_accuracy"]
    assert float(summary["gap, the first minus the second"]) == pytest.approx(trained - validated, abs=1e-3)


def test_asking_twice_trains_once_and_the_second_time_needs_no_photos(toy_study, monkeypatch):
    pytest.importorskip("torch")
    first = runs.load_or_train(toy_study, TINY, "torch", show_progress=False)
    for module, name in ((runs, "load_images"), (runs, "read_photos"), (store, "import_framework")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("photos or a framework were asked for"))
    second = runs.load_or_train(toy_study, TINY, "torch", show_progress=False)
    assert second.id == first.id
    pd.testing.assert_frame_equal(second.history, first.history)


def test_a_run_is_named_by_all_that_makes_it(toy_study):
    def name(experiment=TINY, framework="keras", seed=0):
        return runs.specify_run(toy_study, experiment, framework, seed)["run"]

    some = tuple(training_photos(toy_study)["sha256"][:4])
    names = [
        name(),
        name(framework="torch"),
        name(seed=1),
        name(quick(TINY)),
        *(name(replace(TINY, **{field: value})) for field, value in {
            "name": "other", "dense_units": 9, "dtype": "bfloat16", "epochs": 4, "image_size": 32,
            "training_subset": some, "optimizer": "adam",
        }.items()),
        name(replace(TINY, training_subset=(*some, some[0]))),
    ]  # fmt: skip
    assert name(replace(TINY, training_subset=some[::-1])) in names, "the order of the subset does not matter"
    assert name(replace(TINY, weights="anything")) == names[0], "without a backbone there are no weights"
    toy_study.splits.write_text(toy_study.splits.read_text().replace(",validation\n", ",train\n", 1))
    names.append(name())
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="framework 'caffe' is unknown"):
        name(framework="caffe")


def test_a_quick_run_takes_few_photos_small_and_two_epochs(toy_study):
    pytest.importorskip("torch")
    few = replace(quick(replace(TINY, image_size=70)), photo_limit=16)
    run = runs.train_run(toy_study, few, "torch", show_progress=False)
    assert (run.row["train_photos"], run.row["validation_photos"], run.row["quick"]) == (12, 4, True)
    assert (len(run.history), run.image_size) == (2, 64)


def test_a_run_can_be_trained_on_some_photos_and_on_some_twice(toy_study, framework, monkeypatch):
    lesson, seen = store.import_framework(framework), []
    batches = lesson.PhotoBatches

    def spy(images, labels, *rest):
        seen.append((np.array(images), labels))
        return batches(images, labels, *rest)

    monkeypatch.setattr(lesson, "PhotoBatches", spy)
    training = training_photos(toy_study).reset_index(drop=True)
    rows = [9, 2, 2, 5, 4, 9, 9, 0, 13, 14, 15, 16]
    some = replace(TINY, epochs=1, training_subset=tuple(training["sha256"][rows]))
    run = runs.train_run(toy_study, some, framework, show_progress=False)
    assert (run.row["train_photos"], run.row["validation_photos"]) == (12, 10)
    assert run.row["train_on"] == run.spec["experiment"]["training_subset"] != ""
    ((images, labels),) = seen
    np.testing.assert_array_equal(images, images_of(toy_study, training, 24)[sorted(rows)])
    np.testing.assert_array_equal(labels, (training["label"][sorted(rows)] == "dark").astype(int))
    other = replace(some, training_subset=tuple(sorted(some.training_subset)))
    assert runs.load_or_train(toy_study, other, framework).id == run.id


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        (lambda splits: splits[:0], "empty"),
        (lambda splits: splits[splits["split"] == "validation"][:1], "are not"),
        (lambda splits: splits[(splits["split"] == "train") & (splits["label"] == "dark")], "two or more"),
    ],
    ids=["nothing", "a validation photo", "one class"],
)
def test_photos_that_cannot_be_trained_on_are_refused(toy_study, pick, message):
    pytest.importorskip("torch")
    subset = tuple(pick(read_splits(toy_study))["sha256"])
    with pytest.raises(ValueError, match=message):
        runs.train_run(toy_study, replace(TINY, training_subset=subset), "torch", show_progress=False)


class Killed(BaseException):
    """What a kill leaves on disk, without the process that it ends."""


def test_killed_and_resumed_equals_never_killed(toy_study, framework, monkeypatch):
    whole = runs.train_run(toy_study, STATEFUL, framework, show_progress=False)
    files = {path: path.read_bytes() for path in whole.folder.glob("*.csv")}
    predictions = whole.epoch_probabilities
    epochs = []

    on_epoch_end = history.Recorder.on_epoch_end

    def counted(self, epoch, logs):
        epochs.append(epoch)
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(history.Recorder, "on_epoch_end", counted)

    def killed_at(epoch, function, epoch_of):
        def killed(*arguments):
            if epoch_of(*arguments) == epoch:
                raise Killed
            return function(*arguments)

        return killed

    with monkeypatch.context() as patch:  # the second epoch is written, its state is not
        patch.setattr(history, "save_state", killed_at(2, history.save_state, lambda folder, state: state[0]))
        with pytest.raises(Killed):
            runs.train_run(toy_study, STATEFUL, framework, show_progress=False)
    if framework == "torch":  # the third epoch is trained, nothing of it is written: once is enough
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(history.Recorder, "on_epoch_end", killed_at(2, counted, lambda recorder, epoch, logs: epoch))
            runs.train_run(toy_study, STATEFUL, framework, show_progress=False)
    resumed = runs.train_run(toy_study, STATEFUL, framework, show_progress=False)

    assert epochs == [0, 1, 1, 2], "no finished epoch is trained again"
    without_times = [column for column in HISTORY if "seconds" not in column]
    before = whole.history
    if framework == "torch":
        pd.testing.assert_frame_equal(resumed.history[without_times], before[without_times], check_exact=True)
        assert (whole.folder / "validation.csv").read_bytes() == files[whole.folder / "validation.csv"]
        np.testing.assert_array_equal(resumed.epoch_probabilities, predictions)
    else:  # sums of several threads differ in the last digits
        pd.testing.assert_frame_equal(resumed.history[without_times], before[without_times], rtol=1e-3)
        np.testing.assert_allclose(resumed.epoch_probabilities, predictions, atol=5e-3)
    assert not (resumed.folder / store.STATE).exists()


def test_a_process_killed_by_the_system_leaves_a_state_that_resumes(toy_study):
    pytest.importorskip("torch")
    script = (
        "import os, pickle, signal, sys\n"
        "from carspotter.models import history, runs\n"
        "save_state = history.save_state\n"
        "def die(*arguments):\n"
        "    save_state(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "history.save_state = die\n"
        "runs.train_run(*pickle.load(sys.stdin.buffer), 'torch', show_progress=False)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps((toy_study, STATEFUL)),
        env=environment,
        timeout=300,
        capture_output=True,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert store.read_runs(toy_study).empty
    run_id = runs.specify_run(toy_study, STATEFUL, "torch")["run"]
    (toy_study.runs / run_id / ".part-1-checkpoint.pt").touch()
    assert store.load_state(toy_study.runs / run_id)[0] == 1
    run = runs.load_or_train(toy_study, STATEFUL, "torch", show_progress=False)
    assert list(run.history["epoch"]) == [1, 2, 3] and not list(run.folder.glob(".part-*"))


def test_a_run_that_diverges_stops_and_says_what_to_do(toy_study, framework):
    # the first step is infinite in float32; at 1e30 some processors' ReLU makes 0 of nan and training goes on
    wild = replace(TINY, name="wild", learning_rate=3e38, epochs=10)
    with pytest.raises(TrainingDiverged, match=r"wild-.*epoch \d+.*[Ll]ower learning_rate"):
        runs.train_run(toy_study, wild, framework, show_progress=False)
    assert store.read_runs(toy_study).empty


def test_a_run_without_a_gpu_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(history, "GPU", tmp_path / "nvidia0")
    assert history.explain_device("CPU, 2 cores", "torch") == "CPU, 2 cores, no GPU found"
    (tmp_path / "nvidia0").touch()
    assert "not seen by torch; install torch's build for CUDA" in history.explain_device("CPU, 2 cores", "torch")
    assert history.explain_device("NVIDIA H100", "torch") == "NVIDIA H100"


@pytest.mark.parametrize("name", ["ResourceExhaustedError", "OutOfMemoryError", "_ArrayMemoryError"])
def test_out_of_memory_is_explained(name):
    exhausted = type(name, (MemoryError if "Array" in name else Exception,), {})
    with pytest.raises(MemoryError, match="a-run: .*smaller batch_size"), runs.explain_memory("a-run", TINY):
        raise exhausted("OOM when allocating tensor")


def test_one_run_is_trained_by_one_process_at_a_time(toy_study):
    folder = toy_study.runs / runs.specify_run(toy_study, TINY, "torch", 0)["run"]
    with hold(folder / ".lock"), pytest.raises(RuntimeError, match="another process"):
        runs.train_run(toy_study, TINY, "torch", show_progress=False)


def test_rows_written_at_the_same_time_are_all_kept(toy_study):
    def append(number):
        store.append_row(toy_study, dict.fromkeys(store.COLUMNS, 0) | {"run": f"run-{number}"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(40)))
    assert set(store.read_runs(toy_study)["run"]) == {f"run-{number}" for number in range(40)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (None, FileNotFoundError, "carspotter split"),
        (("validation", "excluded"), ValueError, "no validation"),
        (("bright", "dark"), ValueError, "two or more"),
    ],
    ids=["no split", "no validation photos", "one class only"],
)
def test_a_study_that_cannot_be_trained_on_says_why(toy_study, change, error, message):
    pytest.importorskip("torch")
    if change:
        toy_study.splits.write_text(toy_study.splits.read_text().replace(*change))
    else:
        toy_study.splits.unlink()
    with pytest.raises(error, match=message):
        runs.train_run(toy_study, TINY, "torch", show_progress=False)


def test_photos_that_are_not_on_this_machine_are_counted(toy_study, monkeypatch):
    pytest.importorskip("torch")
    one = read_photos(toy_study.data)[:1]
    monkeypatch.setattr(runs, "read_photos", lambda data: one)
    with pytest.raises(FileNotFoundError, match="39 of the 40 photos"):
        runs.train_run(toy_study, TINY, "torch", show_progress=False)


def test_a_recorded_run_without_its_checkpoint_says_how_to_get_it(toy_study):
    pytest.importorskip("torch")
    run = runs.train_run(toy_study, TINY, "torch", show_progress=False)
    run.checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match="train_run"):
        store.load_run(toy_study, run.id).predict(np.zeros((1, 24, 24, 3), np.uint8))
    with pytest.raises(ValueError, match=f"no run 'tiny-torch-s0-1'; did you mean {run.id}"):
        store.load_run(toy_study, "tiny-torch-s0-1")


def test_a_run_whose_files_are_gone_is_named(toy_study):
    run = runs.train_run(toy_study, TINY, "torch", show_progress=False)
    shutil.rmtree(run.folder)
    with pytest.raises(ValueError, match="spec.json is missing, though runs.csv lists its run; restore it from git"):
        store.load_run(toy_study, run.id)


@pytest.mark.parametrize(
    "content", ["", "nonsense\n", "run,seed\n<<<<<<< HEAD\na,0\n=======\n", "<<<<<<< HEAD\nrun,seed\na,0\n"]
)
def test_a_damaged_table_of_runs_is_named_with_what_to_do(toy_study, content):
    toy_study.runs_table.write_text(content)
    with pytest.raises(ValueError, match=r"runs\.csv: not a table of runs .*; restore it from git"):
        store.read_runs(toy_study)


def test_files_that_the_training_did_not_write_stay(toy_study):
    folder = toy_study.runs / runs.specify_run(toy_study, TINY, "torch")["run"]
    (folder / "figures").mkdir(parents=True)
    for name in ("notes.md", ".part-1-2-history.csv"):
        (folder / name).touch()
    runs.train_run(toy_study, TINY, "torch", show_progress=False)
    assert {"notes.md", "figures"} < {path.name for path in folder.iterdir()}
    assert not list(folder.glob(".part-*")) and not (folder / store.STATE).exists()


def test_runs_of_an_older_recipe_are_read_and_their_experiment_is_refused(toy_study):
    pytest.importorskip("torch")
    run = runs.train_run(toy_study, TINY, "torch", show_progress=False)
    old = run.spec | {"recipe_version": 1, "experiment": {"name": "tiny", "averaged": False}}
    (run.folder / "spec.json").write_text(json.dumps(old))
    table = store.read_runs(toy_study).drop(columns=["processor_seconds"])
    table.to_csv(toy_study.runs_table, index=False)
    read = store.load_run(toy_study, run.id)
    assert list(store.read_runs(toy_study).columns) == store.COLUMNS
    assert read.image_size == 24 and len(read.history) == 3 and read.epoch_probabilities.shape == (3, 10, 2)
    with pytest.raises(ValueError, match=r"recipe 1.*train it anew"):
        _ = read.experiment


def test_how_long_a_run_will_take_is_known_from_those_recorded(toy_study):
    row = dict.fromkeys(store.COLUMNS, "")
    row |= {
        "run": "a",
        "seed": 0,
        "experiment": AUGMENTATION.name,
        "framework": "torch",
        "dtype": "float32",
        "epochs": 10,
    }
    row |= {"seconds": 60, "train_photos": 30, "image_size": 75, "device": f"CPU, {os.cpu_count()} cores"}
    assert runs.estimate_seconds(toy_study, AUGMENTATION, "torch") is None
    store.append_row(toy_study, row)
    # ten times the epochs and four times the pixels, on as many photos
    assert runs.estimate_seconds(toy_study, AUGMENTATION, "torch") == pytest.approx(60 * 10 * 4)
    assert runs.estimate_seconds(toy_study, AUGMENTATION, "keras") is None


def test_importing_runs_imports_no_framework():
    code = "import sys, carspotter.models.runs; print({'keras', 'torch', 'tensorflow'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_progress_is_plain_lines_where_there_is_no_terminal(toy_study, capsys, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("ipykernel")  # imported by another test or tool, it does not make this a notebook
    runs.train_run(toy_study, TINY, "torch", show_progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("carspotter.progress.SECONDS_BETWEEN_LINES", 0)
    runs.train_run(toy_study, TINY, "torch", show_progress=True)
    said = capsys.readouterr().err
    assert "\r" not in said and "0 of 0" not in said
    lines = said.splitlines()
    assert "30 photos of 24 px, 3 epochs" in lines[0]
    assert any("2 of 3 epochs" in line and "left, train 0." in line for line in lines)
    assert sum("3 of 3 epochs" in line for line in lines) == 1


def recorder_of(folder, labels, groups, predict):
    """A recorder whose model has no weights but a number that says when they were asked for."""
    recorder = history.Recorder(folder, "keras", labels, groups, predict, epochs=3, show_progress=False)
    model = SimpleNamespace(variables=[], get_weights=lambda: len(recorder.kept["rows"]))
    recorder.on_train_begin(model, SimpleNamespace(variables=[]), None)
    return recorder


def test_a_resumed_run_sees_the_best_epoch_that_an_uninterrupted_one_sees(tmp_path):
    labels = np.array([0, 1, 1])

    def train(epochs):
        for epoch, sure in epochs:  # one of three is right, which is no short decimal; the surer, the larger the loss
            shares = np.array([[sure, 1 - sure]] * 3, dtype=np.float32)
            recorder = recorder_of(tmp_path, labels, np.zeros(3), lambda shares=shares: shares)
            recorder.on_epoch_end(epoch, {"loss": 1.0, "accuracy": 1 / 3})
        return recorder

    train([(0, 0.6), (1, 0.7)])
    last = train([(2, 0.8)])
    best = history.best_epoch(last.history)["epoch"]
    assert best == last.kept["best"] == 1, "an equal accuracy with a larger loss is not better"


def test_predictions_of_an_epoch_keep_ties_apart_where_float16_would_not(tmp_path):
    store.write_predictions(tmp_path, np.array([[[0.50001, 0.49999], [1e-9, 1 - 1e-9]]]))
    read = store.Run("a", tmp_path, {}, {}, None, None).epoch_probabilities
    assert read[0].argmax(axis=1).tolist() == [0, 1]


def test_the_epoch_is_chosen_by_photos_that_certify_nothing(tmp_path):
    labels, groups = np.zeros(40, int), np.repeat(np.arange(20), 2)
    first, epochs = history.halves(groups), []
    recorder = recorder_of(tmp_path, labels, groups, lambda: epochs[-1])
    for epoch, right in enumerate((first, groups != groups[first][0])):  # of all, the second has more right
        epochs.append(np.stack([right, ~right], axis=1) * 0.8 + 0.1)
        recorder.on_epoch_end(epoch, {"loss": 1.0, "accuracy": 1.0})
    assert recorder.history["validation_accuracy"].idxmax() == 1 and history.best_epoch(recorder.history)["epoch"] == 1


def test_halves_share_no_group():
    groups = np.repeat([f"g{n}" for n in range(21)], 3)
    first = history.halves(groups)
    assert not set(groups[first]) & set(groups[~first]) and abs(int(first.sum()) - 31) <= 3
    assert (history.halves(groups, seed=1) != first).any()
