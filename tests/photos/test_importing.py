"""What an import takes for a listing, what it leaves out, what it overrides, and what it says about all that."""

import os
import shutil

import pytest
from generated_photos import encode, scene

from carspotter.photos.folders import is_system_name, read_rows
from carspotter.photos.importing import import_folder
from carspotter.photos.journal import read_journal
from carspotter.photos.table import OTHER_MODEL, UNUSABLE, read_photos, read_removed, slugify

NAMES = [f"{label}/{number}.jpg" for label in ("altima", "civic") for number in range(4)]


def lay_out(folder, names, seed=0):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(scene(seed + number, (64, 48))))
    return folder


@pytest.fixture
def folder(tmp_path):
    return lay_out(tmp_path / "photos", NAMES)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def bring_in(data, folder, **options):
    return import_folder(data, folder, show_progress=False, **options)


def by_name(data):
    """Return label, kind and listings of the standing photos by the name under which each was imported last."""
    names = {
        line["sha256"]: line["url"].removeprefix("import:")
        for line in read_journal(data / "raw/import/journal.jsonl")
        if line["status"] == "fetched"
    }
    return {names[photo.sha256]: photo for photo in read_photos(data).itertuples()}


def note(report, words):
    """Return the one note that holds the words."""
    found = [text for text in report.notes if words in text]
    assert len(found) == 1, report.notes
    return found[0]


@pytest.mark.parametrize(
    "spelling",
    [
        "{}",
        "./{}",
        "photos\\{}",
        "/home/ann/photos/{}",
        "C:\\Users\\ann\\photos\\{}",
        "CIVIC/../{}",
    ],
    ids=["plain", "dot slash", "backslash", "absolute", "Windows", "other folder before"],
)
def test_listings_csv_matches_however_its_paths_are_written(data, folder, spelling):
    rows = [f"{spelling.format(name.upper())},car-{number // 2}" for number, name in enumerate(NAMES)]
    (folder / "listings.csv").write_text("file,listing\n" + "\n".join(rows).replace("CIVIC/../", "civic/../"))
    report = bring_in(data, folder)
    assert (report.with_listing, report.without, report.groups) == (8, 0, 4)
    assert "8 photos in 2 classes: 8 with a listing, 0 without, 4 groups" in str(report)
    assert by_name(data)["altima/3.jpg"].listings == ("import:car-1",)


def test_bare_names_match_where_they_name_one_photo(data, tmp_path):
    folder = lay_out(tmp_path / "photos", ["altima/a.jpg", "altima/both.jpg", "civic/café.jpg", "civic/both.jpg"])
    rows = ["a.jpg,1", "cafe\u0301.jpg,2", "both.jpg,3", "gone.jpg,4"]
    (folder / "listings.csv").write_text("file,listing\n" + "\n".join(rows))
    report = bring_in(data, folder)
    assert note(report, "2 of 4 rows match a photo").endswith("these do not: both.jpg (2 photos), gone.jpg")
    assert (report.with_listing, report.without) == (2, 2)


def test_listings_that_match_nothing_stop_the_import(data, folder):
    (folder / "listings.csv").write_text("file,listing\ncivic/one.jpg,1\ncivic/two.jpg,2\n")
    with pytest.raises(ValueError, match="0 of 2 rows match a photo, civic/one.jpg first; .* as in altima/0.jpg"):
        bring_in(data, folder)
    assert bring_in(data, folder, listing_from="none").with_listing == 0


def test_a_sub_folder_is_a_car(data, tmp_path):
    names = [f"{label}/car {car}/IMG_{n}.jpg" for label in ("altima", "civic") for car in range(3) for n in range(2)]
    folder = lay_out(tmp_path / "photos", names)
    report = bring_in(data, folder)
    assert report.groups == 6 and "--listing-from" in note(report, "6 sub-folders were taken as one car each")
    assert by_name(data)["civic/car 1/IMG_0.jpg"].listings == ("import:civic/car 1",)
    without = bring_in(data, folder, listing_from="name")
    assert without.with_listing == 0 and "listing civic/car 0 -> none" in note(without, "present state replaces")
    assert not by_name(data)["civic/car 1/IMG_0.jpg"].listings


