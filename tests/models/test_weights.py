"""Pretrained weights: found by name or path, downloaded whole or not at all, explained where they cannot be had."""

import hashlib
import io

import pytest

from carspotter.models import weights
from carspotter.models.experiments import MOBILENET_FEATURES, VGG16_FEATURES


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A place that publishes VGG16's file, and an empty cache."""
    folder = tmp_path / "published"
    (folder / "vgg16").mkdir(parents=True)
    file = folder / weights.FILES["vgg16"]
    file.write_bytes(b"the weights")
    monkeypatch.setattr(weights, "PUBLISHED", folder.as_uri())
    monkeypatch.setattr(weights, "MD5", {"vgg16": hashlib.md5(b"the weights").hexdigest()})
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))
    return file


def test_imagenet_is_downloaded_once(published, tmp_path):
    path = weights.find_weights(VGG16_FEATURES, "imagenet")
    assert path.parent == tmp_path / "cache" / "models" and path.read_bytes() == b"the weights"
    published.unlink()
    assert weights.find_weights(VGG16_FEATURES, "imagenet") == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_damaged_download_is_refused_and_not_kept(published, tmp_path):
    published.write_bytes(b"the wei")
    with pytest.raises(ValueError, match="damaged"):
        weights.find_weights(VGG16_FEATURES, "imagenet")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_download_that_was_cut_short_is_not_kept(published, tmp_path):
    class Cut(io.BytesIO):
        headers = {"Content-Length": "11"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: Cut(b"the wei"))
        with pytest.raises(FileNotFoundError, match="only 7 of 11 bytes came"):
            weights._download("http://weights.example/w.h5", tmp_path / "w.h5", md5=None)
    assert not list(tmp_path.glob("w.h5*"))


def test_offline_the_message_says_which_file_to_bring(published):
    published.unlink()
    with pytest.raises(FileNotFoundError, match=r"vgg16_weights_tf.*notop\.h5.*--weights FILE"):
        weights.find_weights(VGG16_FEATURES, "imagenet")
    with pytest.raises(FileNotFoundError, match=r"kernels_1\.0_224_no_top\.h5"):
        weights.find_weights(MOBILENET_FEATURES, "imagenet")


def test_weights_are_named_by_their_bytes(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"1")
    (tmp_path / "b.h5").write_bytes(b"1")
    (tmp_path / "c.h5").write_bytes(b"2")
    a, b, c = (weights.identify_weights(tmp_path / f"{name}.h5") for name in "abc")
    assert a == b != c and len(a) == 12
    assert (weights.identify_weights("imagenet"), weights.identify_weights("none")) == ("imagenet", "none")
    assert weights.identify_weights(a) == a
    with pytest.raises(FileNotFoundError, match=f"{a} names runs that are recorded"):
        weights.find_weights(VGG16_FEATURES, a)
    assert weights.find_weights(VGG16_FEATURES, "none") is None
    with pytest.raises(FileNotFoundError, match="nowhere"):
        weights.identify_weights(tmp_path / "nowhere.h5")


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mobilenet_v2_0.35_224_imagenet_no_top.weights.h5", 0.35),
        ("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", 1.0),
    ],
)
def test_the_width_is_read_from_the_name(name, width):
    assert weights.width_in_name(name) == width
