"""Doubts in labels: by models that saw none of the listing, the same after a kill, computed once."""

from dataclasses import replace

import numpy as np
import pytest
from generated_photos import encode, scene

from carspotter.models import cross_validation
from carspotter.models.cross_validation import doubt_labels, doubt_photos
from carspotter.models.experiments import FAST_RECIPE
from carspotter.paths import Study
from carspotter.photos.table import import_folder

SMALL = replace(FAST_RECIPE, conv_channels=(8, 16, 16), epochs=12, image_size=32, batch_size=8)


@pytest.fixture(scope="module")
def photos():
    """Dark and bright noise, 15 listings of four photos each; two listings are listed as what they are not."""
    rng = np.random.default_rng(0)
    bright = np.repeat(np.arange(15) % 2, 4)
    images = (
        rng.integers(0, 100, (60, 32, 32, 3), dtype=np.uint8) + (bright * 120).astype(np.uint8)[:, None, None, None]
    )
    said = bright.copy()
    said[[5, 6, 7, 30]] ^= 1
    listings = [f"site:{number // 4}" for number in range(60)]
    return images, np.array(["swift", "wagonr"])[said], listings, bright != said


@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
def test_wrong_labels_are_doubted_most(photos, framework, tmp_path):
    pytest.importorskip(framework)
    images, labels, listings, wrong = photos
    doubts = doubt_labels(images, labels, listings, framework, tmp_path, SMALL, show_progress=False)
    assert doubts.shape == (60,) and doubts.dtype == np.float32
    assert doubts[wrong].min() > 0.5 > np.median(doubts[~wrong])


def test_no_model_is_asked_about_a_listing_that_it_saw(photos, tmp_path, monkeypatch):
    seen, asked = [], []

    class Siblings:
        build_model = staticmethod(lambda *rest: "model")
        train = staticmethod(lambda *rest, **more: None)

        @staticmethod
        def make_dataset(images, labels, experiment, seed):
            seen.append({image.tobytes() for image in images})

        @staticmethod
        def predict_probabilities(model, images):
            asked.append({image.tobytes() for image in images})
            return np.full((len(images), 2), 0.5, np.float32)

    monkeypatch.setattr(cross_validation, "import_framework", lambda name: Siblings)
    images, labels, listings, _ = photos
    doubt_labels(images, labels, listings, "torch", tmp_path, SMALL, show_progress=False)
    listing_of = {image.tobytes(): listing for image, listing in zip(images, listings, strict=True)}
    for learnt, judged in zip(seen, asked, strict=True):
        assert not {listing_of[image] for image in learnt} & {listing_of[image] for image in judged}
    assert set().union(*asked) == set(listing_of)


def test_a_killed_call_goes_on_and_gives_the_same(photos, tmp_path, monkeypatch):
    torch_models = pytest.importorskip("carspotter.models.torch_models")
    images, labels, listings, _ = photos
    whole = doubt_labels(images, labels, listings, "torch", tmp_path / "whole", SMALL, show_progress=False)
    trained = []
    train = torch_models.train

    def dies_in_the_second_fold(model, dataset, validation, epochs, folder, on_epoch, on_batch):
        def on_epoch_or_die(epoch, *rest):
            trained.append(epoch)
            if len(trained) == SMALL.epochs + 5:
                raise KeyboardInterrupt
            return on_epoch(epoch, *rest)

        train(model, dataset, validation, epochs, folder, on_epoch_or_die, on_batch)

    monkeypatch.setattr(torch_models, "train", dies_in_the_second_fold)
    with pytest.raises(KeyboardInterrupt):
        doubt_labels(images, labels, listings, "torch", tmp_path / "killed", SMALL, show_progress=False)
    again = doubt_labels(images, labels, listings, "torch", tmp_path / "killed", SMALL, show_progress=False)
    np.testing.assert_array_equal(again, whole)
    assert len(trained) == 3 * SMALL.epochs + 1, "only the epoch that was not saved is repeated"


def test_what_cannot_be_learnt_is_refused(photos, tmp_path):
    images, labels, listings, _ = photos
    with pytest.raises(ValueError, match="1 labels in 15 listings"):
        doubt_labels(images, ["swift"] * 60, listings, "torch", tmp_path, SMALL)
    with pytest.raises(ValueError, match="2 labels in 2 listings"):
        doubt_labels(images[:8], labels[:8], listings[:8], "torch", tmp_path, SMALL)


def test_a_study_is_doubted_once(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    for number in range(12):
        file = tmp_path / f"photos/{('swift', 'wagonr')[number % 2]}/{number}__1.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(scene(number, (64, 48))))
    study = Study("sample", tmp_path / "data", tmp_path / "results")
    import_folder(study.data, tmp_path / "photos", show_progress=False)
    quick = replace(SMALL, epochs=1)
    doubts = doubt_photos(study, "torch", experiment=quick)
    assert len(doubts) == 12 and doubts.between(0, 1).all() and doubts.index.is_unique
    assert not list(study.images.glob("doubts-*")), "the state is gone when it is no longer needed"
    monkeypatch.setattr(cross_validation, "doubt_labels", None)
    assert doubt_photos(study, "torch", experiment=quick).equals(doubts)
