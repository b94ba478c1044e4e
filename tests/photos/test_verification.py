"""What was split passes its own verification, whatever the photos; what was changed by hand does not."""

import os
import random

import numpy as np
import pandas as pd
import pytest
from generated_photos import encode, scene
from PIL import Image, ImageOps

from carspotter.curation.curate import curate_study
from carspotter.paths import Study
from carspotter.photos.importing import import_folder
from carspotter.photos.splitting import read_splits, split_study
from carspotter.photos.table import read_curation
from carspotter.photos.verification import verify_split

REAL_PHOTOS = os.environ.get("CARSPOTTER_REAL_PHOTOS")


def shot_of(place: Image.Image, paint: tuple[int, int, int], chance: random.Random) -> Image.Image:
    """Paste a car of that paint into a place, seen from somewhere else each time."""
    width, height = place.size
    moved = ImageOps.mirror(place) if chance.random() < 0.5 else place
    left, top = chance.randint(0, width // 10), chance.randint(0, height // 10)
    photo = moved.crop((left, top, left + width * 9 // 10, top + height * 9 // 10)).resize((width, height))
    car = Image.new("RGB", (width // 2, height // 3), paint)
    photo.paste(car, (width // 4 + chance.randint(-9, 9), height // 3 + chance.randint(-9, 9)))
    return photo


@pytest.fixture
def make_study(tmp_path):
    def make(seed: int) -> Study:
        """Import and curate 26 cars, one to three photos of each, some of them copies, without any listing."""
        chance = random.Random(seed)
        for car in range(26):
            place = scene(seed * 1000 + car, (160, 120))
            paint = tuple(chance.randint(0, 255) for _ in range(3))
            shots = [shot_of(place, paint, chance) for _ in range(chance.randint(1, 3))]
            shots += [ImageOps.mirror(shots[0])] * chance.randint(0, 1)
            for number, photo in enumerate(shots):
                file = tmp_path / "photos" / ("civic", "altima")[car % 2] / f"{car}-{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode(photo, quality=chance.choice((70, 90))))
        study = Study("toy", tmp_path / "data", tmp_path / "results")
        import_folder(study.data, tmp_path / "photos", show_progress=False)
        curate_study(study, show_progress=False)
        return study

    return make


@pytest.mark.parametrize("seed", range(3))
def test_whatever_was_split_passes_verification(make_study, seed):
    study = make_study(seed)
    split_study(study)
    report = verify_split(study, show_progress=False)
    assert report.ok, report
    assert report.pairs >= 10, "else it proves little"


def test_a_car_seen_from_elsewhere_stays_on_one_side(make_study):
    study = make_study(5)
    cars = read_curation(study).query("car != '' and verdict == 'keep'")
    assert len(cars) > cars["car"].nunique(), "some cars have photos that are no copies"
    split_study(study)
    side = read_splits(study).set_index("sha256")["split"]
    assert (side[cars["sha256"]].groupby(cars["car"].to_numpy()).nunique() == 1).all()


def test_a_split_from_before_a_tie_was_known_is_repaired_by_splitting_again(make_study):
    study = make_study(2)
    curation = read_curation(study)
    curation.assign(car="").to_csv(study.curation, index=False)
    split_study(study)
    before = verify_split(study, show_progress=False)
    assert any("cross: same car" in problem for problem in before.problems)
    curation.to_csv(study.curation, index=False)
    split_study(study)
    assert verify_split(study, show_progress=False).ok


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (
            lambda rows: rows.assign(label=rows["label"].map({"civic": "altima", "altima": "civic"})),
            "another sealed label than in curation.csv",
        ),
        (
            lambda rows: rows.assign(label=["banana", *rows["label"][1:]]),
            "1 photos have a sealed label that is no class",
        ),
        (lambda rows: pd.concat([rows, rows[:1]]), "1 photos are sealed twice"),
        (lambda rows: rows[1:], "differs from the sealed rows in 1 photos"),
    ],
    ids=["swapped", "banana", "doubled", "missing"],
)
def test_changed_seals_are_noticed_and_no_label_is_printed(make_study, tamper, problem):
    study = make_study(1)
    split_study(study)
    tamper(pd.read_csv(study.sealed, dtype=str)).to_csv(study.sealed, index=False)
    report = verify_split(study, show_progress=False)
    assert any(problem in text for text in report.problems), report.problems
    assert not any(label in text for text in report.problems for label in ("civic", "banana"))


def test_deleted_and_moved_rows_and_photos_rejected_since_are_noticed(make_study):
    study = make_study(1)
    split_study(study)
    written = study.splits.read_text()
    rows = read_splits(study)
    training = rows[rows["split"] == "train"]
    rows.drop(training.index[:2]).to_csv(study.splits, index=False, lineterminator="\n")
    report = verify_split(study, show_progress=False)
    assert any("not the file that `split` wrote" in text for text in report.problems)
    assert any(text.startswith("2 kept photos of these classes are not in the split") for text in report.notes)
    moved = rows["split"].mask(rows["group"] == training["group"].iloc[0], "validation")
    rows.assign(split=moved).to_csv(study.splits, index=False, lineterminator="\n")
    assert not verify_split(study, show_progress=False).ok

    study.splits.write_text(written)
    assert verify_split(study, show_progress=False).ok
    curation = read_curation(study).set_index("sha256", drop=False)
    curation.loc[training["sha256"].iloc[0], ["verdict", "reason"]] = ("reject", "reviewed: interior")
    curation.to_csv(study.curation, index=False)
    problems = verify_split(study, show_progress=False).problems
    assert any("1 photos were rejected by the curation since" in text for text in problems)


def test_after_a_split_that_was_killed_between_its_files_splitting_again_helps_and_says_so(make_study):
    study = make_study(1)
    assert not any("had changed" in note for note in split_study(study).notes)
    written = study.splits.read_bytes()
    study.splits_checksum.write_text(f"{'0' * 64}  splits.csv\n")
    problems = verify_split(study, show_progress=False).problems
    assert len(problems) == 1 and "stopped while it wrote, split again" in problems[0]
    assert any("had changed since `split` last finished" in note for note in split_study(study).notes)
    assert study.splits.read_bytes() == written
    assert verify_split(study, show_progress=False).ok
    assert not any("had changed" in note for note in split_study(study).notes)


def test_unusable_photos_and_other_models_are_rejected_with_their_kind_and_take_no_part(make_study, tmp_path):
    study = make_study(4)
    for number, name in enumerate(("unusable/dashboard", "other-model/mustang/front")):
        file = tmp_path / "photos" / f"{name}.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(encode(scene(90_000 + number, (160, 120))))
    import_folder(study.data, tmp_path / "photos", show_progress=False)
    table = curate_study(study, show_progress=False)
    found = dict(table.loc[table["reason"].str.contains("imported as"), ["reason", "verdict"]].itertuples(index=False))
    assert found == {"unusable: imported as such": "reject", "other model: imported as mustang": "reject"}
    assert set(split_study(study).counts.index) == {"altima", "civic"}


def test_a_study_of_other_photos_is_named_as_such(make_study, tmp_path):
    study = make_study(3)
    study.folder.mkdir(parents=True)
    study.splits.write_text(f"sha256,label,group,split\n{'a' * 64},civic,a,train\n")
    with pytest.raises(ValueError, match="results/toy: this study is a split of other photos.*--study my_altima_civic"):
        split_study(study)


def test_a_split_saved_by_a_spreadsheet_is_named(make_study):
    study = make_study(1)
    split_study(study)
    study.splits.write_text(study.splits.read_text().replace(",", ";"))
    with pytest.raises(ValueError, match="splits.csv: needs the columns sha256, label, group, split"):
        read_splits(study)
    study.splits.write_text(study.splits.read_text().replace(";", ","))
    study.sealed.write_text(study.sealed.read_text(), encoding="utf-16")
    with pytest.raises(ValueError, match="sealed/toy.csv: not a table.*in UTF-8, or restore it"):
        verify_split(study, show_progress=False)


@pytest.mark.skipif(not REAL_PHOTOS, reason="CARSPOTTER_REAL_PHOTOS names no folder")
def test_real_photos_pass_their_own_verification(tmp_path):
    study = Study("real", tmp_path / "data", tmp_path / "results")
    import_folder(study.data, REAL_PHOTOS, classes=["civic", "altima"], show_progress=False)
    curate_study(study, show_progress=False)
    split_study(study)
    report = verify_split(study, show_progress=False)
    assert report.ok and report.pairs >= 100  # 108 on the photos measured on


def test_places_that_tell_nothing_tie_no_photos(make_study):
    from carspotter.photos.duplicates import CROWD, find_same_colours
    from carspotter.photos.fingerprints import describe_palette

    street = scene(1, (160, 120))
    crowd = [shot_of(street, (200, 30, 30), random.Random(seed)) for seed in range(CROWD + 2)]
    studio = [shot_of(Image.new("RGB", (160, 120), "white"), (30, 30, 200), random.Random(seed)) for seed in range(4)]

    def pairs(photos, listed=()):
        palettes = np.stack([describe_palette(photo) for photo in photos])
        return find_same_colours(palettes, np.isin(np.arange(len(photos)), listed))

    elsewhere = [scene(seed, (160, 120)) for seed in range(2, 60)]
    assert len(pairs(crowd[:4] + elsewhere)) == 6
    assert len(pairs(crowd + elsewhere)) == 0 and len(pairs(studio + elsewhere)) == 0
    # Listings tell photos apart better than colours: those of photos 0 and 1 do, 2 and 3 have none.
    assert {tuple(sorted(pair)) for pair in pairs(crowd[:4] + elsewhere, listed=[0, 1])} == {
        (first, second) for second in (2, 3) for first in range(second)
    }