def test_numbers_that_start_anew_in_each_class_name_other_cars(data, tmp_path):
    folder = lay_out(tmp_path / "photos", [f"{label}/001__{n}.jpg" for label in ("altima", "civic") for n in range(2)])
    assert bring_in(data, folder).groups == 2
    assert {photo.listings for photo in by_name(data).values()} == {("import:altima/001",), ("import:civic/001",)}


def test_a_listing_that_holds_a_whole_class_is_questioned(data, tmp_path):
    folder = lay_out(tmp_path / "photos", [f"civic/car__{n}.jpg" for n in range(4)] + NAMES[:4])
    assert "--listing-from none" in note(bring_in(data, folder), "all 4 photos of civic are one listing, 'civic/car'")


def test_photos_without_any_listing_are_said_to_be_so(data, folder):
    assert "listings.csv" in note(bring_in(data, folder), "no photo has a listing")


@pytest.mark.parametrize(
    "content",
    [
        "\ufefffile;listing;city\r\ncivic/0.jpg;7;Zürich\r\n".encode(),
        b"sep=;\r\n" + "file;listing;city\r\ncivic/0.jpg;7;Zürich\r\n".encode(),
        "file|listing|city\ncivic/0.jpg|7|Zürich\n".encode("utf-16-le"),
        "file\tlisting\tcity\r\ncivic/0.jpg\t7\tZürich\r\n".encode("utf-16"),
        "file,listing,city\r\ncivic/0.jpg,7,Zürich\r\n".encode("cp1252"),
        "File, Listing ,CITY\ncivic/0.jpg,7,Zürich,,\n,,\n".encode(),
    ],
    ids=[
        "semicolons",
        "Excel's first line",
        "UTF-16 without its mark",
        "UTF-16 with tabs",
        "Windows-1252",
        "capitals, empty cells and rows",
    ],
)
def test_tables_of_spreadsheets_are_read(tmp_path, content):
    file = tmp_path / "listings.csv"
    file.write_bytes(content)
    assert read_rows(file, ("file", "listing"), ("city",)) == [
        {"file": "civic/0.jpg", "listing": "7", "city": "Zürich"}
    ]


def test_a_row_with_too_many_cells_is_named_with_its_line(tmp_path):
    file = tmp_path / "listings.csv"
    file.write_text("file,listing\ncivic/0.jpg,7\ncivic/1.jpg,7,Pune, India\n")
    with pytest.raises(ValueError, match="listings.csv, line 3: 4 cells where the first line has 2; .* double quotes"):
        read_rows(file, ("file", "listing"))


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    file = tmp_path / "listings.csv"
    file.write_text("file,listing,price,File\ncivic/0.jpg,7,1,civic/1.jpg\n")
    with pytest.raises(ValueError, match="listings.csv: its first line names file 2 times; keep one"):
        read_rows(file, ("file", "listing"))


def test_a_photo_moved_to_the_right_class_changes_its_label(data, folder):
    bring_in(data, folder)
    (folder / "civic/3.jpg").rename(folder / "altima/c3.jpg")
    report = bring_in(data, folder)
    assert "altima/c3.jpg (label civic -> altima)" in note(report, "present state replaces")
    photo = by_name(data)["altima/c3.jpg"]
    assert photo.labels == ("altima",) and len(read_photos(data)) == 8
    lines = (data / "raw/import/journal.jsonl").read_bytes()
    assert not [text for text in bring_in(data, folder).notes if "replaces" in text]
    assert (data / "raw/import/journal.jsonl").read_bytes() == lines


