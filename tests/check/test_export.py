"""Export: every format of every framework answers as its run does, or is not written at all."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carspotter.models import experiments, runs
from carspotter.paths import Study
from carspotter_check import explain, export, onnx_graph
from carspotter_check.model_card import write_card
from carspotter_check.photo_check import PhotoCheck, load_onnx, read_manifest
from carspotter_check.rejection import OTHER_MODEL

SIZE = 40
TINY = replace(
    experiments.BATCH_NORM,
    name="tiny",
    conv_channels=(4, 8),
    dense_units=12,
    epochs=3,
    learning_rate=3e-3,
    augment=False,
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
    return pd.DataFrame({"sha256": names, "path": [f"photos/{name}.png" for name in names]})


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
        return runs.load_or_train(study, experiment, framework, image_size=SIZE, show_progress=False)

    return train


@pytest.fixture(scope="module")
def bundle(study, runs_of):
    return export.export_run(study, runs_of("keras").id, show_progress=False)


@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
@pytest.mark.parametrize("batch_norm", ["none", "after_relu", "before_relu"])
def test_the_onnx_graph_answers_as_each_framework_does(framework, batch_norm, tmp_path):
    pytest.importorskip(framework)
    experiment = replace(TINY, batch_norm=batch_norm, dropout_rate=0.5)
    siblings = runs.import_framework(framework)
    for classes in (2, 3):
        model = siblings.build_model(experiment, classes, SIZE, seed=3)
        shake_norms(framework, model)
        run = SimpleNamespace(spec={"framework": framework, "image_size": SIZE}, experiment=experiment)
        predict = export._write_model(run, model, "onnx", tmp_path / "model.onnx")
        images = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
        probabilities, features = predict(images)
        np.testing.assert_allclose(probabilities, siblings.predict_probabilities(model, images), atol=1e-5)
        assert features.shape == (7, TINY.dense_units) and np.ptp(features) > 0


NARROW_VGG16 = replace(experiments.VGG16_FEATURES, conv_channels=((4, 4), (8, 8, 8)), dense_units=6)
NARROW_MOBILENET = replace(experiments.MOBILENET_FEATURES, backbone_width=0.35)
TUNED_MOBILENET = replace(experiments.MOBILENET_FINE_TUNE, backbone_width=0.35)


@pytest.mark.parametrize(
    ("framework", "experiment", "size"),
    [
        ("keras", NARROW_VGG16, 40),
        ("torch", NARROW_VGG16, 40),
        ("tensorflow", NARROW_VGG16, 40),
        ("keras", NARROW_MOBILENET, 64),
        ("keras", NARROW_MOBILENET, 75),  # an odd side is padded on both sides
        ("keras", TUNED_MOBILENET, 64),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_onnx_graph_of_a_backbone_answers_as_its_model(framework, experiment, size, tmp_path):
    pytest.importorskip(framework)
    siblings = runs.import_framework(framework)
    model = siblings.build_model(experiment, 3, size, seed=1)
    if experiment.backbone == "mobilenet_v2":
        backbone, rng = model.get_layer("backbone"), np.random.default_rng(0)
        # Norms that have learned something, so that none of their four figures can be left out.
        moved = [w + 0.1 * np.abs(rng.standard_normal(w.shape)) * (w.ndim == 1) for w in backbone.get_weights()]
        backbone.set_weights(moved)
        shake_norms("keras", model)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_graph.build_graph(experiment, onnx_graph.read_layers(framework, model), size))
    images = np.random.default_rng(0).integers(0, 255, (4, size, size, 3), dtype=np.uint8)
    probabilities, features = load_onnx(path, threads=1)(images)
    if experiment.dense_units == 0:  # otherwise the last layer sees what the dense one makes of them
        expected = siblings.compute_features(model, images)
        if experiment.multi_level:
            expected = expected[:, -2 * 1280 : -1280]  # the last maps' means
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(probabilities, siblings.predict_probabilities(model, images), atol=1e-4)


def shake_norms(framework, model):
    """Fresh running figures are 0 and 1, which would hide a mix-up."""
    rng = np.random.default_rng(1)
    if framework == "torch":
        arrays = [p for name, p in model.state_dict().items() if "norm" in name]
        for array in arrays:
            array.copy_(array.new_tensor(rng.uniform(0.5, 1.5, tuple(array.shape))))
    elif framework == "keras":
        for layer in model.layers:
            if "batch_norm" in layer.name:
                layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    else:
        for layer in (*model.blocks, model.dense):
            for name in set(layer) - {"kernel", "bias"}:
                layer[name].assign(rng.uniform(0.5, 1.5, layer[name].shape))


@pytest.mark.parametrize(
    ("framework", "to"),
    [("keras", "keras"), ("keras", "savedmodel"), ("keras", "litert"), ("tensorflow", "savedmodel"),
     ("tensorflow", "litert"), ("torch", "onnx")],
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


def test_the_card_counts_looks_at_each_sealed_set_apart_and_gives_the_runs_own_scores(study, runs_of, tmp_path):
    run = runs_of("keras")
    manifest = read_manifest(export.export_run(study, run.id, "keras", show_progress=False))
    seen = Study(study.name, study.data, tmp_path)
    seen.folder.mkdir(parents=True)
    for path in (study.splits, study.runs_table):
        (seen.folder / path.name).write_bytes(path.read_bytes())
    common = {"time": "2026-01-01", "reason": "final", "look": 1}
    looks = [{"run": run.id, "split": "test"}, {"run": "another", "split": "test"}, {"run": run.id, "split": "shifted"}]
    seen.test_ledger.write_text("".join(json.dumps(look | common) + "\n" for look in looks))
    interval = {"estimate": 0.75, "low": 0.5, "high": 0.9, "photos": 8, "groups": 8}
    score = {"run": run.id, "split": "test", "look": 1, "interval": interval, "parts": []}
    (seen.folder / "test_scores.jsonl").write_text(json.dumps(score) + "\n")

    write_card(tmp_path / "card.md", seen, run, manifest)

    card = (tmp_path / "card.md").read_text()
    assert "- sealed test photos: looks so far 2, at this run 1" in card
    assert "- sealed shifted photos: looks so far 1, at this run 1" in card
    assert "final: accuracy 0.750 [0.500, 0.900] (95.0% interval)" in card and "final: no score was written" in card


def test_a_check_from_the_bundle_names_what_the_run_names(study, runs_of, bundle):
    check, run = PhotoCheck.load(bundle), PhotoCheck.load(study, runs_of("keras").id)
    for sha256 in runs_of("keras").validation["sha256"]:
        photo = study.data / f"photos/{sha256}.png"
        ours, theirs = check.check(photo), run.check(photo)
        for name in ours.probabilities:
            assert ours.probabilities[name] == pytest.approx(theirs.probabilities[name], abs=2e-3)


def test_a_model_that_answers_differently_is_not_exported(study, runs_of, monkeypatch, tmp_path):
    true_layers = export.read_layers

    def wrong_layers(framework, model):
        *layers, last = true_layers(framework, model)
        return [*layers, replace(last, bias=last.bias + 0.1)]

    monkeypatch.setattr(export, "read_layers", wrong_layers)
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


def test_int8_is_a_quarter_of_the_size_and_has_a_gate_of_its_own(study, runs_of, bundle, tmp_path, monkeypatch):
    run = runs_of("keras", replace(TINY, name="larger", dense_units=256))
    plain = export.export_run(study, run.id, out=tmp_path / "plain", show_progress=False)
    small = export.export_run(study, run.id, out=tmp_path / "small", int8=True, show_progress=False)
    sizes = [(folder / "model.onnx").stat().st_size for folder in (plain, small)]
    assert sizes[1] < 0.4 * sizes[0] and sorted(path.name for path in small.iterdir())[1:] == [
        "model.onnx", "model_card.md", "references.npz"
    ]  # fmt: skip
    assert PhotoCheck.load(small).check(study.data / f"photos/{0:064x}.png").probabilities
    assert "made int8" in (small / "model_card.md").read_text()
    with pytest.raises(export.ParityError, match="from 1.000 to 0.980"):
        labels, right = np.zeros(50, int), np.tile([0.9, 0.1], (50, 1))
        export.check_int8(labels, right, np.concatenate([right[:49], [[0.4, 0.6]]]))
    with pytest.raises(ValueError, match="int8 is for onnx"):
        export.export_run(study, run.id, "keras", int8=True)


def test_a_format_beyond_the_framework_is_refused_with_the_ones_it_can_do(study, runs_of):
    with pytest.raises(ValueError, match="torch run cannot be exported to 'litert'; use one of onnx"):
        export.export_run(study, runs_of("torch").id, "litert")


def test_a_folder_that_is_no_bundle_is_not_overwritten_and_a_bundle_is(study, runs_of, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a bundle"):
        export.export_run(study, runs_of("keras").id, out=tmp_path / "mine", show_progress=False)
    assert (tmp_path / "mine/thesis.txt").exists()
    for _ in range(2):
        out = export.export_run(study, runs_of("keras").id, out=tmp_path / "bundle", show_progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "bundle"} and out == tmp_path / "bundle"


def test_curated_rejects_are_turned_away_by_their_kind(study, runs_of, tmp_path):
    rng = np.random.default_rng(5)
    junk = {f"{900 + n:064x}": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for n in range(24)}
    for sha256, pixels in junk.items():
        Image.fromarray(np.kron(pixels[:8, :8], np.ones((8, 8, 1), np.uint8))).save(tmp_path / f"{sha256}.png")
    rejects = pd.DataFrame({"sha256": list(junk), "path": [str(tmp_path / f"{s}.png") for s in junk]})
    rejects["kind"] = "interior"
    bundle = export.export_run(
        study, runs_of("keras").id, out=tmp_path / "bundle", rejects=rejects.head(16), show_progress=False
    )
    check = PhotoCheck.load(bundle)
    answers = [check.check(tmp_path / f"{sha256}.png", "lying") for sha256 in rejects["sha256"].tail(8)]
    assert sum(answer.verdict in ("unusable", "not_sure") for answer in answers) >= 6
    assert any("interior" in answer.reason for answer in answers), [a.reason for a in answers]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["reject_auroc"]["interior"]["seen"] > 0.75
    assert "| interior | 16 |" in (bundle / "model_card.md").read_text()


def test_rejects_come_from_curation_and_from_other_classes(study, monkeypatch):
    names = [f"{n:064x}" for n in (0, 1000, 1001, 1002, 1003, 1004)]
    table = pd.DataFrame(
        {
            "sha256": names,
            "label": ["lying", "lying", "lying", "alto", "lying", "lying"],
            "verdict": ["reject", "reject", "reject", "keep", "reject", "keep"],
            "reason": ["reviewed: interior", "reviewed: interior", "duplicate: of another", "", "unreadable: x", ""],
        }
    )
    study.curation.write_text("")
    monkeypatch.setattr(export, "read_curation", lambda study: table)
    monkeypatch.setattr(export, "read_photos", lambda data: pd.DataFrame({"sha256": names, "path": names}))
    found = export.curated_rejects(study, ["lying", "standing"])
    study.curation.unlink()
    assert dict(zip(found["sha256"], found["kind"], strict=True)) == {names[1]: "interior", names[3]: OTHER_MODEL}


@pytest.fixture(scope="module")
def alike():
    """One model with the same weights in all three frameworks."""
    for framework in ("keras", "torch", "tensorflow"):
        pytest.importorskip(framework)
    experiment = replace(TINY, dropout_rate=0.5)
    models = {
        framework: runs.import_framework(framework).build_model(experiment, 2, SIZE, seed=1)
        for framework in ("keras", "torch", "tensorflow")
    }
    shake_norms("keras", models["keras"])
    layers = onnx_graph.read_layers("keras", models["keras"])
    flat = [array for layer in layers for array in (layer.kernel, layer.bias, *(layer.norm or ()))]
    for variable, array in zip(models["tensorflow"].weights, flat, strict=True):
        variable.assign(array)
    torch_model = models["torch"]
    weighted = [*torch_model.convolutions, torch_model.dense, torch_model.logits]
    norms = [*torch_model.norms, torch_model.dense_norm]
    for module, layer in zip(weighted, layers, strict=True):
        kernel = layer.kernel.transpose(3, 2, 0, 1) if layer.kernel.ndim == 4 else layer.kernel.T
        module.weight.data.copy_(module.weight.new_tensor(kernel))
        module.bias.data.copy_(module.bias.new_tensor(layer.bias))
    for module, layer in zip(norms, layers[:-1], strict=True):
        tensors = (module.weight.data, module.bias.data, module.running_mean, module.running_var)
        for tensor, array in zip(tensors, layer.norm, strict=True):
            tensor.copy_(tensor.new_tensor(array))
    return models


@pytest.mark.parametrize("label", [0, 1])
def test_grad_cam_is_the_same_map_in_all_three_frameworks(alike, label):
    image = draw("lying", 3, SIZE)
    maps = {
        framework: explain.grad_cam(SimpleNamespace(spec={"framework": framework}, model=model), image, label)
        for framework, model in alike.items()
    }
    assert maps["keras"].shape == (17, 17) and maps["keras"].max() > 0 and maps["keras"].min() >= 0
    for framework in ("torch", "tensorflow"):
        np.testing.assert_allclose(maps[framework], maps["keras"], atol=1e-4 * maps["keras"].max())


@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
def test_grad_cam_of_a_model_that_mirrors_takes_both_images_in(framework):
    pytest.importorskip(framework)
    experiment = replace(experiments.FAST_RECIPE, conv_channels=(4, 8))
    model = runs.import_framework(framework).build_model(experiment, 2, SIZE, seed=1)
    run, image = SimpleNamespace(spec={"framework": framework}, model=model), draw("lying", 3, SIZE)
    heat = explain.grad_cam(run, image, 1)
    assert heat.shape == (SIZE // 2, SIZE // 2) and heat.max() > 0
    np.testing.assert_allclose(explain.grad_cam(run, image[:, ::-1], 1)[:, ::-1], heat, atol=1e-4 * heat.max())


def test_grad_cam_follows_the_gradient(alike):
    model, image, step, tried = alike["tensorflow"], draw("lying", 3, SIZE), 1e-2, 0
    activations, gradients = (maps[0] for maps in explain._tensorflow_maps(model, image, 1))
    for row, column, channel in zip(
        *np.unravel_index(np.argsort(-np.abs(gradients), axis=None), gradients.shape), strict=True
    ):
        window = np.sort(activations[row // 2 * 2 :, column // 2 * 2 :, channel][:2, :2], axis=None)
        if window[-1] - window[-2] < 5 * step:
            continue  # where two cells share the maximum of a pool, a derivative is one-sided
        moved = []
        for change in (step, -step):
            maps = activations.copy()
            maps[row, column, channel] += change
            moved.append(score_from_maps(model, maps))
        assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(gradients[row, column, channel], rel=0.05)
        tried += 1
        if tried == 3:
            return
    raise AssertionError("no pool with a clear maximum")


def score_from_maps(model, maps):
    import tensorflow as tf

    pooled = tf.nn.max_pool2d(tf.constant(maps[None]), 2, strides=2, padding="VALID")
    x = tf.matmul(tf.reshape(pooled, (1, -1)), model.dense["kernel"]) + model.dense["bias"]
    x = model._activate(x, model.dense, False)
    return float((tf.matmul(x, model.logits["kernel"]) + model.logits["bias"])[0, 0])
