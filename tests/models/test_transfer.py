"""Transfer: weights found or explained, backbones cut where they begin to learn, maps computed once."""

import hashlib
import http.server
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from carspotter.models import runs, store, transfer
from carspotter.models.experiments import MOBILENET_FEATURES, VGG16_FEATURES, VGG16_FINE_TUNE, Experiment, draw_epoch
from carspotter.models.store import import_builder, load_run

SIDE = 32
SMALL = {"image_size": SIDE, "epochs": 1, "weights": "none", "batch_size": 10}
TUNED = replace(VGG16_FINE_TUNE, **SMALL, starts_from=None, learning_rate=1e-4)
CACHED = replace(TUNED, name="cached", cached_copies=2, pooling="mean_max", average_mirror_images=True, dense_units=0)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A place that publishes VGG16's file, and an empty cache."""
    folder = tmp_path / "published"
    (folder / "vgg16").mkdir(parents=True)
    file = folder / transfer.FILES["vgg16"]
    file.write_bytes(b"the weights")
    monkeypatch.setattr(transfer, "PUBLISHED", folder.as_uri())
    monkeypatch.setattr(transfer, "MD5", {"vgg16": hashlib.md5(b"the weights").hexdigest()})
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))
    return file


def test_imagenet_is_downloaded_once(published, tmp_path):
    path = transfer.find_weights(VGG16_FEATURES)
    assert path.parent == tmp_path / "cache" / "models" and path.read_bytes() == b"the weights"
    published.unlink()
    assert transfer.find_weights(VGG16_FEATURES) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_damaged_download_is_refused_and_not_kept(published, tmp_path):
    published.write_bytes(b"the wei")
    with pytest.raises(ValueError, match="damaged"):
        transfer.find_weights(VGG16_FEATURES)
    assert not (tmp_path / "cache").exists()


def test_a_download_that_was_cut_short_is_not_kept(published, tmp_path, monkeypatch):
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "11")
            self.end_headers()
            self.wfile.write(b"the wei")

    with http.server.HTTPServer(("127.0.0.1", 0), Cut) as site:
        threading.Thread(target=site.handle_request, daemon=True).start()
        monkeypatch.setattr(transfer, "PUBLISHED", f"http://127.0.0.1:{site.server_port}")
        with pytest.raises(FileNotFoundError, match="7 bytes read, 4 more expected"):
            transfer.find_weights(VGG16_FEATURES)
    assert not (tmp_path / "cache").exists()


def test_offline_the_message_says_which_file_to_bring(published):
    published.unlink()
    with pytest.raises(FileNotFoundError, match=r"vgg16_weights_tf.*notop\.h5.*--weights FILE"):
        transfer.find_weights(VGG16_FEATURES)
    with pytest.raises(FileNotFoundError, match=r"kernels_1\.0_224_no_top\.h5"):
        transfer.find_weights(MOBILENET_FEATURES)


def test_weights_are_named_by_their_bytes_and_found_in_a_folder(tmp_path):
    names = ("vgg16_weights_notop.h5", "mobilenet_v2_0.35_224_no_top.h5", "mobilenet_v2_1.0_224_no_top.h5")
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    vgg16, mobilenet = (replace(e, weights=str(tmp_path)) for e in (VGG16_FEATURES, MOBILENET_FEATURES))
    found = [transfer.find_weights(e) for e in (vgg16, replace(mobilenet, backbone_width=0.35), mobilenet)]
    assert [path.name for path in found] == list(names)
    assert transfer.identify_weights(vgg16) == hashlib.sha256(names[0].encode()).hexdigest()[:12]
    assert transfer.identify_weights(vgg16) == transfer.identify_weights(replace(vgg16, weights=str(found[0])))
    digest = replace(vgg16, weights=transfer.identify_weights(vgg16))
    assert transfer.identify_weights(digest) == digest.weights
    with pytest.raises(FileNotFoundError, match="names recorded runs"):
        transfer.find_weights(digest)
    assert transfer.find_weights(replace(vgg16, weights="none")) is None
    for weights in ("nowhere.h5", str(tmp_path / "published")):
        with pytest.raises(FileNotFoundError, match=Path(weights).name):
            transfer.identify_weights(replace(vgg16, weights=weights))
    assert [transfer.width_in_name(path) for path in found[1:]] == [0.35, 1.0]


