"""Runs: recorded once, found again, resumed after a kill, read without photos or frameworks."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from carspotter.models import runs, watch
from carspotter.models.experiments import MOBILENET_FEATURES, Experiment
from carspotter.models.watch import HISTORY, TrainingDiverged, probabilities_of_epochs
from carspotter.paths import Study

# Small enough for seconds, with everything that has a state: batch norm, dropout, augmentation.
TINY = Experiment("tiny", conv_channels=(4, 8), dense_units=8, batch_size=10, epochs=3, learning_rate=1e-3)
STATEFUL = replace(TINY, name="stateful", augment=True, dropout_rate=0.5, batch_norm="after_relu")
SIZE = 24


def make_study(folder):
    """A study of 40 photos in two classes that brightness tells apart, with a test row whose label is blank."""
    study = Study("toy", folder / "data", folder / "results")
    study.folder.mkdir(parents=True)
    names = [f"{number:064x}" for number in range(44)]
    labels = ["bright" if number % 2 else "dark" for number in range(44)]
    splits = ["train"] * 28 + ["validation"] * 12 + ["test"] * 4
    rows = pd.DataFrame({"sha256": names, "label": labels, "group": names, "split": splits})
    rows.loc[rows["split"] == "test", "label"] = ""
    rows.to_csv(study.splits, index=False)
    return study


def fake_photos(monkeypatch):
    """Stand in for the photo wing: the photo of a hash is drawn from the hash itself."""

    def load_images(data, photos, size, show_progress=True):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 80, (len(photos), size, size, 3), dtype=np.uint8)
        images[photos["sha256"].map(lambda name: int(name, 16) % 2 == 1)] += 120
        return images

    monkeypatch.setattr(runs, "load_images", load_images)
    monkeypatch.setattr(
        runs,
        "read_photos",
        lambda data: pd.DataFrame({"sha256": [f"{n:064x}" for n in range(44)], "path": "photo.jpg"}),
    )


@pytest.fixture
def study(tmp_path, monkeypatch):
    fake_photos(monkeypatch)
    return make_study(tmp_path)


@pytest.fixture(params=["keras", "torch", "tensorflow"])
def framework(request):
    module = {"keras": "keras", "torch": "torch", "tensorflow": "tensorflow"}[request.param]
    pytest.importorskip(module)
    return request.param


def test_a_run_is_recorded_with_spec_history_predictions_and_one_row(study, framework):
    run = runs.train_run(study, TINY, framework, image_size=SIZE, show_progress=False)

    assert list(run.history.columns) == HISTORY and list(run.history["epoch"]) == [1, 2, 3]
    assert list(run.validation.columns) == ["sha256", "label", "bright", "dark"]
    assert len(run.validation) == 12
    np.testing.assert_allclose(run.validation[["bright", "dark"]].sum(axis=1), 1, atol=1e-5)
    table = runs.read_runs(study)
    assert list(table.columns) == runs.COLUMNS and len(table) == 1
    assert (run.row["train_photos"], run.row["validation_photos"], run.row["classes"]) == (28, 12, "bright dark")
    recorded = run.validation[["bright", "dark"]].to_numpy().argmax(axis=1) == (run.validation["label"] == "dark")
    assert run.row["best_validation_accuracy"] == pytest.approx(recorded.mean())
    assert run.row["best_validation_accuracy"] == pytest.approx(run.history["validation_accuracy"].max())
    assert json.loads((run.folder / "spec.json").read_text())["class_names"] == ["bright", "dark"]
    assert not list(run.folder.glob("resume*"))
    assert len(list(run.folder.glob("checkpoint*"))) == 1


def test_the_checkpoint_gives_the_recorded_probabilities(study, framework):
    run = runs.train_run(study, STATEFUL, framework, image_size=SIZE, show_progress=False)
    images = runs.load_images(study.data, run.validation, SIZE)
    np.testing.assert_allclose(run.predict(images), run.validation[["bright", "dark"]], atol=1e-4)
    with pytest.raises(ValueError, match="24, 24, 3"):
        run.predict(images.astype(np.float32))


def test_asking_twice_trains_once_and_the_second_time_needs_no_photos(study, monkeypatch):
    first = runs.load_or_train(study, TINY, "keras", image_size=SIZE, show_progress=False)

    def gone(*_, **__):
        raise AssertionError("photos were asked for")

    monkeypatch.setattr(runs, "load_images", gone)
    monkeypatch.setattr(runs, "read_photos", gone)
    monkeypatch.setattr(runs, "import_framework", gone)
    second = runs.load_or_train(study, TINY, "keras", image_size=SIZE, show_progress=False)
    assert second.id == first.id
    pd.testing.assert_frame_equal(second.history, first.history)


def test_a_run_is_named_by_all_that_makes_it(study):
    def name(experiment=TINY, framework="keras", seed=0, **options):
        options = {"image_size": SIZE} | options
        return runs.specify_run(study, experiment, framework, seed, **options)["run"]

    names = [
        name(),
        name(experiment=replace(TINY, dense_units=9)),
        name(experiment=replace(TINY, dtype="bfloat16")),
        name(framework="torch"),
        name(seed=1),
        name(quick=True),
        name(epochs=4),
        name(image_size=32),
        name(train_on=["a", "b"]),
        name(train_on=["a", "b", "b"]),
        name(experiment=SMALL_VGG, weights="none"),
        name(experiment=SMALL_VGG, weights="imagenet"),
    ]
    study.splits.write_text(study.splits.read_text().replace(",validation\n", ",train\n", 1))
    names.append(name())
    assert len(set(names)) == len(names)
    bfloat16 = name(experiment=replace(TINY, dtype="bfloat16"))
    assert name(dtype="bfloat16") == bfloat16 != names[-1], "the dtype asked for is the spec's"
    assert name(epochs=3) == names[-1], "the spec's own number of epochs, given by hand, is the same run"
    assert name(train_on=["b", "a"]) == name(train_on=("a", "b")), "the order of train_on does not matter"


def test_quick_mode_takes_48_photos_of_64_px_and_2_epochs(study, monkeypatch):
    sizes = []
    load_images = runs.load_images
    monkeypatch.setattr(
        runs,
        "load_images",
        lambda data, photos, size, p: (sizes.append((len(photos), size)), load_images(data, photos, size))[1],
    )
    run = runs.train_run(study, TINY, "keras", quick=True, show_progress=False)
    assert sizes == [(28, 64), (12, 64)]  # the toy study has fewer than 36 + 12
    assert len(run.history) == 2 and run.row["quick"]


def test_every_epochs_predictions_are_kept_and_give_its_accuracy(study):
    run = runs.train_run(study, TINY, "torch", image_size=SIZE, show_progress=False)
    labels = (run.validation["label"] == "dark").to_numpy()
    assert run.epoch_probabilities.shape == (3, 12, 2)
    accuracies = (run.epoch_probabilities.argmax(axis=2) == labels).mean(axis=1)
    np.testing.assert_allclose(accuracies, run.history["validation_accuracy"])
    best = run.epoch_probabilities[run.row["best_epoch"] - 1]
    np.testing.assert_allclose(best, run.validation[["bright", "dark"]], atol=2e-3)


def test_predictions_of_an_epoch_keep_ties_apart_where_float16_would_not(tmp_path):
    labels, probabilities = np.array([0, 1]), np.array([[0.50001, 0.49999], [1e-9, 1 - 1e-9]])
    spec = {"run": "a", "image_size": SIZE, "epochs": 1, "framework": "torch"}
    with watch.Watch(spec, tmp_path, "CPU", 2, labels, show_progress=False) as seen:
        seen.on_epoch(1, 0.5, 0.5, probabilities)
    assert probabilities_of_epochs(tmp_path)[0].argmax(axis=1).tolist() == [0, 1]


def test_training_accuracy_is_also_measured_as_at_inference(study, framework):
    run = runs.train_run(study, replace(STATEFUL, epochs=12), framework, image_size=SIZE, show_progress=False)
    training = pd.DataFrame({"sha256": [f"{number:064x}" for number in range(28)]})
    hits = run.predict(runs.load_images(study.data, training, SIZE)).argmax(axis=1) == np.arange(28) % 2 ^ 1
    assert run.row["best_inference_train_accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
    assert run.row["last_inference_train_accuracy"] > 0.5 and run.row["last_train_accuracy"] > 0.5


def test_a_run_can_be_trained_on_some_photos_and_on_some_twice(study, framework, monkeypatch):
    siblings, seen = runs.import_framework(framework), []
    make_dataset = siblings.make_dataset

    def spy(images, labels, *rest):
        seen.append((np.array(images), labels))
        return make_dataset(images, labels, *rest)

    monkeypatch.setattr(siblings, "make_dataset", spy)
    names = [f"{number:064x}" for number in range(28)]
    sample = [names[number] for number in (9, 2, 2, 5, 4, 9, 9, 0)]
    run = runs.train_run(study, TINY, framework, image_size=SIZE, train_on=sample, show_progress=False)
    assert (run.row["train_photos"], run.row["validation_photos"]) == (8, 12)
    assert run.row["train_on"] == run.spec["train_on"] != ""
    whole = runs.load_images(study.data, pd.DataFrame({"sha256": names}), SIZE)
    ((images, labels),) = seen
    np.testing.assert_array_equal(images, whole[[0, 2, 2, 4, 5, 9, 9, 9]])
    np.testing.assert_array_equal(labels, [1, 1, 1, 1, 0, 0, 0, 0])
    assert runs.load_or_train(study, TINY, framework, image_size=SIZE, train_on=sorted(sample)).id == run.id


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "empty"), ([f"{30:064x}"], "are not"), ([f"{2:064x}"], "two or more")],
    ids=["nothing", "a validation photo", "one class"],
)
def test_photos_that_cannot_be_trained_on_are_refused(study, names, message):
    with pytest.raises(ValueError, match=message):
        runs.train_run(study, TINY, "torch", image_size=SIZE, train_on=names, show_progress=False)


def test_quick_runs_take_few_of_the_photos_to_train_on(study):
    names = [f"{number:064x}" for number in (1, 1, 3, 4, 6)]
    run = runs.train_run(study, TINY, "torch", quick=True, train_on=names, show_progress=False)
    assert run.row["train_photos"] == 5


def test_a_table_without_the_younger_columns_is_read(study):
    runs.train_run(study, TINY, "torch", image_size=SIZE, show_progress=False)
    table = runs.read_runs(study).drop(columns=["train_on", "last_inference_train_accuracy"])
    table.to_csv(study.runs_table, index=False)
    assert list(runs.read_runs(study).columns) == runs.COLUMNS
    assert runs.read_runs(study)["train_on"].tolist() == [""]


SMALL_VGG = Experiment(
    "small_vgg", ((4, 4), (8, 8)), 8, dropout_rate=0.5, backbone="vgg16", batch_size=10, epochs=3, learning_rate=1e-3
)


@pytest.fixture
def backbone_file(tmp_path):
    path, rng = tmp_path / "vgg16_notop.h5", np.random.default_rng(0)
    with pytest.importorskip("h5py").File(path, "w") as file:
        for number, (before, after) in enumerate(((3, 4), (4, 4), (4, 8), (8, 8))):
            file[f"conv{number}/kernel:0"] = rng.normal(0, 0.2, (3, 3, before, after)).astype(np.float32)
            file[f"conv{number}/bias:0"] = np.zeros(after, np.float32)
    return path


def test_frozen_features_are_computed_once_and_the_checkpoint_holds_all(study, framework, backbone_file, monkeypatch):
    siblings, computed = runs.import_framework(framework), []
    compute = siblings.compute_features
    monkeypatch.setattr(siblings, "compute_features", lambda *rest: computed.append(1) or compute(*rest))
    options = {"image_size": SIZE, "weights": backbone_file, "show_progress": False}
    first = runs.load_or_train(study, SMALL_VGG, framework, **options)
    assert len(computed) == 2, "training and validation"
    runs.load_or_train(study, SMALL_VGG, framework, seed=1, **options)
    assert len(computed) == 2, "another seed has the same features"
    some = first.validation["sha256"].head(0).tolist() + [f"{number:064x}" for number in range(10)]
    runs.load_or_train(study, SMALL_VGG, framework, train_on=some, **options)
    assert len(computed) == 2, "a subset takes its features from the whole"
    assert first.row["weights"] == first.spec["weights_file"]["sha256"][:12]
    assert first.spec["pixels"].startswith("BGR")
    backbone_file.unlink()
    images = runs.load_images(study.data, first.validation, SIZE)
    found = runs.load_run(study, first.id).predict(images)
    np.testing.assert_allclose(found, first.validation[["bright", "dark"]], atol=1e-4)


def test_fine_tuning_goes_on_from_the_trained_head(study, framework, backbone_file):
    tuned = replace(SMALL_VGG, name="tuned", tuned_blocks=1, starts_from="vgg16_features", learning_rate=1e-5, epochs=1)
    run = runs.load_or_train(study, tuned, framework, image_size=SIZE, weights=backbone_file, epochs=3)
    table = runs.read_runs(study).set_index("experiment")
    assert list(table.index) == ["vgg16_features", "tuned"]
    before = runs.load_run(study, table.loc["vgg16_features", "run"])
    # At a rate this low the first epoch is still where the head had come to.
    assert run.history["validation_loss"].iloc[0] == pytest.approx(before.row["best_validation_loss"], rel=0.05)
    assert table.loc["tuned", "parameters"] == table.loc["vgg16_features", "parameters"] + 9 * 12 * 8 + 16


def test_weights_that_are_not_there_stop_the_run_before_photos_are_decoded(study, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "load_images", lambda *_: pytest.fail("photos were decoded"))
    with pytest.raises(FileNotFoundError, match="nowhere.h5"):
        runs.train_run(study, SMALL_VGG, "torch", weights=tmp_path / "nowhere.h5", show_progress=False)
    (tmp_path / "other.h5").write_text("no weights")
    with pytest.raises(ValueError, match="HDF5"):
        runs.train_run(study, SMALL_VGG, "torch", weights=tmp_path / "other.h5", show_progress=False)


@pytest.mark.parametrize("when", ["between epochs", "within an epoch"])
def test_killed_and_resumed_equals_never_killed(tmp_path, framework, when):
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import pytest
        from carspotter.models import runs
        import test_runs
        test_runs.fake_photos(pytest.MonkeyPatch())
        folder, framework, kill = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
        study = test_runs.Study("toy", folder / "data", folder / "results")
        batches = []
        def on_batch(self, photos):
            batches.append(photos)
            if kill == "within an epoch" and len(batches) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        runs.Watch.on_batch = on_batch
        on_epoch = runs.Watch.on_epoch
        def on_epoch_then_die(self, epoch, *rest):
            best = on_epoch(self, epoch, *rest)
            if kill == "between epochs" and epoch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return best
        runs.Watch.on_epoch = on_epoch_then_die
        runs.train_run(study, test_runs.STATEFUL, framework, image_size=test_runs.SIZE, show_progress=False)
        print("batches", len(batches))
        """
    )
    one_thread = os.environ | {
        "PYTHONPATH": os.pathsep.join(["src", "tests", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
    }

    def train(folder, kill):
        command = [sys.executable, "-c", script, str(folder), framework, kill]
        return subprocess.run(command, env=one_thread, capture_output=True, text=True, timeout=300)

    whole, killed = make_study(tmp_path / "whole"), make_study(tmp_path / "killed")
    assert train(tmp_path / "whole", "never").returncode == 0
    assert train(tmp_path / "killed", when).returncode == -signal.SIGKILL
    assert len(runs.read_runs(killed)) == 0
    resumed = train(tmp_path / "killed", "never")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split() == ["batches", "6"], "one epoch of three batches was finished, two were to go"

    run_id = runs.read_runs(whole)["run"].iloc[0]
    expected, found = runs.load_run(whole, run_id), runs.load_run(killed, run_id)
    pd.testing.assert_frame_equal(found.history.drop(columns="seconds"), expected.history.drop(columns="seconds"))
    pd.testing.assert_frame_equal(found.validation, expected.validation)
    np.testing.assert_array_equal(found.epoch_probabilities, expected.epoch_probabilities)
    assert len(list(found.folder.glob("checkpoint*"))) == 1


def test_a_run_that_diverges_stops_and_says_what_to_do(study, framework):
    # the first step is infinite in float32; at 1e30 some processors' ReLU makes 0 of nan and training goes on
    wild = replace(TINY, name="wild", learning_rate=3e38, epochs=10)
    with pytest.raises(TrainingDiverged, match=r"wild-.*epoch \d+.*[Ll]ower learning_rate"):
        runs.train_run(study, wild, framework, image_size=SIZE, show_progress=False)
    assert len(runs.read_runs(study)) == 0


def test_a_run_without_a_gpu_says_why(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(watch, "GPU", tmp_path / "nvidia0")
    spec = {"run": "a", "image_size": SIZE, "epochs": 1, "framework": "torch"}

    def headline(device):
        with watch.Watch(spec, tmp_path, device, 2, np.array([0]), show_progress=True):
            return capsys.readouterr().err

    assert "CPU, 2 cores, no GPU found" in headline("CPU, 2 cores")
    (tmp_path / "nvidia0").touch()
    assert "not seen by torch; install torch's build for CUDA" in headline("CPU, 2 cores")
    assert "CUDA" not in headline("NVIDIA H100")


@pytest.mark.parametrize("name", ["ResourceExhaustedError", "OutOfMemoryError", "_ArrayMemoryError"])
def test_out_of_memory_is_explained(study, monkeypatch, name):
    exhausted_error = type(name, (MemoryError if "Array" in name else Exception,), {})
    keras_models = runs.import_framework("keras")

    def exhausted(*_):
        raise exhausted_error("OOM when allocating tensor")

    monkeypatch.setattr(keras_models, "train", exhausted)
    with pytest.raises(MemoryError, match="smaller batch_size"):
        runs.train_run(study, TINY, "keras", image_size=SIZE, show_progress=False)


def test_one_run_is_trained_by_one_process_at_a_time(study):
    spec = runs.specify_run(study, TINY, "keras", 0, image_size=SIZE)
    folder = study.runs / spec["run"]
    folder.mkdir(parents=True)
    with runs.locked(folder), pytest.raises(RuntimeError, match="another process"):
        runs.train_run(study, TINY, "keras", image_size=SIZE, show_progress=False)


def test_rows_written_at_the_same_time_are_all_kept(study):
    from concurrent.futures import ThreadPoolExecutor

    def append(number):
        runs.append_row(study, dict.fromkeys(runs.COLUMNS, 0) | {"run": f"run-{number}"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(40)))
    assert set(runs.read_runs(study)["run"]) == {f"run-{number}" for number in range(40)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (None, FileNotFoundError, "carspotter split"),
        (("validation", "excluded"), ValueError, "no validation"),
        (("bright", "dark"), ValueError, "two or more"),
    ],
    ids=["no split", "no validation photos", "one class only"],
)
def test_a_study_that_cannot_be_trained_on_says_why(study, change, error, message):
    if change:
        study.splits.write_text(study.splits.read_text().replace(*change))
    else:
        study.splits.unlink()
    with pytest.raises(error, match=message):
        runs.train_run(study, TINY, "keras", image_size=SIZE, show_progress=False)


def test_photos_that_are_not_on_this_machine_are_counted(study, monkeypatch):
    monkeypatch.setattr(runs, "read_photos", lambda data: pd.DataFrame({"sha256": [f"{0:064x}"], "path": ["a.jpg"]}))
    with pytest.raises(FileNotFoundError, match="39 of the 40 photos"):
        runs.train_run(study, TINY, "keras", image_size=SIZE, show_progress=False)


def test_a_recorded_run_without_its_checkpoint_says_how_to_get_it(study):
    run = runs.train_run(study, TINY, "keras", image_size=SIZE, show_progress=False)
    for path in run.folder.glob("checkpoint*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="train_run"):
        runs.load_run(study, run.id).predict(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    with pytest.raises(KeyError, match="no run 'nothing'"):
        runs.load_run(study, "nothing")


def test_importing_runs_imports_no_framework():
    code = "import sys, carspotter.models.runs; print({'keras', 'torch', 'tensorflow'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")])}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_progress_is_plain_lines_where_there_is_no_terminal(study, capsys):
    runs.train_run(study, TINY, "keras", image_size=SIZE, show_progress=True)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 4, lines
    assert "epoch 2/3" in lines[2] and "photos/s" in lines[2] and "min left" in lines[2]


