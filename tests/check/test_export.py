"""Export: every format of every framework answers as its run does, or is not written at all."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carspotter.models import experiments, runs, store
from carspotter.paths import Study
from carspotter_check import explain, export
from carspotter_check.bundle import load_onnx, read_manifest
from carspotter_check.model_card import write_card
from carspotter_check.onnx_graph import build_graph
from carspotter_check.open_world import OTHER_MODEL, unit_rows
from carspotter_check.photo_check import PhotoCheck

pytestmark = pytest.mark.slow  # models are trained and loaded again in each framework
SIZE = 40
TINY = replace(
    experiments.BATCH_NORM,
    name="tiny",
    conv_channels=(4, 8),
    dense_units=12,
    epochs=3,
    learning_rate=3e-3,
    augmentation="none",
    image_size=SIZE,
)


def draw(label, number, size=64):
    """A picture that a tiny model learns: bright bars, lying for one class and standing for the other."""
    rng = np.random.default_rng([len(label), number])
    pixels = rng.integers(30, 110, (size, size, 3))
    for start in rng.integers(4, size - 10, 4):
        where = (slice(start, start + 6), slice(None))
        pixels[where if label == "lying" else where[::-1]] += 120
    return np.clip(pixels, 0, 255).astype(np.uint8)


def make_study(folder, classes=("lying", "standing"), each=30):
    """A study with photos on disk, a split and an empty record; photos are named by number, not by their hash."""
    study = Study("bars", folder / "data", folder / "results")
    study.folder.mkdir(parents=True)
    (study.data / "photos").mkdir(parents=True)
    rows = []
    for label in classes:
        for number in range(each):
            sha256 = f"{len(rows):064x}"
            Image.fromarray(draw(label, number)).save(study.data / f"photos/{sha256}.png")
            split = "validation" if number % 3 == 2 else "train"
            rows.append({"sha256": sha256, "label": label, "group": sha256, "split": split})
    pd.DataFrame(rows).to_csv(study.splits, index=False)
    return study


def read_photos(data):
    names = sorted(path.stem for path in (data / "photos").glob("*.png"))
    rows = {"sha256": names, "path": [f"photos/{name}.png" for name in names], "width": 64, "height": 64}
    return pd.DataFrame(rows | {"label": "", "kind": None})


@pytest.fixture(scope="module", autouse=True)
def photos_without_a_journal():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "read_photos", read_photos)
        patch.setattr(export, "read_photos", read_photos)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def runs_of(study):
    """Train one tiny run per framework, when asked for it."""

    def train(framework, experiment=TINY):
        pytest.importorskip(framework)
        return runs.load_or_train(study, experiment, framework, show_progress=False)

    return train


@pytest.fixture(scope="module")
def bundle(study, runs_of):
    return export.export_run(study, runs_of("torch").id, show_progress=False)


NETWORKS = {
    "plain": replace(TINY, batch_norm="none", dropout_rate=0.5),
    "after_relu": TINY,
    "before_relu": replace(TINY, batch_norm="before_relu"),
    "fast_recipe": replace(experiments.SERIES["fast_recipe"], image_size=64, dtype="float32"),
    "vgg16": replace(experiments.VGG16_FEATURES, image_size=32),
    "mobilenet_features": replace(experiments.MOBILENET_FEATURES, image_size=64, backbone_width=0.35),
    "mobilenet_odd": replace(experiments.MOBILENET_FINE_TUNE, image_size=75, backbone_width=0.35),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
def test_the_onnx_graph_answers_as_each_framework_does(framework, network, tmp_path):
    pytest.importorskip(framework)
    experiment = NETWORKS[network]
    if experiment.backbone == "mobilenet_v2" and framework != "keras":
        pytest.skip("MobileNetV2 runs in Keras only")
    for classes in (["a", "b"], ["a", "b", "c"]):
        model = store.import_builder(experiment, framework).build_model(experiment, len(classes))
        shake_norms(framework, model)
        (tmp_path / "model.onnx").write_bytes(build_graph(framework, model, experiment, classes))
        size = experiment.image_size
        predict = load_onnx(tmp_path / "model.onnx", 1, classes, size)
        images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
        probabilities, features = predict(images)
        expected = store.import_framework(framework).predict(model, images, experiment)
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        assert len(features) == 4 and np.ptp(features) > 0


def test_features_are_means_and_deviations_of_the_last_pools(tmp_path):
    torch = pytest.importorskip("torch")
    experiment = experiments.BASELINE
    model = store.import_builder(experiment, "torch").build_model(experiment, 2)
    (tmp_path / "model.onnx").write_bytes(build_graph("torch", model, experiment, ["a", "b"]))
    images = np.random.default_rng(0).integers(0, 256, (2, 150, 150, 3), dtype=np.uint8)
    maps = []
    for layer in model.modules():
        if isinstance(layer, torch.nn.MaxPool2d):
            layer.register_forward_hook(lambda layer, inputs, output: maps.append(output.detach().flatten(2)))
    model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2))
    parts = [part for pool in maps[-3:] for part in (pool.mean(2), pool.std(2, unbiased=False))]
    expected = np.concatenate([unit_rows(part) for part in parts], axis=1)
    np.testing.assert_allclose(load_onnx(tmp_path / "model.onnx", 1)(images)[1], expected, atol=1e-4)


def shake_norms(framework, model):
    """Fresh running figures are 0 and 1, which would hide a mix-up."""
    rng = np.random.default_rng(1)
    if framework == "torch":
        for name, array in model.state_dict().items():
            if array.ndim == 1 and "num_batches" not in name:
                array.copy_(array.new_tensor(rng.uniform(0.5, 1.5, tuple(array.shape))))
        return
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])


def test_a_layer_that_the_graph_does_not_know_is_named():
    keras = pytest.importorskip("keras")
    images = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(images, keras.layers.LayerNormalization()(images))
    with pytest.raises(ValueError, match="LayerNormalization: no line"):
        build_graph("keras", model, TINY, ["a", "b"])


@pytest.mark.parametrize(
    ("framework", "to"),
    [("keras", "keras"), ("keras", "savedmodel"), ("keras", "litert"), ("tensorflow", "keras"),
     ("tensorflow", "savedmodel"), ("tensorflow", "litert"), ("torch", "onnx")],
)  # fmt: skip
def test_a_bundle_holds_the_model_and_what_belongs_to_it(study, runs_of, framework, to):
    run = runs_of(framework)
    bundle = export.export_run(study, run.id, to, show_progress=False)

    manifest = read_manifest(bundle)
    assert manifest["run"] == run.id and manifest["classes"] == ["lying", "standing"]
    assert manifest["parity"]["photos"] == 20 and manifest["parity"]["largest_difference"] <= 1e-3
    assert any(name.startswith(export.FILES[to]) for name in manifest["files"])
    card = (bundle / "model_card.md").read_text()
    assert run.spec["split_version"] in card and "never been opened" in card and "validation accuracy" in card


LOADERS = {
    "onnx": "import onnxruntime\nrun = lambda x: onnxruntime.InferenceSession(path).run(['logits'], {'image': x})[0]",
    "keras": "import keras\nrun = lambda x: keras.saving.load_model(path).predict(x.astype('float32'), verbose=0)",
    "savedmodel": """import tensorflow as tf