def test_a_corrected_listings_csv_replaces_the_old_listing(data, tmp_path):
    folder = lay_out(tmp_path / "photos", [f"civic/car__{n}.jpg" for n in range(4)] + NAMES[:4])
    bring_in(data, folder)
    (folder / "listings.csv").write_text(
        "file,listing\n" + "".join(f"civic/car__{n}.jpg,L{n // 2}\n" for n in range(4))
    )
    assert "civic/car__0.jpg (listing civic/car -> L0)" in note(bring_in(data, folder), "replaces")
    assert by_name(data)["civic/car__3.jpg"].listings == ("import:L1",)


def test_a_copy_in_another_folder_does_not_take_the_listing_away(data, tmp_path):
    first = lay_out(tmp_path / "first", ["civic/7__1.jpg", "altima/8__1.jpg"])
    second = tmp_path / "second"
    shutil.copytree(first, second)
    (second / "civic/7__1.jpg").rename(second / "civic/copy.jpg")
    bring_in(data, first)
    bring_in(data, second)
    photo = read_photos(data).query("label == 'civic'").iloc[0]
    assert photo["listings"] == ("import:civic/7",)


def test_a_deleted_photo_stays_until_it_is_asked_to_go(data, folder):
    bring_in(data, folder)
    gone = by_name(data)["civic/2.jpg"].sha256
    (folder / "civic/2.jpg").unlink()
    assert "(civic/2.jpg)" in note(bring_in(data, folder), "1 photos imported earlier are not in this folder")
    assert len(read_photos(data)) == 8 and read_removed(data) == set()
    note(bring_in(data, folder, replace_all=True), "1 photos that are no longer in this folder were taken out")
    assert len(read_photos(data)) == 7 and read_removed(data) == {gone}
    lay_out(folder, NAMES)
    bring_in(data, folder)
    assert len(read_photos(data)) == 8 and read_removed(data) == set()


def test_a_class_folder_that_was_emptied_is_one_of_this_folder(data, folder):
    bring_in(data, folder)
    for photo in (folder / "civic").iterdir():
        photo.unlink()
    note(bring_in(data, folder), "4 photos imported earlier are not in this folder")
    note(bring_in(data, folder, replace_all=True), "4 photos that are no longer in this folder were taken out")
    assert set(read_photos(data)["label"]) == {"altima"}


def test_photos_of_a_class_that_was_not_named_are_not_missing(data, tmp_path):
    folder = lay_out(tmp_path / "cars", [f"{part}/{name}" for part in ("train", "val", "test") for name in NAMES])
    bring_in(data, folder, ignore_split=True)
    bring_in(data, folder, ignore_split=True, replace_all=True, classes=["civic"])
    assert set(read_photos(data)["label"]) == {"altima", "civic"}


def test_a_stored_photo_that_was_emptied_is_repaired(data, folder):
    bring_in(data, folder)
    photo = data / read_photos(data)["path"][0]
    content = photo.read_bytes()
    photo.write_bytes(b"")
    bring_in(data, folder)
    assert photo.read_bytes() == content


def test_two_folders_never_become_one_class_and_any_script_is_a_name(data, tmp_path):
    folder = lay_out(tmp_path / "photos", ["丰田卡罗拉/0.jpg", "Toyota Камри/0.jpg", "Toyota Королла/0.jpg"])
    assert bring_in(data, folder).photos.index.tolist() == ["toyota-камри", "toyota-королла", "丰田卡罗拉"]
    assert slugify("स्विफ्ट डिज़ायर").count("-") == 1
    both = lay_out(tmp_path / "both", ["civic 2012+/0.jpg", "civic 2012-/0.jpg", "altima/0.jpg", "fit/0.jpg"])
    with pytest.raises(ValueError, match="'civic 2012\\+' and 'civic 2012-' would both become the class 'civic-2012'"):
        bring_in(data, both)
    assert len(bring_in(data, both, classes=["altima", "fit"]).photos) == 2


