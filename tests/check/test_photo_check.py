"""The photo check: verdicts, thresholds and what they promise, quality, and explanations that hold."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from carspotter.models.history import halves
from carspotter_check import explain
from carspotter_check.listing import combine, read_listings
from carspotter_check.open_world import OTHER_MODEL, Known, measure_kinds
from carspotter_check.photo_check import photos_in
from carspotter_check.rejection import (
    Limits,
    ListingRule,
    Rejection,
    apart,
    calibrate,
    coverage_risk,
    pool,
    quality,
    quality_fault,
    read_rule,
)
from tests.check.toy import NAMES, SIZE, as_png, make_check, noise


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
    assert json.loads(json.dumps(asdict(answer)))["verdict"] == "unusable"


def test_a_reason_has_digits_enough_to_tell_a_figure_from_its_limit():
    assert apart(10.77, 10.81, 1) == ("10.77", "10.81") and apart(3.2, 10.8, 1) == ("3.2", "10.8")
    assert apart(0.5, 0.5, 2) == ("0.50", "0.50")
    reason = make_check((0.4701, 0.5299), rejection=Rejection(confidence=0.5304)).check(as_png(noise())).reason
    assert reason == "could be wagonr (p = 0.5299), but an answer asks for 0.5304"
    sharp = quality(noise())["sharpness"]
    found, needed = re.findall(r"\d[\d.]+", quality_fault(noise(), Limits(sharpness=sharp + 1e-4)))
    assert float(found) < float(needed)


def test_a_file_name_cannot_forge_a_line_of_output(tmp_path):
    path = tmp_path / "a\nforged.jpg: match\x1b[31m.png"
    path.write_bytes(as_png(noise()))
    assert make_check().check(path).photo == "a?forged.jpg: match?[31m.png"


def test_a_claim_that_the_model_does_not_know_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'nano' is not a class of a-run; it knows swift, wagonr"):
        make_check().check(as_png(noise()), "nano")


def fit_known(others=((3, "interior"), (6, OTHER_MODEL)), photos=60):
    """Class 0 lies around one axis, class 1 around another, and each kind of others around its own."""
    training = np.concatenate([cloud(0, photos, 1), cloud(1, photos, 2)])
    validation = np.concatenate([cloud(0, photos, 3), cloud(1, photos, 4)])
    labels = np.repeat([0, 1], photos)
    rows = np.concatenate([cloud(axis, 20, axis) for axis, _ in others]) if others else np.zeros((0, 0))
    return Known.fit(training, labels, validation, labels, rows, np.repeat([kind for _, kind in others], 20))


def test_a_picture_unlike_all_known_ones_is_turned_away_however_sure_the_model_is():
    known = fit_known(others=())
    at_home = make_check((0.0, 1.0), cloud(1, 1, 5)[0], known=known).check(as_png(noise()), "wagonr")
    abroad = make_check((0.0, 1.0), cloud(5, 1, 5)[0], known=known).check(as_png(noise()), "wagonr")
    assert at_home.verdict == "match" and at_home.unlike < 0.95
    assert abroad.verdict == "not_sure" and "another model, or not a car" in abroad.reason and abroad.unlike == 1


def test_of_two_pictures_as_far_from_their_class_the_one_nearer_to_what_is_no_car_is_more_unlike():
    corners = np.eye(4, dtype=np.float32)
    photos, kinds = np.repeat(corners[:3], 3, axis=0), np.repeat(["0", "1", "interior"], 3)
    scales, good = np.tile([0.0, 1.0], (2, 3, 1)), np.tile(np.linspace(0, 5, 201), (2, 1))
    known = Known(photos, kinds, np.zeros(5, np.float32), scales, good, np.ones(2))
    towards_interiors, elsewhere = (known.compare(corners[[0]] + 0.8 * corners[[to]], 0)[0] for to in (2, 3))
    assert towards_interiors > elsewhere > 0


def test_a_picture_like_the_other_class_is_unlike_the_one_that_the_model_names():
    answer = make_check((0.0, 1.0), cloud(0, 1, 5)[0], known=fit_known()).check(as_png(noise()), "wagonr")
    assert answer.verdict == "not_sure" and answer.unlike == 1


@pytest.mark.parametrize(
    ("axis", "verdict", "words"), [(3, "unusable", "interior"), (6, "other_model", "none of swift, wagonr")]
)
def test_a_picture_like_other_photos_gets_their_kind(axis, verdict, words):
    answer = make_check((0.0, 1.0), cloud(axis, 1, 7)[0], known=fit_known()).check(as_png(noise()), "wagonr")
    assert answer.verdict == verdict and words in answer.reason


def test_examples_teach_what_distance_misses():
    # Other models lie on the fringe of the known ones: as near as these, but on one side.
    rng = np.random.default_rng(0)

    def near(count):
        return rng.normal(0, 1, (count, 8)) + 3

    training, validation, labels = near(400), near(400), np.repeat([0, 1], 200)
    fringe = near(160) + np.r_[1.2, -1.2, np.zeros(6)]
    kinds = np.array([OTHER_MODEL] * 80)
    alone = Known.fit(training, labels, validation, labels, np.zeros((0, 0)), np.array([]))
    taught = Known.fit(training, labels, validation, labels, fringe[:80], kinds)
    shares = [
        np.mean([known.is_unlike(known.compare(row[None], 0)[0], 0) for row in fringe[80:]])
        for known in (alone, taught)
    ]
    assert shares[1] > shares[0] + 0.1


@pytest.mark.parametrize(("photos", "least", "most"), [(1000, 0.04, 0.1), (20, 0.08, 0.3)])
def test_few_photos_make_the_check_more_careful(photos, least, most):
    flagged = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        training, good, fresh = (rng.normal(0, 1, (2 * photos, 4)) + 3 for _ in range(3))
        labels = np.repeat([0, 1], photos)
        known = Known.fit(training, labels, good, labels, np.zeros((0, 0)), np.array([]))
        flagged += [known.is_unlike(known.compare(row[None], 0)[0], 0) for row in fresh[:200]]
    assert least < np.mean(flagged) < most


def test_known_photos_survive_a_file_and_damage_is_named(tmp_path):
    known = fit_known()
    known.save(tmp_path / "known.npz")
    stored = Known.load(tmp_path / "known.npz", 2)
    for axis in (0, 3):
        before, after = (one.compare(cloud(axis, 1, 9), 0) for one in (known, stored))
        assert before[0] == pytest.approx(after[0], abs=0.05) and before[1] == after[1]
    with pytest.raises(ValueError, match="does not fit the model's 3 classes"):
        Known.load(tmp_path / "known.npz", 3)
    arrays = dict(np.load(tmp_path / "known.npz"))
    np.savez(tmp_path / "nan.npz", **arrays | {"scales": np.full((2, 3, 2), np.nan)})
    with pytest.raises(ValueError, match="no number"):
        Known.load(tmp_path / "nan.npz", 2)
    np.savez(tmp_path / "one.npz", **arrays | {"kinds": np.where(arrays["kinds"] == "1", "0", arrays["kinds"])})
    with pytest.raises(ValueError, match="does not fit"):
        Known.load(tmp_path / "one.npz", 2)  # nothing is known of the second class
    impossible = {"scales": -arrays["scales"], "shares": arrays["shares"] + 5, "good": arrays["good"][:, ::-1]}
    for name, value in {**impossible, "photos": 100 * arrays["photos"], "weights": arrays["weights"] + 1e30}.items():
        np.savez(tmp_path / "odd.npz", **arrays | {name: value})
        with pytest.raises(ValueError, match="no export writes"):
            Known.load(tmp_path / "odd.npz", 2)
    np.savez(tmp_path / "whole.npz", **arrays | {"photos": np.round(arrays["photos"]).astype(int)})
    with pytest.raises(ValueError, match="no number"):
        Known.load(tmp_path / "whole.npz", 2)
    np.savez(
        tmp_path / "forged.npz", **arrays | {"kinds": np.where(arrays["kinds"] == "interior", "a\nb", arrays["kinds"])}
    )
    with pytest.raises(ValueError, match="does not fit"):
        Known.load(tmp_path / "forged.npz", 2)
    (tmp_path / "text.npz").write_text("x")
    with pytest.raises(ValueError, match="cannot be read"):
        Known.load(tmp_path / "text.npz", 2)


def test_kinds_are_measured_on_photos_that_were_no_examples():
    others = np.concatenate([cloud(3, 20, 4), cloud(0, 20, 5)])  # the second kind cannot be told from good photos
    training, labels = np.concatenate([cloud(0, 60, 1), cloud(1, 60, 2)]), np.repeat([0, 1], 60)
    validation = np.concatenate([cloud(0, 60, 6), cloud(1, 60, 7)])
    kinds = np.array(["interior"] * 20 + ["close-up"] * 20)
    measured = measure_kinds(training, labels, validation, labels, others, kinds)
    assert measured["interior"]["seen"] == measured["interior"]["unseen"] == 1
    assert measured["close-up"]["seen"] < 0.6 and measured["close-up"]["photos"] == 20


def test_a_model_that_computes_no_number_names_nothing():
    answer = make_check((np.nan, np.nan)).check(as_png(noise()), "wagonr")
    assert answer.verdict == "not_sure" and answer.label is None and "no number" in answer.reason


def test_photos_of_one_car_are_worth_more_than_one_and_less_than_their_number():
    unsure = make_check((0.3, 0.7), rejection=Rejection(confidence=0.8))
    answers = [unsure.check(as_png(noise(seed)), "wagonr") for seed in range(6)]
    assert {answer.verdict for answer in answers} == {"not_sure"}
    together = combine(unsure, answers, "wagonr")
    assert together.verdict == "match" and 0.7 < together.probability < 0.7**6 / (0.7**6 + 0.3**6)
    assert combine(unsure, answers, "swift").verdict == "other_model"
    assert combine(unsure, answers[:1], "wagonr").verdict == "not_sure"


def test_photos_that_are_each_a_little_unlike_turn_their_car_away_together():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 400)[groups := np.arange(2000) // 5]
    probabilities, unlike = np.where(labels[:, None] == [0, 1], 0.95, 0.05), rng.random(2000)
    rule = ListingRule.fit(probabilities, labels, groups, Rejection(risk=0.1), unlike=unlike)
    assert 0.65 < rule.unlike < 0.75 and 0.85 < rule.coverage < 0.99  # the mean of five is below .71 in 95 % of cars
    check = make_check(rejection=Rejection(confidence=0.6))
    check.listing = replace(rule, confidence=0.6)
    answer = check.check(as_png(noise()), "wagonr")
    for each, verdict in ((0.5, "match"), (0.9, "not_sure")):
        photos = [replace(answer, unlike=each)] * 5
        assert {photo.verdict for photo in photos} == {"match"} and combine(check, photos, "wagonr").verdict == verdict


@pytest.mark.parametrize(("shared", "low", "high"), [(0.0, 0.0, 0.1), (1.0, 0.8, 1.0)])
def test_the_correlation_of_photos_of_one_car_is_found_and_the_certificate_counts_listings(shared, low, high):
    # The error of a photo's log odds is its car's to the share `shared`, else its own; they are calibrated alone.
    rng = np.random.default_rng(0)
    labels, groups = np.repeat(rng.integers(0, 2, 800), 5), np.repeat(np.arange(800), 5)
    error = np.repeat(rng.normal(0, 2, 800), 5) if shared else rng.normal(0, 2, 4000)
    odds = np.where(labels, 2.0, -2.0) + error
    probabilities = np.column_stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))])
    rule = ListingRule.fit(probabilities, labels, groups, Rejection(risk=0.15))
    assert low <= rule.correlation <= high and rule.listings == 400 and "400 listings" in rule.reason
    assert rule.certified == 0.15 and rule.coverage > (0.6 if shared else 0.95)


def test_the_rule_for_listings_survives_a_file_and_needs_cars_with_several_photos():
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 2, 600), np.arange(600) // 3
    labels = labels[groups]
    probabilities = np.where(labels[:, None] == [0, 1], 0.8, 0.2)
    rule = ListingRule.fit(probabilities, labels, groups, Rejection(risk=0.1))
    assert read_rule(ListingRule, json.loads(json.dumps(asdict(rule)))) == rule
    alone = ListingRule.fit(probabilities, labels, np.arange(600), Rejection(confidence=0.7))
    assert alone == ListingRule(confidence=0.7)


def test_pooled_photos_of_no_shared_error_multiply_and_of_one_error_count_once():
    photos = np.array([[0.2, 0.8], [0.2, 0.8]])
    assert pool(photos, 0.0)[1] == pytest.approx(16 / 17) and pool(photos, 1.0)[1] == pytest.approx(0.8)


def test_a_listing_whose_photos_are_mostly_unlike_known_cars_is_another_model():
    known = fit_known()
    here, there = (make_check((0.1, 0.9), cloud(axis, 1, 5)[0], known=known) for axis in (1, 6))
    own, other = here.check(as_png(noise()), "wagonr"), there.check(as_png(noise()), "wagonr")
    nothing = here.check(b"", "wagonr")
    assert combine(here, [own, own, other, nothing], "wagonr").verdict == "match"
    assert combine(here, [own, *[other] * 4, nothing], "wagonr").verdict == "other_model"
    empty = combine(here, [nothing], "wagonr")
    assert empty.verdict == "unusable" and empty.unusable == ["photo"] and empty.decided == []


def test_listings_come_from_folders_or_a_table(tmp_path):
    for name in ("one/a.jpg", "one/b.jpg", "two/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [(name, len(photos), claim) for name, photos, claim in read_listings(tmp_path)] == [
        ("one", 2, None), ("two", 1, None)
    ]  # fmt: skip
    assert [(name, len(photos)) for name, photos, _ in read_listings(tmp_path / "one")] == [("one", 2)]
    table = tmp_path / "cars.csv"
    table.write_text("listing,photo,claim\nx,one/a.jpg,swift\ny,two/c.jpg,\nx,one/b.jpg,swift\n")
    assert [(name, len(photos), claim) for name, photos, claim in read_listings(table)] == [
        ("x", 2, "swift"), ("y", 1, None)
    ]  # fmt: skip
    table.write_text("\ufeffListing;Photo;City\nx;one/a.jpg;Goa\n", encoding="utf-8")  # a spreadsheet's
    assert [(name, len(photos), claim) for name, photos, claim in read_listings(table)] == [("x", 1, None)]
    table.write_text("listing,photo\nx,gone.jpg\n")
    with pytest.raises(FileNotFoundError, match="gone.jpg of listing x does not exist"):
        read_listings(table)
    table.write_text("listing,photo,claim\nx,one/a.jpg,swift\nx,one/b.jpg,wagonr\n")
    with pytest.raises(ValueError, match="listing x claims swift in one row and wagonr in another"):
        read_listings(table)
    table.write_text("listing,photo,claim\nx,one/a.jpg,swift\nx,one/b.jpg,\n")
    with pytest.raises(ValueError, match="claims swift in one row and nothing in another; write"):
        read_listings(table)
    with pytest.raises(FileNotFoundError, match="none.csv does not exist; name"):
        read_listings(tmp_path / "none.csv")


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([1, 1, 1], 8000)
    labels = np.array([rng.choice(3, p=row) for row in honest])
    fitted = Rejection.fit(calibrate(honest, 0.4), labels, np.arange(8000))
    assert fitted.temperature == pytest.approx(2.5, abs=0.25)
    np.testing.assert_allclose(calibrate(calibrate(honest, 0.4), 2.5), honest, atol=1e-9)


def test_the_coverage_risk_curve_by_hand():
    thresholds, coverage, risk = coverage_risk([0.9, 0.8, 0.8, 0.6, 0.5], [True, True, False, True, False])
    np.testing.assert_allclose(thresholds, [0.9, 0.8, 0.6, 0.5])
    np.testing.assert_allclose(coverage, [0.2, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(risk, [0, 1 / 3, 1 / 4, 2 / 5])


def test_a_certified_risk_survives_a_file_and_says_what_it_rests_on():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([0.2, 0.2], 3000)
    labels = np.array([rng.choice(2, p=row) for row in probabilities])
    rejection = Rejection.fit(probabilities, labels, np.arange(3000), risk=0.05)
    assert rejection.certified == 0.05 and rejection.photos == 1500 and 0.5 < rejection.coverage < 1
    answered = calibrate(probabilities, rejection.temperature).max(axis=1) >= rejection.confidence
    assert (probabilities.argmax(axis=1) != labels)[answered].mean() < 0.05
    certifying = np.sort(calibrate(probabilities, rejection.temperature).max(axis=1)[~halves(np.arange(3000))])
    last = certifying[-round(1500 * rejection.coverage)]
    assert 0 < last - rejection.confidence < 1e-5, "the photo that sets the threshold passes it, by a little"
    assert read_rule(Rejection, json.loads(json.dumps(asdict(rejection)))) == rejection
    few = Rejection.fit(probabilities[:80], labels[:80], np.arange(80), risk=0.01)
    assert few.certified > 0.01 and "cannot be certified with 40 photos" in few.reason


def test_photos_that_are_turned_away_anyway_do_not_count_as_answered():
    right = np.tile([0.1, 0.9], (400, 1))
    answerable = np.arange(400) % 4 > 0
    rejection = Rejection.fit(right, np.ones(400, int), np.arange(400), risk=0.05, answerable=answerable)
    assert 0.65 < rejection.coverage < 0.85


def test_quality_limits_follow_the_studys_own_photos():
    dim = [noise(seed, SIZE, 0, 40) for seed in range(20)]
    limits = Rejection().with_limits_of(np.stack(dim), 300).limits
    assert limits.shorter_side == 300
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


def test_the_deletion_check_tells_a_true_map_from_a_wrong_one():
    image = np.full((40, 40, 3), 20, np.uint8)
    image[:20, :20] = 250
    heat = explain.occlusion_map(bright_corner, image, 1)
    marked, random = explain.deletion_check(bright_corner, image, heat, 1)
    assert marked > 2 * random > 0
    wrongly_marked, random = explain.deletion_check(bright_corner, image, heat[::-1, ::-1], 1)
    assert wrongly_marked < random