model = tf.saved_model.load(path)
run = lambda x: model.serve(tf.constant(x, tf.float32)).numpy()""",
    "litert": """import tensorflow as tf
def run(x):
    model = tf.lite.Interpreter(path)
    entry, answer = model.get_input_details()[0], model.get_output_details()[0]
    model.resize_tensor_input(entry["index"], x.shape)
    model.allocate_tensors()
    model.set_tensor(entry["index"], x.astype("float32"))
    model.invoke()
    return model.get_tensor(answer["index"])""",
}  # fmt: skip


def test_a_process_without_this_project_gets_the_same_logits(study, runs_of, tmp_path):
    run = runs_of("keras")
    bundle = export.export_run(study, run.id, out=tmp_path / "bundle", show_progress=False)
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    path = str(bundle / export.FILES["onnx"])
    code = f"import sys, numpy as np\npath = {path!r}\n{LOADERS['onnx']}\n"
    code += "np.save('logits.npy', run(np.load('images.npy')))"
    code += "\nassert not any(name.startswith('carspotter') for name in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = run.model.predict(images, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), ours, atol=1e-3)


@pytest.mark.parametrize("to", ["keras", "savedmodel", "litert"])
def test_each_network_is_loaded_in_a_process_without_this_project(tmp_path, to):
    pytest.importorskip("tensorflow")
    rng, ours = np.random.default_rng(0), {}
    for name, experiment in NETWORKS.items():
        model = store.import_builder(experiment, "keras").build_model(experiment, 2)
        path = tmp_path / name / export.FILES[to]
        path.parent.mkdir(parents=True)
        export._write_keras(model, to, path)
        images = rng.integers(0, 256, (2, experiment.image_size, experiment.image_size, 3), dtype=np.uint8)
        np.save(tmp_path / name / "images.npy", images)
        ours[name] = model.predict(images.astype(np.float32), verbose=0)
    code = f"""import sys, numpy as np
for name in {[*NETWORKS]}:
    path = name + '/{export.FILES[to]}'
    exec({LOADERS[to]!r})
    np.save(name + '/logits.npy', run(np.load(name + '/images.npy')))
