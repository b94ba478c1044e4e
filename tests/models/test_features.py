"""Frozen features: as Keras' MobileNetV2 gives them, computed once."""

import numpy as np
import pytest

from carspotter.models import features

SIDE = 64


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Random weights in the narrowest width that Keras has: the file's form is what counts here."""
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2((SIDE, SIDE, 3), alpha=0.35, include_top=False, weights=None)
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2_0.35_96_random.weights.h5"
    backbone.save_weights(path)
    return path, backbone


@pytest.fixture(scope="module")
def weights(saved):
    return saved[0]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 255, (5, SIDE, SIDE, 3), dtype=np.uint8)


def test_features_are_pooled_scaled_and_computed_once(saved, images, tmp_path, monkeypatch):
    import keras

    weights, backbone = saved
    found = features.extract_features(images, weights, cache=tmp_path, batch_size=2, show_progress=False)
    assert found.shape == (5, 1280) and found.dtype == np.float32
    maps = keras.ops.convert_to_numpy(backbone(images / np.float32(127.5) - 1, training=False))
    np.testing.assert_allclose(found, maps.mean(axis=(1, 2)), atol=1e-4)

    computed = []
    compute = features._compute
    monkeypatch.setattr(features, "_compute", lambda *rest: computed.append(1) or compute(*rest))
    again = features.extract_features(images, weights, cache=tmp_path, show_progress=False)
    np.testing.assert_array_equal(again, found)
    assert not computed
    features.extract_features(images[::-1], weights, cache=tmp_path, show_progress=False)
    assert computed, "other photos, other features"


def test_what_does_not_fit_is_refused(weights, images, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        features.extract_features(images, tmp_path / "nowhere.h5")
    with pytest.raises(ValueError, match=r"uint8 \(N, S, S, 3\)"):
        features.extract_features(images / 255, weights)
    with pytest.raises(ValueError, match="not weights of MobileNetV2 of this width"):
        features.extract_features(images, weights, alpha=1.0, show_progress=False)
    nameless = tmp_path / "backbone.weights.h5"
    nameless.write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match="pass alpha"):
        features.extract_features(images, nameless)
