"""Curation: what it finds, what it leaves alone, and who has the last word."""

import hashlib
import json
import os

import numpy as np
import pandas as pd
import pytest
from generated_photos import encode, scene
from PIL import ImageFilter, ImageOps

from benchmarks.detectors import score_curation
from carspotter.curation.curate import count_duplicates, curate_study, judge_photos, summary
from carspotter.paths import Study
from carspotter.photos import fingerprints
from carspotter.photos.fingerprints import measure_photos
from carspotter.photos.importing import import_folder
from carspotter.photos.table import kind_of, read_curation, read_photos

SIZE = (320, 240)


def crop(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "photos"


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def save(folder, name, image, **options):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(image, **options))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def curated(data, folder):
    import_folder(data, folder, show_progress=False)
    return judge_photos(data, read_photos(data), show_progress=False).set_index("sha256")


def test_good_photos_are_kept_without_a_reason(data, folder):
    for seed in range(6):
        save(folder, f"swift/{seed}.jpg", scene(seed, (640, 480)))
    table = curated(data, folder)
    assert (
        set(table["verdict"]) == {"keep"} and set(table["reason"]) == {""} and set(table["decided_by"]) == {"machine"}
    )
    assert set(table["duplicate_cluster"]) == {""} and table["score"].max() < 0.5


def test_of_duplicates_the_largest_is_kept(data, folder):
    image = scene(1, (640, 480))
    small = save(folder, "swift/a.jpg", image.resize((320, 240)))
    large = save(folder, "swift/b.jpg", image)
    mirrored = save(folder, "swift/c.jpg", ImageOps.mirror(image.resize((480, 360))))
    alone = save(folder, "swift/d.jpg", scene(2, (640, 480)))
    table = curated(data, folder)
    assert table["verdict"].to_dict() == {small: "reject", large: "keep", mirrored: "reject", alone: "keep"}
    assert table.loc[small, "reason"] == f"duplicate: the same shot as {large[:12]}"
    assert table["duplicate_cluster"].to_dict() == {
        **dict.fromkeys((small, large, mirrored), min(small, large, mirrored)[:12]),
        alone: "",
    }


def test_the_same_bytes_under_two_labels_are_a_label_conflict(data, folder):
    sha256 = save(folder, "swift/a.jpg", scene(1, (640, 480)))
    save(folder, "wagonr/a.jpg", scene(1, (640, 480)))
    row = curated(data, folder).loc[sha256]
    assert row["verdict"] == "reject"
    assert row["reason"] == "label conflict: the same bytes are listed as swift and wagonr"


def test_the_same_shot_under_two_labels_is_a_label_conflict(data, folder):
    image = scene(1, (640, 480))
    save(folder, "swift/a.jpg", image)
    save(folder, "wagonr/a.jpg", crop(image, 0.05, 0, 0.05, 0))
    table = curated(data, folder)
    assert set(table["verdict"]) == {"reject"}
    assert set(table["reason"]) == {"label conflict: the same shot is listed as swift and wagonr"}


def test_a_photo_damaged_on_disk_is_unreadable(data, folder):
    sha256 = save(folder, "swift/a.jpg", scene(1, (640, 480)))
    other = save(folder, "swift/b.jpg", scene(2, (640, 480)))
    import_folder(data, folder, show_progress=False)
    photos = read_photos(data).set_index("sha256")
    path = data / photos.loc[sha256, "path"]
    path.write_bytes(path.read_bytes()[:4000])
    table = judge_photos(data, read_photos(data), show_progress=False).set_index("sha256")
    assert table["verdict"].to_dict() == {sha256: "reject", other: "keep"}
    assert table.loc[sha256, "reason"] == "unreadable: the bytes on disk are no longer those that were collected"