def test_a_resumed_run_sees_the_best_epoch_that_an_uninterrupted_one_sees(tmp_path):
    spec = {"run": "r", "image_size": 8, "epochs": 3, "experiment": {"learning_rate": 1}}
    labels = np.array([0, 1, 1])

    def shares(sure):  # one of three is right, which is no short decimal; the surer, the larger the loss
        return np.array([[sure, 1 - sure]] * 3, dtype=np.float32)

    with watch.Watch(spec, tmp_path, "CPU", 2, labels, show_progress=False) as first:
        assert first.on_epoch(1, 1.0, 1 / 3, shares(0.6))
        assert not first.on_epoch(2, 1.0, 1 / 3, shares(0.7))
    with watch.Watch(spec, tmp_path, "CPU", 2, labels, show_progress=False) as again:
        assert not again.on_epoch(3, 1.0, 1 / 3, shares(0.8)), "an equal accuracy with a larger loss is not better"
        assert again.best()["epoch"] == 1


def test_features_of_another_head_are_another_file(study, monkeypatch):
    spec = {"weights": "w", "pixels": "p", "image_size": 8, "framework": "keras"}
    spec["experiment"] = asdict(MOBILENET_FEATURES)
    monkeypatch.setattr(runs, "cached_features", lambda folder, key, *_: key)
    photos = pd.DataFrame({"sha256": ["a"]})
    keys = set()
    for changes in ({}, {"mirrored": False}, {"multi_level": False}, {"dropout_rate": 0.1}):
        changed = spec | {"experiment": spec["experiment"] | changes}
        keys.add(runs._features(study, changed, None, None, photos, None))
    assert len(keys) == 3, "the head's dropout changes no feature"
