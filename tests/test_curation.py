"""Curation: what it finds, what it leaves alone, and who has the last word."""

import hashlib
import io
import json
import os

import numpy as np
import pandas as pd
import pytest
from generated_photos import encode, scene
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from carspotter.paths import Study
from carspotter.photos import fingerprints
from carspotter.photos.curation import curate, curate_study, kind_of, read_curation, score_curation, summary
from carspotter.photos.fingerprints import find_duplicates, hash_windows, measure_photos
from carspotter.photos.table import import_folder, read_photos

SIZE = (320, 240)


def crop(image, left, top, right, bottom):
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def watermark(image):
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    draw.rectangle((0, 205, 320, 240), fill=(20, 20, 90))
    draw.text((20, 208), "www.used-cars.example", fill="white", font_size=20)
    return marked


# What sellers and sites do to a photo, as functions of the picture; the bytes are coded anew in every case.
COPIES = {
    "re-encoded": lambda image: image,
    "rescaled": lambda image: image.resize((150, 113), Image.Resampling.BILINEAR),
    "mirrored": ImageOps.mirror,
    "cropped by 15 % of its width": lambda image: crop(image, 0.15, 0, 0, 0),
    "cropped by 10 % from all corners": lambda image: crop(image, 0.05, 0.06, 0.05, 0.04),
    "cropped by 15 % of both sides": lambda image: crop(image, 0.03, 0.12, 0.12, 0.03),
    "cropped and mirrored": lambda image: ImageOps.mirror(crop(image, 0.1, 0, 0.02, 0.1)),
    "watermarked": watermark,
    "made brighter": lambda image: image.point(lambda level: min(255, round(level * 1.2 + 10))),
}


def grey(images):
    small = [image.convert("L").resize((64, 64), Image.Resampling.BILINEAR) for image in images]
    table = np.zeros(len(small), dtype=fingerprints.FINGERPRINT)
    table["grey"] = [np.asarray(image) for image in small]
    return table


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_other_photos_are_not(name):
    originals = [scene(seed, SIZE) for seed in range(30)]
    copies = [Image.open(io.BytesIO(encode(COPIES[name](image), quality=70))) for image in originals]
    pairs = find_duplicates(grey(originals + copies), show_progress=False)
    found = {tuple(sorted(pair)) for pair in zip(pairs["first"], pairs["second"], strict=True)}
    true = {(k, k + 30) for k in range(30)}
    assert found <= true, f"{len(found - true)} pairs of different photos"
    assert len(found) >= 29, f"{30 - len(found)} of 30 copies missed"


def test_two_shots_of_one_place_are_no_copies():
    # The same backdrop with a car in another place: the whole is alike, a third of it is not.
    def shot(seed, x):
        image = scene(seed, SIZE)
        image.paste(scene(500, (180, 130)), (x, 80))
        return image

    different = [shot(k, 10 if k % 2 else 130) for k in range(12)]
    assert find_duplicates(grey(different), show_progress=False).empty


def test_photos_that_are_alike_only_from_afar_are_no_copies():
    # What the hashes see is the same in all of them, as with cars framed alike; the details are not.
    def pixels(image):
        return np.asarray(image, dtype=float)

    afar = ImageFilter.GaussianBlur(14)
    layout = pixels(scene(1, SIZE).filter(afar))
    details = [pixels(scene(seed, SIZE)) - pixels(scene(seed, SIZE).filter(afar)) for seed in range(20, 32)]
    photos = grey([Image.fromarray(np.clip(layout + detail, 0, 255).astype(np.uint8)) for detail in details])
    whole = hash_windows(photos["grey"])[:, 0, 0]
    assert np.bitwise_count(whole[0] ^ whole[1:]).min() < fingerprints.HASH_DISTANCE
    assert find_duplicates(photos, show_progress=False).empty


def test_flat_pictures_are_not_copies_of_each_other():
    flat = [Image.new("RGB", SIZE, (level, level, level)) for level in (0, 100, 101, 255)]
    assert find_duplicates(grey(flat), show_progress=False).empty


def test_whether_two_photos_match_does_not_depend_on_the_others():
    original = scene(1, SIZE)
    pair = [original, crop(original, 0.1, 0.02, 0.03, 0.1)]
    alone = find_duplicates(grey(pair), show_progress=False)
    among = find_duplicates(grey([scene(seed, SIZE) for seed in range(50, 150)] + pair), show_progress=False)
    assert alone["similarity"].tolist() == among["similarity"].tolist() and len(alone) == 1
    turned_round = find_duplicates(grey(pair[::-1]), show_progress=False)
    np.testing.assert_allclose(turned_round["similarity"], alone["similarity"], atol=1e-6)


def test_the_mirrored_hash_is_the_hash_of_the_mirror_image():
    images = grey([scene(seed, SIZE) for seed in range(8)])["grey"]
    plain, mirrored = hash_windows(images), hash_windows(images[:, :, ::-1])
    assert np.bitwise_count(plain[:, 0, 1] ^ mirrored[:, 0, 0]).max() <= 1


def test_the_hash_of_a_window_is_close_to_the_hash_of_the_cropped_photo():
    images = [scene(seed, SIZE) for seed in range(20)]
    whole = hash_windows(grey(images)["grey"])
    cut = hash_windows(grey([crop(image, 0.15, 0, 0, 0.15) for image in images])["grey"])[:, 0, 0]
    nearest = np.bitwise_count(whole[:, :, 0] ^ cut[:, None]).min(axis=1)
    unaided = np.bitwise_count(whole[:, 0, 0] ^ cut)
    assert np.median(nearest) <= 4 < 10 <= np.median(unaided)


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
    return curate(data, read_photos(data), show_progress=False).set_index("sha256")


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
    table = curated(data, folder)
    assert table["verdict"].to_dict() == {sha256: "reject", other: "keep"}
    assert table.loc[sha256, "reason"] == "unreadable: the bytes on disk are no longer those that were collected"


def test_nothing_but_unreadable_photos_is_a_curation_too(data, folder):
    save(folder, "swift/a.jpg", scene(1, (640, 480)))
    import_folder(data, folder, show_progress=False)
    photos = read_photos(data)
    (data / photos["path"][0]).write_bytes(b"")
    assert curate(data, photos, show_progress=False)["verdict"].tolist() == ["reject"]


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


def test_a_second_curation_decodes_nothing_and_says_the_same(data, folder, monkeypatch):
    for seed in range(4):
        save(folder, f"swift/{seed}.jpg", scene(seed, (640, 480)))
    first = curated(data, folder)
    monkeypatch.setattr(fingerprints, "open_photo", None)
    pd.testing.assert_frame_equal(curate(data, read_photos(data), show_progress=False).set_index("sha256"), first)


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
    with pytest.raises(ValueError, match="knows none of these 9 photos"):
        score_curation(table.assign(sha256="other-" + truth["file"]), tmp_path / "truth.csv")