def test_nothing_but_unreadable_photos_is_a_curation_too(data, folder):
    save(folder, "swift/a.jpg", scene(1, (640, 480)))
    import_folder(data, folder, show_progress=False)
    photos = read_photos(data)
    (data / photos["path"][0]).write_bytes(b"")
    assert judge_photos(data, photos, show_progress=False)["verdict"].tolist() == ["reject"]


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("too small", lambda image: image.resize((120, 90))),
        ("too dark", lambda image: image.point(lambda level: level // 6)),
        ("too bright", lambda image: image.point(lambda level: 255 - (255 - level) // 6)),
        ("blurred", lambda image: image.filter(ImageFilter.GaussianBlur(14))),
    ],
)
def test_poor_photos_are_ranked_not_rejected(data, folder, kind, spoil):
    for seed in range(5):
        save(folder, f"swift/{seed}.jpg", scene(seed, (640, 480)))
    poor = save(folder, "swift/poor.jpg", spoil(scene(9, (640, 480))))
    table = curated(data, folder)
    assert table["score"].idxmax() == poor and table.loc[poor, "score"] > 0.5
    assert table.loc[poor, "verdict"] == "keep" and kind_of(table.loc[poor, "reason"]) == kind
    assert table["reason"].ne("").sum() == 1


def test_a_photo_half_as_sharp_as_its_listing_is_ranked_though_its_sharpness_would_do(data, folder):
    shas = {}
    for listing in ("a", "b"):
        for seed in range(5):
            image = scene(seed + 10 * (listing == "b"), (640, 480)).filter(ImageFilter.UnsharpMask(4, 300))
            if listing == "a" and seed == 4:
                image = image.filter(ImageFilter.GaussianBlur(3))
            shas[listing, seed] = save(folder, f"swift/{listing}__{seed:02}.jpg", image)
    table = curated(data, folder)
    soft = shas["a", 4]
    assert table["score"].idxmax() == soft and table.loc[soft, "score"] > 0.5
    assert table.loc[soft, "reason"].startswith("blurred: ")
    assert "its listing's other photos have" in table.loc[soft, "reason"]
    assert table["reason"].ne("").sum() == 1
    (folder / "swift/a__04.jpg").rename(folder / "swift/alone__04.jpg")
    assert curated(data.with_name("elsewhere"), folder)["reason"].eq("").all()


def review(data, sha256, verdict, **more):
    line = {
        "sha256": sha256,
        "reviewer": "ann",
        "verdict": verdict,
        "label": None,
        "reason": None,
        "time": "2026-01-01",
    }
    with open(data / "reviews.jsonl", "a") as lines:
        lines.write(json.dumps(line | {"audit": None} | more) + "\n")


def test_a_person_has_the_last_word(data, folder):
    image = scene(1, (640, 480))
    small = save(folder, "swift/a.jpg", image.resize((320, 240)))
    large = save(folder, "swift/b.jpg", image)
    conflict = save(folder, "swift/c.jpg", scene(2, (640, 480)))
    save(folder, "wagonr/c.jpg", scene(2, (640, 480)))
    fine = save(folder, "swift/d.jpg", scene(3, (640, 480)))
    curated(data, folder)
    review(data, small, "keep")
    review(data, conflict, "keep", label="wagonr")
    review(data, fine, "keep")
    review(data, fine, "reject", reason="interior")
    table = curated(data, folder)
    assert table["verdict"].to_dict() == {small: "keep", large: "reject", conflict: "keep", fine: "reject"}
    assert table.loc[conflict, ["label", "decided_by"]].tolist() == ["wagonr", "ann"]
    assert table.loc[fine, "reason"] == "reviewed: interior"
    assert table.loc[large, "reason"] == f"duplicate: the same shot as {small[:12]}"


def test_what_is_shown_is_ranked_by_features_and_a_person_stays_right(data, folder):
    shas = [save(folder, f"swift/{seed}__01.jpg", scene(seed, (320, 240))) for seed in range(40)]
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(2, 1, (40, 8)), index=shas)
    features.loc[shas[:2]] = [[9, -9] * 4, [-9, 9] * 4]
    import_folder(data, folder, show_progress=False)
    review(data, shas[0], "keep")
    table = judge_photos(data, read_photos(data), show_progress=False, features=features).set_index("sha256")
    assert table.loc[shas[1], "score"] > 0.5 and kind_of(table.loc[shas[1], "reason"]) == "unlike its class"
    assert set(table["verdict"]) == {"keep"} and table.loc[shas[0], "score"] == 0
    # Photos without features (one that was collected since) are ranked by quality alone.
    table = judge_photos(data, read_photos(data), show_progress=False, features=features.iloc[2:]).set_index("sha256")
    assert table.loc[shas[1], "score"] < 0.5


def test_doubts_of_models_raise_a_photo_that_features_find_nothing_in(data, folder):
    names = [f"{('swift', 'wagonr')[n // 4 % 2]}/{n // 4}__{n % 4}.jpg" for n in range(40)]
    shas = [save(folder, name, scene(n, (320, 240))) for n, name in enumerate(names)]
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(2, 1, (40, 8)), index=shas)
    import_folder(data, folder, show_progress=False)
    photos = read_photos(data)
    without = judge_photos(data, photos, show_progress=False, features=features).set_index("sha256")["score"]
    fine = without.idxmin()
    doubts = pd.Series(rng.uniform(0, 0.3, 40), index=shas)
    doubts[fine] = 0.99
    found = judge_photos(data, photos, show_progress=False, features=features, doubts=doubts).set_index("sha256")
    assert found.loc[fine, "score"] > 0.5 > without[fine]
    assert kind_of(found.loc[fine, "reason"]) == "another model" and "0.99" in found.loc[fine, "reason"]