assert not any(name.startswith('carspotter') for name in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, logits in ours.items():
        np.testing.assert_allclose(np.load(tmp_path / name / "logits.npy"), logits, atol=1e-3, err_msg=name)


def test_the_card_counts_evaluations_of_each_sealed_set_apart_and_gives_the_runs_own_scores(study, runs_of, tmp_path):
    run = runs_of("keras")
    manifest = read_manifest(export.export_run(study, run.id, "keras", show_progress=False))
    seen = Study(study.name, study.data, tmp_path)
    seen.folder.mkdir(parents=True)
    for path in (study.splits, study.runs_table):
        (seen.folder / path.name).write_bytes(path.read_bytes())
    ledger = ""
    for name, split in ((run.id, "test"), ("another", "test"), (run.id, "shifted")):
        before = "".join(ledger.splitlines(keepends=True)[-1:])
        look = {"run": name, "split": split, "time": "2026-01-01", "reason": "final", "look": 1}
        ledger += json.dumps(look | {"previous": hashlib.sha256(before.encode()).hexdigest()}) + "\n"
    seen.test_ledger.write_text(ledger)
    interval = {"estimate": 0.75, "low": 0.5, "high": 0.9, "photos": 8, "groups": 8}
    score = {"run": run.id, "split": "test", "look": 1, "interval": interval, "parts": []}
    (seen.folder / "test_scores.jsonl").write_text(json.dumps(score) + "\n")

    write_card(tmp_path / "card.md", seen, run, manifest)

    card = (tmp_path / "card.md").read_text()
    assert "- evaluations so far on the sealed test photos: 2, of this run: 1" in card
    assert "- evaluations so far on the sealed shifted photos: 1, of this run: 1" in card
    assert "final: accuracy 0.750 [0.500, 0.900] (95 % interval)" in card and "final: no score was written" in card


def test_a_check_from_the_bundle_names_what_the_run_names(study, runs_of, bundle):
    check, run = PhotoCheck.load(bundle), PhotoCheck.load(study, runs_of("torch").id)
    for sha256 in runs_of("torch").validation["sha256"]:
        photo = study.data / f"photos/{sha256}.png"
        ours, theirs = check.check(photo), run.check(photo)
        for name in ours.probabilities:
            assert ours.probabilities[name] == pytest.approx(theirs.probabilities[name], abs=2e-3)


def test_a_model_that_answers_differently_is_not_exported(study, runs_of, monkeypatch, tmp_path):
    def without_first_norm(framework, model, *others):
        norm = next(layer for layer in model.layers if type(layer).__name__ == "BatchNormalization")
        norm.set_weights([2 * weight for weight in norm.get_weights()])
        return build_graph(framework, model, *others)

    monkeypatch.setattr(export, "build_graph", without_first_norm)
    with pytest.raises(export.ParityError, match="nothing was exported"):
        export.export_run(study, runs_of("keras").id, out=tmp_path / "bundle", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_gate_lets_a_label_flip_at_a_tie_only():
    run = np.array([[0.5004, 0.4996], [0.9, 0.1]])
    assert export.check_parity(run, np.array([[0.4998, 0.5002], [0.9, 0.1]]))["flipped_labels"] == 1
    with pytest.raises(export.ParityError):
        export.check_parity(run, np.array([[0.5004, 0.4996], [0.898, 0.102]]))
    with pytest.raises(export.ParityError):
        export.check_parity(run, np.array([[np.nan, np.nan], [0.9, 0.1]]))


def test_a_format_beyond_the_framework_is_refused_with_the_ones_it_can_do(study, runs_of):
    with pytest.raises(ValueError, match="torch run cannot be exported to 'litert'; use one of onnx"):
        export.export_run(study, runs_of("torch").id, "litert")


@pytest.mark.parametrize("risk", [0, 1e-9, 1, 5, float("nan")])
def test_a_risk_that_is_no_share_is_refused_before_any_work(study, risk):
    with pytest.raises(ValueError, match="risk is .*, not a share from 1e-06 to 1; 0.01 is"):
        export.export_run(study, "no such run", risk=risk)


def test_a_folder_that_is_no_bundle_is_not_overwritten_and_a_bundle_is(study, runs_of, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a bundle"):
        export.export_run(study, runs_of("torch").id, out=tmp_path / "mine", show_progress=False)
    assert (tmp_path / "mine/thesis.txt").exists()
    for _ in range(2):
        out = export.export_run(study, runs_of("torch").id, out=tmp_path / "bundle", show_progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "bundle"} and out == tmp_path / "bundle"


def test_other_photos_are_turned_away_by_their_kind(study, runs_of, tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    junk = {f"{900 + n:064x}": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for n in range(32)}
    for sha256, pixels in junk.items():
        Image.fromarray(np.kron(pixels[:8, :8], np.ones((8, 8, 1), np.uint8))).save(tmp_path / f"{sha256}.png")
    others = pd.DataFrame(
        {"sha256": list(junk), "path": [str(tmp_path / f"{s}.png") for s in junk], "kind": "interior"}
    )
    monkeypatch.setattr(export, "other_photos", lambda study, names: others.head(24))
    bundle = export.export_run(study, runs_of("torch").id, out=tmp_path / "bundle", show_progress=False)
    check = PhotoCheck.load(bundle)
    answers = [check.check(tmp_path / f"{sha256}.png", "lying") for sha256 in others["sha256"].tail(8)]
    assert sum(answer.verdict in ("unusable", "not_sure") for answer in answers) >= 6
    assert any("interior" in answer.reason for answer in answers), [a.reason for a in answers]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["kinds"]["interior"]["seen"] > 0.5
    assert "| interior | 24 |" in (bundle / "model_card.md").read_text()


def test_a_photo_smaller_than_training_ever_saw_is_unusable(study, bundle, tmp_path):
    small = tmp_path / "small.png"
    Image.open(study.data / f"photos/{0:064x}.png").resize((60, 60)).save(small)
    answer = PhotoCheck.load(bundle).check(small)
    assert answer.verdict == "unusable" and "60 pixels, 64 are needed" in answer.reason


def test_other_photos_come_from_imports_from_curation_and_from_other_classes(study, monkeypatch):
    names = [f"{n:064x}" for n in (0, *range(1000, 1007))]
    photos = pd.DataFrame({"sha256": names, "path": names, "label": ["lying"] * 8, "kind": ""})
    photos.loc[3, "label"], photos.loc[6, ["label", "kind"]] = "alto", ["", "unusable"]
    photos.loc[7, "kind"] = OTHER_MODEL
    table = photos.drop(columns=["path", "kind"]).assign(verdict="keep", reason="")
    table.loc[[0, 1, 2, 4], "verdict"] = "reject"
    table.loc[[0, 1], "reason"], table.loc[2, "reason"] = "reviewed: interior", "duplicate: of another"
    table.loc[4, "reason"] = "unreadable: x"
    monkeypatch.setattr(export, "read_photos", lambda data: photos)
    study.curation.write_text("")
    monkeypatch.setattr(export, "read_curation", lambda study: table)
    found = export.other_photos(study, ["lying", "standing"])
    study.curation.unlink()
    expected = {names[1]: "interior", names[3]: OTHER_MODEL, names[6]: "unusable", names[7]: OTHER_MODEL}
    assert dict(zip(found["sha256"], found["kind"], strict=True)) == expected
    without = export.other_photos(study, ["lying", "standing"])
    assert set(without["sha256"]) == {names[3], names[6], names[7]}


@pytest.fixture(scope="module")
def alike():
    """One model with the same weights in all three frameworks."""
    for framework in store.FRAMEWORKS:
        pytest.importorskip(framework)
    from sibling_weights import copy_weights

    experiment = replace(TINY, dropout_rate=0.5)
    models = {name: store.import_framework(name).build_model(experiment, 2) for name in store.FRAMEWORKS}
    shake_norms("keras", models["keras"])
    models["tensorflow"].set_weights(models["keras"].get_weights())
    copy_weights(models["keras"], models["torch"])
    return {name: SimpleNamespace(framework=name, experiment=experiment, model=model) for name, model in models.items()}


def test_grad_cam_is_the_same_map_in_all_three_frameworks(alike):
    image = draw("lying", 3, SIZE)
    maps = {name: np.stack([explain.grad_cam(run, image, label) for label in (0, 1)]) for name, run in alike.items()}
    # Of one label alone a fresh network may have nothing that speaks for it.
    assert maps["keras"].shape == (2, 17, 17) and maps["keras"].max() > 0 and maps["keras"].min() >= 0
    for framework in ("torch", "tensorflow"):
        np.testing.assert_allclose(maps[framework], maps["keras"], atol=1e-4 * maps["keras"].max())


@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
def test_grad_cam_of_a_model_that_averages_mirror_images_takes_both_in(framework):
    pytest.importorskip(framework)
    experiment = replace(experiments.FAST_RECIPE, conv_channels=(4, 8), image_size=SIZE, dtype="float32")
    model = store.import_framework(framework).build_model(experiment, 2)
    run, image = SimpleNamespace(framework=framework, experiment=experiment, model=model), draw("lying", 3, SIZE)
    heats, mirrored = (
        np.stack([explain.grad_cam(run, view, label) for label in (0, 1)]) for view in (image, image[:, ::-1])
    )
    assert heats.shape == (2, SIZE // 2, SIZE // 2) and heats.max() > 0
    np.testing.assert_allclose(mirrored[:, :, ::-1], heats, atol=1e-4 * heats.max())