def test_hidden_and_system_folders_are_passed_over_and_empty_ones_are_named(data, folder):
    hidden = [".Trash-1000/0.jpg", "civic/@eaDir/0.jpg/thumb.jpg", "altima/.ipynb_checkpoints/0.jpg", "altima/._0.jpg"]
    lay_out(folder, [*hidden, "$RECYCLE.BIN/0.jpg", "@eaDir/0.jpg"], seed=50)
    (folder / "fit").mkdir()
    report = bring_in(data, folder)
    assert set(report.photos.index) == {"altima", "civic"} and report.photos["new"].sum() == 8
    note(report, "the class folder fit is empty")
    assert not is_system_name("civic") and is_system_name(".DS_Store") and is_system_name("Thumbs.db")


def test_linked_folders_are_followed_once_and_what_is_left_out_is_named(data, folder, tmp_path):
    lay_out(tmp_path / "disk2", ["5.jpg"], seed=70)
    (folder / "civic/batch2").symlink_to(tmp_path / "disk2")
    (folder / "civic/loop").symlink_to(folder / "civic")
    (folder / "civic/lost.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "readme.jpg").write_bytes(b"x")
    report = bring_in(data, folder)
    assert report.photos.loc["civic", "new"] == 5
    reasons = dict(report.refused.itertuples(index=False))
    assert reasons["civic/lost.jpg"] == "a link that leads nowhere"
    assert reasons["civic/loop"] == "a link to a folder that was read already"
    note(report, "1 files lie outside the class folders")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_folder_that_cannot_be_read_is_named(data, folder, monkeypatch):
    listed = type(folder).iterdir

    def refuse(path):
        if path.name == "civic":  # the tests may run as root, who reads all
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(type(folder), "iterdir", refuse)
    report = bring_in(data, folder)
    assert report.refused["file"].tolist() == ["civic/."]
    assert report.refused["reason"].iloc[0].startswith("cannot be read: Permission denied")


def test_a_published_split_is_kept_or_discarded_by_choice(data, tmp_path):
    folder = lay_out(tmp_path / "photos", [f"{part}/{name}" for part in ("train", "val") for name in NAMES])
    with pytest.raises(ValueError, match="train, val are parts of a split.*add what it lacks.*--ignore-split"):
        bring_in(data, folder)
    assert bring_in(data, folder, ignore_split=True).photos["new"].to_dict() == {"altima": 8, "civic": 8}


def test_unusable_photos_and_other_models_are_no_classes(data, folder, tmp_path):
    lay_out(folder, ["unusable/a.jpg"], seed=20)
    rejects = lay_out(tmp_path / "junk photos", ["dashboards/b.jpg"], seed=30)
    others = lay_out(tmp_path / "models", ["ford-mustang/c.jpg", "d.jpg"], seed=40)
    note(bring_in(data, folder), "unusable: taken as unusable photos")
    bring_in(data, None, rejects=rejects, others=others)
    photos = {name: ("".join(photo.labels), photo.kind) for name, photo in by_name(data).items()}
    assert photos["unusable/a.jpg"] == photos["junk photos/dashboards/b.jpg"] == ("", UNUSABLE)
    assert photos["models/ford-mustang/c.jpg"] == ("ford-mustang", OTHER_MODEL)
    assert photos["models/d.jpg"] == ("other-model", OTHER_MODEL)
    assert photos["civic/0.jpg"] == ("civic", "")


def test_a_folder_around_the_classes_and_an_archive_are_named(data, tmp_path):
    around = lay_out(tmp_path / "set", [f"images/{name}" for name in NAMES])
    assert "if they are the classes, import the folder images itself" in note(bring_in(data, around), "sub-folders")
    archive = shutil.make_archive(tmp_path / "photos", "zip", around)
    with pytest.raises(FileNotFoundError, match="unzip it first"):
        bring_in(data, archive)


def test_an_unknown_source_of_listings_is_refused_and_loses_none(data, folder):
    with pytest.raises(ValueError, match="listing_from 'foldr': choose one of auto, folder, name, none"):
        bring_in(data, folder, listing_from="foldr")
