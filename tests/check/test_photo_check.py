"""The photo check: verdicts, thresholds and what they promise, quality, and explanations that hold."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from carspotter_check import explain, photo_check
from carspotter_check.photo_check import PhotoCheck, photos_in
from carspotter_check.rejection import (
    NEVER,
    OTHER_MODEL,
    Limits,
    References,
    Rejection,
    auroc,
    calibrate,
    choose_threshold,
    coverage_risk,
    nearest_distance,
    quality_fault,
    reject_auroc,
    risk_upper_bound,
)

SIZE = 32
NAMES = ["swift", "wagonr"]


def as_png(pixels):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def noise(seed=0, size=64, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (size, size, 3), dtype=np.uint8)


def make_check(probabilities=(0.1, 0.9), features=None, rejection=None, references=None):
    def predict(images):
        rows = np.tile(np.asarray(probabilities, np.float32), (len(images), 1))
        return rows, None if features is None else np.tile(np.asarray(features, np.float32), (len(images), 1))

    return PhotoCheck("a-run", "v1", NAMES, SIZE, predict, rejection or Rejection(confidence=0.6), references)


def cloud(centre, count, seed, spread=0.05, dimensions=8):
    return np.eye(dimensions)[centre] + np.random.default_rng(seed).normal(0, spread, (count, dimensions))


@pytest.mark.parametrize(
    ("probabilities", "claim", "verdict", "label", "words"),
    [
        ((0.1, 0.9), "wagonr", "match", "wagonr", "looks like wagonr as claimed"),
        ((0.1, 0.9), "swift", "other_model", "wagonr", "claimed swift, looks like wagonr"),
        ((0.1, 0.9), None, "named", "wagonr", "looks like wagonr"),
        ((0.45, 0.55), "wagonr", "not_sure", None, "could be wagonr"),
        ((0.45, 0.55), None, "not_sure", None, "0.60"),
    ],
)
def test_a_verdict_follows_from_confidence_and_claim(probabilities, claim, verdict, label, words):
    answer = make_check(probabilities).check(as_png(noise()), claim)
    assert (answer.verdict, answer.label, answer.run, answer.version) == (verdict, label, "a-run", "v1")
    assert words in answer.reason
    assert answer.probabilities == pytest.approx(dict(zip(NAMES, probabilities, strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("photo", "words"),
    [
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (as_png(noise())[:900], "cannot be decoded"),
        (as_png(noise(size=20)), "too small"),
        (as_png(noise(high=9)), "too dark"),
        (as_png(np.full((64, 64, 3), 130)), "single colour"),
        (as_png(np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (1, 64, 3))), "too blurred"),
    ],
    ids=["empty", "a drawing", "truncated", "tiny", "dark", "one colour", "blurred"],
)
def test_a_photo_that_shows_nothing_is_unusable_and_says_why(photo, words):
    answer = make_check(rejection=Rejection(limits=Limits(sharpness=6))).check(photo, "swift")
    assert answer.verdict == "unusable" and words in answer.reason and answer.probabilities == {}
    assert json.loads(json.dumps(answer.as_dict()))["verdict"] == "unusable"


def test_a_claim_that_the_model_does_not_know_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'nano' is not a class of a-run; it knows swift, wagonr"):
        make_check().check(as_png(noise()), "nano")


def test_without_a_name_the_best_run_on_all_photos_is_taken_that_has_its_weights(tmp_path):
    accuracies = {"quick": 1.0, "part": 0.99, "without_weights": 0.95, "best": 0.9, "worse": 0.8}
    for run in set(accuracies) - {"without_weights"}:
        (tmp_path / run).mkdir()
        (tmp_path / run / "checkpoint.pt").touch()
    rows = pd.DataFrame({"run": list(accuracies), "best_validation_accuracy": accuracies.values(), "train_on": ""})
    rows.loc[rows["run"] == "part", "train_on"] = "0123456789ab"
    rows["quick"] = rows["run"] == "quick"
    runs = SimpleNamespace(
        read_runs=lambda study: rows, load_run=lambda study, run: SimpleNamespace(id=run, folder=tmp_path / run)
    )
    assert photo_check._best_run(runs, study=None).id == "best"


def test_a_picture_unlike_all_known_ones_is_turned_away_however_sure_the_model_is():
    training, validation = cloud(0, 60, 1), cloud(0, 40, 2)
    references = References.fit(training, validation, np.zeros((0, 0)), np.array([]))
    at_home = make_check((0.0, 1.0), cloud(0, 1, 3)[0], references=references).check(as_png(noise()), "wagonr")
    abroad = make_check((0.0, 1.0), cloud(5, 1, 3)[0], references=references).check(as_png(noise()), "wagonr")
    assert at_home.verdict == "match"
    assert abroad.verdict == "not_sure" and "another model, or not a car" in abroad.reason


@pytest.mark.parametrize(
    ("kind", "verdict", "words"), [("interior", "unusable", "interior"), (OTHER_MODEL, "other_model", "none of swift")]
)
def test_a_picture_like_the_curated_rejects_gets_their_kind(kind, verdict, words):
    rejects = np.concatenate([cloud(3, 20, 4), cloud(6, 20, 5)])
    kinds = np.array([kind] * 20 + ["close-up"] * 20)
    references = References.fit(cloud(0, 60, 1), cloud(0, 40, 2), rejects, kinds)
    answer = make_check((0.0, 1.0), cloud(3, 1, 7)[0], references=references).check(as_png(noise()), "wagonr")
    assert answer.verdict == verdict and words in answer.reason


def test_rejects_teach_what_distance_misses():
    # Other models lie on the fringe of the known ones: as near as these, but on one side.
    rng = np.random.default_rng(0)
    training, validation = rng.normal(0, 1, (200, 8)) + 3, rng.normal(0, 1, (100, 8)) + 3
    fringe = rng.normal(0, 1, (80, 8)) + 3 + np.r_[1.2, -1.2, np.zeros(6)]
    alone = References.fit(training, validation, np.zeros((0, 0)), np.array([]))
    taught = References.fit(training, validation, fringe[:40], np.array([OTHER_MODEL] * 40))
    by_distance = auroc(alone.strangeness(fringe[40:]), alone.strangeness(validation))
    by_both = auroc(taught.strangeness(fringe[40:]), taught.strangeness(validation))
    assert by_both > by_distance + 0.1


def test_at_least_the_promised_share_of_good_photos_passes(tmp_path):
    references = References.fit(cloud(0, 60, 1), cloud(0, 100, 2), cloud(3, 20, 4), np.array(["interior"] * 20))
    passed = references.strangeness(cloud(0, 100, 2)) <= references.threshold
    assert passed.mean() == pytest.approx(0.98, abs=0.011)
    references.save(tmp_path / "references.npz")
    stored = References.load(tmp_path / "references.npz")
    features = cloud(0, 30, 9)
    np.testing.assert_allclose(stored.strangeness(features), references.strangeness(features), atol=0.15)
    assert stored.kind_of(cloud(3, 1, 8)) == "interior" and stored.kind_of(cloud(0, 1, 8)) is None


def test_the_distance_is_the_mean_to_the_five_nearest_by_hand():
    angles = np.radians([0, 10, 20, 30, 40, 90, 120])
    references = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    expected = np.mean([2 * np.sin(angle / 2) for angle in angles[:5]])
    assert nearest_distance(references[:1], references)[0] == pytest.approx(expected, abs=1e-3)
    without_itself = np.mean([2 * np.sin(angle / 2) for angle in angles[1:6]])
    assert nearest_distance(references[:1], references, skip_nearest=True)[0] == pytest.approx(without_itself, abs=1e-3)


def test_auroc_of_rejects_is_measured_on_photos_that_were_no_examples():
    rejects = np.concatenate([cloud(3, 20, 4), cloud(0, 20, 5)])  # the second kind cannot be told from good photos
    measured = reject_auroc(cloud(0, 60, 1), cloud(0, 40, 2), rejects, np.array(["interior"] * 20 + ["close-up"] * 20))
    assert measured["interior"]["seen"] > 0.99 and measured["interior"]["unseen"] > 0.99
    assert 0.2 < measured["close-up"]["seen"] < 0.8 and measured["close-up"]["photos"] == 20


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([1, 1, 1], 4000)
    labels = np.array([rng.choice(3, p=row) for row in honest])
    assert Rejection.fit(calibrate(honest, 0.4), labels).temperature == pytest.approx(2.5, abs=0.2)
    np.testing.assert_allclose(calibrate(calibrate(honest, 0.4), 2.5), honest, atol=1e-9)


def test_where_every_photo_is_right_the_temperature_stays_one():
    rejection = Rejection.fit(np.tile([0.01, 0.99], (10, 1)), np.ones(10, int))
    assert rejection.temperature == 1 and rejection.coverage == 1 and rejection.validation_risk == 0


def test_the_coverage_risk_curve_by_hand():
    thresholds, coverage, risk = coverage_risk([0.9, 0.8, 0.8, 0.6, 0.5], [True, True, False, True, False])
    np.testing.assert_allclose(thresholds, [0.9, 0.8, 0.6, 0.5])
    np.testing.assert_allclose(coverage, [0.2, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(risk, [0, 1 / 3, 1 / 4, 2 / 5])


def test_the_threshold_answers_as_many_as_the_risk_allows():
    confidence, correct = [0.9, 0.8, 0.8, 0.6, 0.5], [True, True, False, True, False]
    assert choose_threshold(confidence, correct, 0.0) == 0.9
    assert choose_threshold(confidence, correct, 0.25) == 0.6
    assert choose_threshold(confidence, correct, 0.5) == 0.5
    assert choose_threshold([0.9, 0.8], [False, True], 0.1) == NEVER


def test_a_fitted_rejection_keeps_its_risk_on_validation_and_survives_a_file():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([0.4, 0.4], 500)
    labels = np.array([rng.choice(2, p=row) for row in probabilities])
    rejection = Rejection.fit(probabilities, labels, risk=0.05)
    calibrated = calibrate(probabilities, rejection.temperature)
    answered = calibrated.max(axis=1) >= rejection.confidence
    assert (calibrated.argmax(axis=1) != labels)[answered].mean() == rejection.validation_risk <= 0.05
    assert rejection.coverage == answered.mean() and rejection.validation_risk < rejection.risk_upper_95 < 0.12
    assert Rejection.from_dict(json.loads(json.dumps(rejection.as_dict()))) == rejection


def test_a_model_that_is_never_right_enough_answers_nothing():
    rejection = Rejection.fit(np.tile([0.2, 0.8], (6, 1)), np.zeros(6, int))
    answer = make_check((0.0, 1.0), rejection=rejection).check(as_png(noise()), "wagonr")
    assert answer.verdict == "not_sure" and "no confidence is enough" in answer.reason


def test_the_bound_of_the_risk_is_the_rule_of_three_where_nothing_went_wrong():
    assert risk_upper_bound(0, 300) == pytest.approx(0.01, rel=0.02)
    assert risk_upper_bound(5, 5) == 1.0


def test_auroc_counts_ties_half():
    assert auroc(np.array([2, 3]), np.array([1, 2])) == pytest.approx(7 / 8)


def test_quality_limits_follow_the_studys_own_photos():
    dim = [noise(seed, SIZE, 0, 40) for seed in range(20)]
    limits = Rejection().with_limits_of(np.stack(dim)).limits
    assert quality_fault(dim[0], limits) is None
    assert "too dark" in quality_fault(dim[0] // 4, limits)


def test_folders_are_opened_sorted_and_without_hidden_files(tmp_path):
    for name in ("b.jpg", "a/c.jpg", ".cache/d.jpg", ".e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in photos_in([tmp_path])]
    assert found == ["a/c.jpg", "b.jpg"]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        list(photos_in([tmp_path, tmp_path / "nowhere"]))


def write_bundle(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(b"no model")
    manifest = {"manifest_version": 1, "files": {"model.onnx": photo_check.sha256_of(folder / "model.onnx")}}
    manifest |= {"preprocessing": photo_check.PREPROCESSING, "run": "r", "classes": NAMES, "image_size": SIZE}
    photo_check.write_manifest(folder, manifest | {"rejection": Rejection().as_dict(), "format": "onnx"} | changes)
    return folder


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({}, ValueError, "not a model that ONNX Runtime can load"),
        ({"files": {"model.onnx": "0" * 64}}, ValueError, "SHA-256 differs"),
        ({"files": {"../secret": "0" * 64}}, ValueError, "outside the bundle"),
        ({"files": {"gone.onnx": "0" * 64}}, FileNotFoundError, "gone.onnx is missing"),
        ({"files": {}, "format": "keras"}, ValueError, "holds keras; the check runs ONNX"),
        ({"preprocessing": "other-9"}, ValueError, "made for the preprocessing other-9"),
        ({"manifest_version": 99}, ValueError, "has version 99"),
    ],
    ids=["corrupt", "changed", "escaping", "missing", "other format", "other preprocessing", "other version"],
)
def test_a_damaged_bundle_is_refused_with_a_sentence(tmp_path, changes, error, words):
    pytest.importorskip("onnxruntime")
    with pytest.raises(error, match=words):
        PhotoCheck.load(write_bundle(tmp_path / "bundle", **changes))


def test_a_bundle_that_is_not_there_or_not_json_is_refused_with_advice(tmp_path):
    with pytest.raises(FileNotFoundError, match="export RUN --to onnx"):
        PhotoCheck.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        PhotoCheck.load(tmp_path)


def bright_corner(images):
    """A model that looks at the upper left quarter alone."""
    half = images.shape[1] // 2
    share = images[:, :half, :half].mean(axis=(1, 2, 3)) / 255
    return np.column_stack([1 - share, share])


def test_the_occlusion_map_marks_what_the_model_looks_at():
    image = np.full((40, 40, 3), 20, np.uint8)
    image[:20, :20] = 250
    heat = explain.occlusion_map(bright_corner, image, 1)
    assert heat.shape == (8, 8)
    assert heat[:4, :4].min() > 0 and abs(heat[5:, 5:]).max() < 1e-6
    # Of the four windows over the cell at the inner corner one lies wholly in the bright part, two by half, one by a
    # quarter.
    assert heat[3, 3] / heat[1, 1] == pytest.approx(9 / 16, abs=1e-3)
    np.testing.assert_allclose(explain.occlusion_map(bright_corner, image, 0), -heat, atol=1e-6)


def test_the_overlay_keeps_what_is_hot_and_dims_the_rest():
    image = np.full((8, 8, 3), 200, np.uint8)
    shown = explain.overlay_heat(image, np.array([[1.0, 0.0], [0.5, -1.0]]))
    assert (shown[:4, :4] == 200).all() and (shown[:4, 4:] == 50).all()
    assert (shown[4:, :4] == 125).all() and (shown[4:, 4:] == 50).all()
    assert (explain.overlay_heat(image, np.zeros((2, 2))) == 50).all()


def test_the_deletion_check_tells_a_true_map_from_a_wrong_one():
    image = np.full((40, 40, 3), 20, np.uint8)
    image[:20, :20] = 250
    heat = explain.occlusion_map(bright_corner, image, 1)
    marked, random = explain.deletion_check(bright_corner, image, heat, 1)
    assert marked > 2 * random > 0
    wrongly_marked, random = explain.deletion_check(bright_corner, image, heat[::-1, ::-1], 1)
    assert wrongly_marked < random