def test_an_epoch_takes_one_copy_of_each_photo():
    draws = draw_epoch(CACHED, 0, 0, 3 * 40)
    assert draws.affine is None and draws.colours is None, "the copies are augmented already"
    photos, copies = draws.photos.ravel() % 40, draws.photos.ravel() // 40
    assert sorted(photos) == list(range(40)) and set(copies) == {0, 1, 2}
    assert (draw_epoch(CACHED, 0, 1, 3 * 40).photos // 40 != draws.photos // 40).any()


@pytest.fixture(params=["keras", "torch"])
def builder(request):
    pytest.importorskip(request.param)
    return import_builder(VGG16_FEATURES, request.param)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [replace(VGG16_FEATURES, **SMALL), TUNED, CACHED], ids=lambda e: e.name)
def test_the_two_parts_of_a_cut_model_are_the_model(builder, experiment):
    images = np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE, 3), dtype=np.uint8)
    model = builder.build_model(experiment, 3)
    frozen, learning = builder.split_model(model, experiment)
    maps = builder.compute_maps(frozen, images)
    # frozen: the mean and the maximum of each of the 512 maps
    assert maps.shape == {0: (4, 1, 1, 1024), 1: (4, 2, 2, 512)}[experiment.tuned_blocks]
    lesson = store.import_framework("torch" if "torch" in builder.__name__ else "keras")
    plain = replace(experiment, average_mirror_images=False)
    whole, parts = lesson.predict(model, images, plain), lesson.predict(learning, maps, plain)
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_vgg16_is_the_same_network_in_both(tmp_path):
    keras, torch = pytest.importorskip("keras"), pytest.importorskip("torch")
    experiment = replace(VGG16_FEATURES, **SMALL)
    path = tmp_path / "vgg16_notop.weights.h5"
    keras.utils.set_random_seed(1)
    keras.applications.VGG16(include_top=False, weights=None).save_weights(path)
    images = np.random.default_rng(0).integers(0, 255, (2, SIDE, SIDE, 3), dtype=np.uint8)
    maps = {}
    for framework in ("keras", "torch"):
        builder = import_builder(experiment, framework)
        model = builder.build_model(experiment, 2)
        builder.load_backbone(model, path, experiment)
        maps[framework] = builder.compute_maps(builder.split_model(model, experiment)[0], images)
        count = sum(np.prod(weight.shape) for weight in getattr(model, "weights", None) or model.parameters())
        running = 2 * 1024 if framework == "keras" else 0  # of batch norm; in PyTorch they are no parameters
        assert count == 14_714_688 + 1024 + 1 + running
    np.testing.assert_allclose(maps["torch"], maps["keras"], rtol=1e-3, atol=1e-3 * np.abs(maps["keras"]).max())
    (tmp_path / "other.h5").write_text("no weights")
    for framework in ("keras", "torch"):
        builder = import_builder(experiment, framework)
        with pytest.raises(ValueError, match=r"other\.h5"):
            builder.load_backbone(builder.build_model(experiment, 2), tmp_path / "other.h5", experiment)
    assert torch is not None


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
def test_maps_are_computed_once_and_the_checkpoint_holds_all(toy_study, framework, monkeypatch):
    pytest.importorskip(framework)
    computed = []
    compute = transfer.compute_maps
    monkeypatch.setattr(transfer, "compute_maps", lambda *rest: computed.append(1) or compute(*rest))
    few = replace(CACHED, photo_limit=24)
    run = runs.train_run(toy_study, few, framework, show_progress=False)
    assert len(computed) == 6, "photos and their mirror images, of training and validation, and two copies"
    again = runs.train_run(toy_study, replace(few, learning_rate=1e-5), framework, show_progress=False)
    assert len(computed) == 6 and again.id != run.id, "another rate has the same maps"
    assert run.row["parameters"] == 3 * (9 * 512 * 512 + 512) + 1024 + 1, "the last block and the head learn"
    assert run.spec["pixels"].startswith("BGR") and run.row["weights"] == "none"
    photos = run.validation[["sha256"]].merge(runs.read_photos(toy_study.data)[["sha256", "path"]])
    images = np.array(runs.load_images(toy_study.data, photos, SIDE, show_progress=False))
    predicted = load_run(toy_study, run.id).predict(images)
    np.testing.assert_allclose(predicted, run.validation[["bright", "dark"]], atol=1e-4)


