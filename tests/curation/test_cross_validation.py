"""Doubts and features by models trained on the photos: no listing its own witness, the same after a kill, kept."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from generated_photos import encode, scene

from carspotter.cli import main
from carspotter.curation import cross_validation
from carspotter.curation import curate as curation
from carspotter.curation.cross_validation import choose_experiment, cross_validate, join_features, learn_photos
from carspotter.models.experiments import FAST_RECIPE, MOBILENET_FINE_TUNE
from carspotter.models.history import StateKeeper
from carspotter.paths import Study
from carspotter.photos.fingerprints import readable_photos
from carspotter.photos.importing import import_folder
from carspotter.photos.journal import hold
from carspotter.photos.table import read_curation, read_photos

SMALL = replace(FAST_RECIPE, conv_channels=(8, 16, 16), epochs=12, image_size=32, batch_size=8)


@pytest.fixture(scope="module")
def photos():
    """Dark and bright noise, 15 listings of four photos each; four photos are labelled as what they are not."""
    rng = np.random.default_rng(0)
    bright = np.repeat(np.arange(15) % 2, 4)
    images = (
        rng.integers(0, 100, (60, 32, 32, 3), dtype=np.uint8) + (bright * 120).astype(np.uint8)[:, None, None, None]
    )
    said = bright.copy()
    said[[5, 6, 7, 30]] ^= 1
    listings = [f"site:{number // 4}" for number in range(60)]
    return images, np.array(["swift", "wagonr"])[said], listings, bright != said


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["keras", "torch", "tensorflow"])
def test_wrong_labels_are_doubted_most(photos, framework, tmp_path):
    pytest.importorskip(framework)
    images, labels, listings, wrong = photos
    doubts, features = cross_validate(images, labels, listings, framework, tmp_path, SMALL, show_progress=False)
    assert doubts.shape == (60,) and doubts.dtype == features.dtype == np.float32
    assert features.shape == (60, 3 * 16)
    np.testing.assert_allclose(np.linalg.norm(features.reshape(60, 3, 16), axis=2), 1, atol=1e-5)
    assert doubts[wrong].min() > 0.5 > np.median(doubts[~wrong])


def test_no_model_is_asked_about_a_listing_that_it_saw(photos, tmp_path, monkeypatch):
    seen, asked = [], []
    images, labels, listings, _ = photos

    class Lesson:
        train = staticmethod(lambda *rest: None)

        @staticmethod
        def PhotoBatches(images, labels, experiment, seed):
            seen.append({image.tobytes() for image in images})

        @staticmethod
        def predict(model, images, experiment):
            asked.append({image.tobytes() for image in images})
            return np.full((len(images), 2), 0.5, np.float32)

    builder = SimpleNamespace(build_model=lambda *rest: "model")
    monkeypatch.setattr(cross_validation, "import_framework", lambda name: Lesson)
    monkeypatch.setattr(cross_validation, "import_builder", lambda *rest: builder)
    monkeypatch.setattr(cross_validation, "set_random_seed", lambda *rest: None)
    monkeypatch.setattr(cross_validation, "read_features", lambda framework, model, images, mirrored: images[:, 0, 0])
    cross_validate(images, labels, listings, "torch", tmp_path, SMALL, show_progress=False)
    listing_of = {image.tobytes(): listing for image, listing in zip(images, listings, strict=True)}
    for learnt, judged in zip(seen, asked, strict=True):
        assert not {listing_of[image] for image in learnt} & {listing_of[image] for image in judged}
    assert set().union(*asked) == set(listing_of)


@pytest.mark.slow
def test_a_killed_call_goes_on_and_gives_the_same(photos, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    images, labels, listings, _ = photos
    whole = cross_validate(images, labels, listings, "torch", tmp_path / "whole", SMALL, show_progress=False)
    trained = []
    on_epoch_end = StateKeeper.on_epoch_end

    def dies_in_the_second_fold(self, epoch, logs):
        trained.append(epoch)
        if len(trained) == SMALL.epochs + 5:
            raise KeyboardInterrupt
        on_epoch_end(self, epoch, logs)

    monkeypatch.setattr(StateKeeper, "on_epoch_end", dies_in_the_second_fold)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(images, labels, listings, "torch", tmp_path / "killed", SMALL, show_progress=False)
    monkeypatch.setattr("carspotter.progress.SECONDS_BETWEEN_LINES", 0)
    again = cross_validate(images, labels, listings, "torch", tmp_path / "killed", SMALL)
    assert "1440 of 1440 photos" in capsys.readouterr().err, "what was learnt before counts as progress"
    for part, of_whole in zip(again, whole, strict=True):
        np.testing.assert_array_equal(part, of_whole)
    assert len(trained) == 3 * SMALL.epochs + 1, "only the epoch that was not saved is repeated"


def test_what_cannot_be_learnt_is_refused(photos, tmp_path):
    images, labels, listings, _ = photos
    with pytest.raises(ValueError, match="1 labels in 15 listings"):
        cross_validate(images, ["swift"] * 60, listings, "torch", tmp_path, SMALL)
    with pytest.raises(ValueError, match="2 labels in 2 listings"):
        cross_validate(images[:8], labels[:8], listings[:8], "torch", tmp_path, SMALL)


def test_a_study_is_learnt_once(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    for number in range(12):
        file = tmp_path / f"photos/{('swift', 'wagonr')[number % 2]}/{number}__1.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(scene(number, (64, 48))))
    study = Study("sample", tmp_path / "data", tmp_path / "results")
    import_folder(study.data, tmp_path / "photos", show_progress=False)
    quick, photos = replace(SMALL, epochs=1), read_photos(study.data)

    def finds_it_locked(*rest):
        (folder,) = study.images.glob("learning-*")
        with pytest.raises(RuntimeError, match="taken"), hold(folder / ".lock", "taken"):
            pass
        return cross_validate(*rest)

    monkeypatch.setattr(cross_validation, "cross_validate", finds_it_locked)
    monkeypatch.setattr(cross_validation, "choose_experiment", lambda framework, weights: quick)
    doubts, features = learn_photos(study.data, photos, "torch")
    assert len(doubts) == 12 and doubts.between(0, 1).all() and features.shape == (12, 3 * 16)
    assert not list(study.images.glob("learning-*")), "the state is gone when it is no longer needed"
    monkeypatch.setattr(cross_validation, "cross_validate", None)
    again, others = learn_photos(study.data, photos, "torch")
    assert again.equals(doubts) and others.equals(features)


def test_what_learns_is_as_wide_as_the_weights(tmp_path):
    assert choose_experiment("torch", None) == FAST_RECIPE
    weights = tmp_path / "mobilenet_v2_0.35_224.weights.h5"
    experiment = choose_experiment("keras", weights)
    assert experiment == replace(MOBILENET_FINE_TUNE, backbone_width=0.35, weights=str(weights))
    with pytest.raises(ValueError, match="--train torch with --weights.*use --train keras"):
        choose_experiment("torch", tmp_path / "mobilenet_v2_0.35_224.weights.h5")


@pytest.mark.slow
def test_each_model_starts_from_the_weights_given(photos, tmp_path):
    keras = pytest.importorskip("keras")
    images, labels, listings, _ = photos
    weights = tmp_path / "mobilenet_v2_0.35.weights.h5"
    backbone = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
    backbone.save_weights(weights)
    both = np.concatenate([images, images[:, :, ::-1]]).astype(np.float32)
    maps = backbone.predict(both / 127.5 - 1, verbose=0)
    expected = maps.mean(axis=(1, 2)).reshape(2, 60, -1).mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    experiment = replace(choose_experiment("keras", weights), image_size=32, epochs=1, learning_rate=1e-30)
    _, features = cross_validate(images, labels, listings, "keras", tmp_path / "state", experiment, show_progress=False)
    for part in np.split(features, 3, axis=1):
        np.testing.assert_allclose(part, expected, atol=1e-4)


@pytest.mark.parametrize("weights", [[], ["--weights", "some.h5"]])
def test_the_verb_ranks_by_what_was_learnt(tmp_path, monkeypatch, weights):
    for number in range(40):
        label, listing = ("swift", "wagonr")[number // 4 % 2], number // 4
        file = tmp_path / f"photos/{label}/{listing}__{number % 4}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(scene(number, (320, 240))))
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path))
    study = Study.open()
    import_folder(study.data, tmp_path / "photos", show_progress=False)
    asked = []

    def learn(data, photos, framework, weights):
        asked.append((framework, str(weights or "")))
        names = readable_photos(data, photos, show_progress=False)["sha256"].tolist()
        doubts = pd.Series(np.linspace(0, 0.3, len(names)), index=names)
        doubts.iloc[7] = 0.97
        return doubts, pd.DataFrame(np.random.default_rng(0).normal(size=(len(names), 6)), index=names)

    def describe(data, photos, weights, show_progress):
        names = readable_photos(data, photos, show_progress=False)["sha256"]
        return pd.DataFrame(np.random.default_rng(1).normal(size=(len(names), 4)), index=names)

    def judge(data, photos, features, *more):
        asked.append(features.shape[1])
        return judge_photos(data, photos, features, *more)

    judge_photos = curation.judge_photos
    monkeypatch.setattr(curation, "learn_photos", learn)
    monkeypatch.setattr(curation, "describe_photos", describe)
    monkeypatch.setattr(curation, "judge_photos", judge)
    assert main(["curate", "--train", "keras", *weights]) == 0
    assert asked == [("keras", "".join(weights[1:])), 4 + 6]
    reasons = read_curation(study).set_index("sha256")["reason"]
    doubted = sorted(reasons.index)[7]
    assert (
        reasons[doubted].startswith("another model: models trained on the others doubt") and "0.97" in reasons[doubted]
    )


def test_learnt_features_weigh_as_much_as_the_others():
    rng = np.random.default_rng(0)
    known = pd.DataFrame(100 * rng.normal(size=(3, 4)), index=list("abc"))
    learnt = pd.DataFrame(rng.normal(size=(3, 6)), index=list("bcd"))
    both = join_features(known, learnt)
    assert both.index.tolist() == ["b", "c"] and both.shape == (2, 10)
    np.testing.assert_allclose(np.linalg.norm(both.to_numpy()[:, :4], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(both.to_numpy()[:, 4:], axis=1), 1, atol=1e-6)