def test_copies_are_counted_within_and_across_listings(tmp_path, folder):
    study = Study("sample", tmp_path / "data", tmp_path / "results")
    image = scene(1, (640, 480))
    save(folder, "swift/l1__01.jpg", image)
    save(folder, "swift/l2__01.jpg", image.resize((320, 240)))
    save(folder, "swift/l3__01.jpg", scene(2, (640, 480)))
    import_folder(study.data, folder, show_progress=False)
    curate_study(study, show_progress=False)
    counts = {"clusters": 1, "across listings": 1, "across parts of the split": 0, "surplus copies": 1}
    assert count_duplicates(study) == counts


def test_a_second_curation_decodes_nothing_and_says_the_same(data, folder, monkeypatch):
    for seed in range(4):
        save(folder, f"swift/{seed}.jpg", scene(seed, (640, 480)))
    first = curated(data, folder)
    monkeypatch.setattr(fingerprints, "decode", None)
    pd.testing.assert_frame_equal(judge_photos(data, read_photos(data), show_progress=False).set_index("sha256"), first)


def test_a_fingerprint_torn_by_a_kill_is_made_again(data, folder):
    for seed in range(4):
        save(folder, f"swift/{seed}.jpg", scene(seed, (640, 480)))
    first = curated(data, folder)
    cache = next(data.glob("fingerprints*"))
    os.truncate(cache, cache.stat().st_size - 100)
    pd.testing.assert_frame_equal(curated(data, folder), first)
    photos = read_photos(data)
    measured, _ = measure_photos(data, photos, show_progress=False)
    assert [sha256.decode() for sha256 in measured["sha256"]] == photos["sha256"].tolist()


def test_curation_csv_comes_back_as_it_was_written(tmp_path, folder):
    study = Study("sample", tmp_path / "data", tmp_path / "results")
    save(folder, "swift/a.jpg", scene(1, (640, 480)))
    save(folder, "swift/b.jpg", scene(1, (320, 240)))
    import_folder(study.data, folder, show_progress=False)
    with pytest.raises(FileNotFoundError, match="run `python -m carspotter curate` first"):
        read_curation(study)
    written = curate_study(study, show_progress=False)
    pd.testing.assert_frame_equal(read_curation(study), written.assign(score=written["score"].round(4)))
    assert "2 photos, 1 kept" in summary(written)


def test_scoring_against_the_truth(tmp_path):
    rows = [
        # file, hash, kind, copy, duplicate_of; verdict, reason, score, cluster
        ("o1", "car", "", "", "keep", "", 0.1, "c1"),
        ("k1", "car", "cropped", "o1", "reject", "duplicate: …", 1.0, "c1"),
        ("k2", "car", "cropped", "o2", "keep", "", 0.1, ""),
        ("o2", "car", "", "", "keep", "", 0.1, "c2"),
        ("x", "car", "", "", "reject", "duplicate: …", 1.0, "c2"),
        ("d1", "too_dark", "", "", "keep", "too dark: 9", 0.9, ""),
        ("d2", "too_dark", "", "", "keep", "", 0.2, ""),
        ("w", "car", "", "", "keep", "too dark: 30", 0.6, ""),
        ("i", "interior", "", "", "keep", "", 0.0, ""),
    ]
    truth = pd.DataFrame([row[:4] for row in rows], columns=["file", "kind", "copy", "duplicate_of"])
    truth.assign(sha256="sha-" + truth["file"]).to_csv(tmp_path / "truth.csv", index=False)
    columns = ["verdict", "reason", "score", "duplicate_cluster"]
    table = pd.DataFrame([row[4:] for row in rows], columns=columns).assign(sha256="sha-" + truth["file"])
    score = score_curation(table, tmp_path / "truth.csv")
    assert score.loc["copy: cropped", ["photos", "recall", "precision"]].tolist() == [2, 0.5, 0.5]
    assert score.loc["too_dark", ["photos", "recall", "precision"]].tolist() == [2, 0.5, 0.5]
    assert score.loc["too_dark", "worst_15"] == 0.5 and score.loc["interior", "recall"] == 0
    assert score.loc["all junk", ["photos", "recall", "worst_15"]].tolist() == [3, 0.333, 0.333]
    without = score_curation(table[table["sha256"] != "sha-o2"], tmp_path / "truth.csv")
    assert without.loc["copy: cropped", ["photos", "recall"]].tolist() == [1, 1.0], "what was not collected is no miss"
    with pytest.raises(ValueError, match="knows none of these 9 photos"):
        score_curation(table.assign(sha256="other-" + truth["file"]), tmp_path / "truth.csv")