@pytest.mark.slow
def test_fine_tuning_goes_on_from_the_trained_head(toy_study):
    pytest.importorskip("torch")
    tuned = replace(VGG16_FINE_TUNE, **SMALL, learning_rate=1e-7, augmentation="none", cached_copies=0)
    run = runs.load_or_train(toy_study, tuned, "torch", show_progress=False)
    table = store.read_runs(toy_study).set_index("experiment")
    assert list(table.index) == ["vgg16_features", "vgg16_fine_tune"]
    # At a rate this low the first epoch is still about where the head had come to: only the running averages of its
    # batch norm go on. A fresh head would start near log 2 = .69.
    before = table.loc["vgg16_features", "best_validation_loss"]
    assert before < 0.5
    assert run.history["validation_loss"].iloc[0] == pytest.approx(before, rel=0.2)
    with pytest.raises(ValueError, match="use as many or more"):
        runs.starting_experiment(replace(VGG16_FEATURES, starts_from="vgg16_fine_tune"))


def test_weights_that_are_not_there_stop_the_run_before_photos_are_decoded(toy_study, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr(runs, "load_images", lambda *_: pytest.fail("photos were decoded"))
    (tmp_path / "other.h5").write_text("no weights")
    for name, error, message in (("nowhere.h5", FileNotFoundError, "nowhere"), ("other.h5", ValueError, "HDF5")):
        experiment = replace(VGG16_FEATURES, **SMALL | {"weights": str(tmp_path / name)})
        with pytest.raises(error, match=message):
            runs.train_run(toy_study, experiment, "torch", show_progress=False)
    with pytest.raises(ValueError, match="Keras only, not in torch"):
        runs.train_run(toy_study, replace(MOBILENET_FEATURES, weights="none"), "torch", show_progress=False)


def test_a_run_with_pretrained_weights_is_found_without_them(toy_study, monkeypatch):
    spec = runs.specify_run(toy_study, replace(VGG16_FEATURES, weights="0123456789ab"), "torch")
    row = dict.fromkeys(store.read_runs(toy_study).columns, "")
    row |= {
        "run": spec["run"],
        "experiment": "vgg16_features",
        "framework": "torch",
        "weights": "0123456789ab",
        "seed": 0,
    }
    store.append_row(toy_study, row)
    monkeypatch.setattr(transfer, "find_weights", lambda experiment: pytest.fail("weights were looked for"))
    assert runs.find_run(toy_study, VGG16_FEATURES, "torch") == spec["run"]
    assert runs.find_run(toy_study, VGG16_FEATURES, "keras") is None
    assert runs.find_run(toy_study, replace(VGG16_FEATURES, weights="none"), "torch") is None


@pytest.mark.slow
def test_mobilenet_s_features_are_pooled_and_scaled(tmp_path):
    keras = pytest.importorskip("keras")
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    backbone = keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, include_top=False, weights=None)
    path = tmp_path / "mobilenet_v2_0.35_96_random.weights.h5"
    backbone.save_weights(path)
    found = transfer.extract_features(images, path, show_progress=False)
    assert found.shape == (5, 1280) and found.dtype == np.float32
    maps = keras.ops.convert_to_numpy(backbone(images / np.float32(127.5) - 1, training=False))
    np.testing.assert_allclose(found, maps.mean(axis=(1, 2)), atol=1e-4)
    wider = path.rename(tmp_path / "mobilenet_v2_1.0_96_random.weights.h5")
    with pytest.raises(ValueError, match=r"not weights of mobilenet_v2 \(width 1\.0\)"):
        transfer.extract_features(images, wider, show_progress=False)


def test_features_are_computed_once_and_name_their_photos(tmp_path):
    computed = []

    def compute():
        computed.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    for key in ("a", "a", "b"):
        np.testing.assert_array_equal(transfer.cached_features(tmp_path, key, ["x", "y"], compute)[1], [3, 4, 5])
    assert len(computed) == 2
    assert [path.read_text() for path in tmp_path.glob("*.txt")] == ["x\ny\n"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
def test_what_the_last_layer_sees(framework):
    pytest.importorskip(framework)
    experiment = Experiment("tiny", conv_channels=(4, 8), dense_units=8, image_size=24)
    model = store.import_framework(framework).build_model(experiment, 2)
    images = np.random.default_rng(0).integers(0, 255, (5, 24, 24, 3), dtype=np.uint8)
    features = transfer.read_features(framework, model, images)
    assert features.shape == (5, 8) and features.dtype == np.float32
    both = transfer.read_features(framework, model, images, mirrored=True)
    flipped = transfer.read_features(framework, model, images[:, :, ::-1])
    np.testing.assert_allclose(both, (features + flipped) / 2, rtol=1e-5)
