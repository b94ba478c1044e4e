"""Folder import, journals, the table of photos, and forgetting."""

import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import time
import zipfile

import pytest
from generated_photos import encode, scene
from PIL import Image

from carspotter.photos import importing
from carspotter.photos.images import load_images
from carspotter.photos.importing import import_folder
from carspotter.photos.journal import read_journal
from carspotter.photos.table import forget, read_forgotten, read_photos, slugify


def write(folder, name, content):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    """Two classes of two listings with two photos each."""
    folder = tmp_path / "photos"
    for number, label in enumerate(("swift", "wagonr")):
        for listing in range(2):
            for photo in range(2):
                seed = number * 100 + listing * 10 + photo
                write(folder, f"{label}/car-{label}{listing}__{photo:02}.jpg", encode(scene(seed, (64, 48))))
    return folder


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def bring_in(data, folder, **options):
    return import_folder(data, folder, show_progress=False, **options)


def journal_of(data, site="import"):
    return list(read_journal(data / "raw" / site / "journal.jsonl"))


def test_import_keeps_the_original_bytes_and_fills_the_journal(data, folder):
    report = bring_in(data, folder)
    assert report.photos["new"].to_dict() == {"swift": 4, "wagonr": 4} and report.refused.empty
    photos = read_photos(data)
    assert len(photos) == 8 and photos["sha256"].is_monotonic_increasing
    for photo in photos.itertuples():
        assert hashlib.sha256((data / photo.path).read_bytes()).hexdigest() == photo.sha256
        assert photo.path == f"raw/import/{photo.sha256[:2]}/{photo.sha256}.jpg"
        assert (photo.width, photo.height, photo.sites) == (64, 48, ("import",))
    line = next(line for line in journal_of(data) if line["url"] == "import:swift/car-swift0__00.jpg")
    assert (line["status"], line["label"], line["listing"]) == ("fetched", "swift", "swift/car-swift0")
    assert str(folder) not in (data / "raw/import/journal.jsonl").read_text()


def test_listing_ids_come_from_names_with_a_double_underscore(data, folder):
    write(folder, "swift/holiday__beach.jpg", encode(scene(900, (64, 48))))
    write(folder, "swift/plain.jpg", encode(scene(901, (64, 48))))
    bring_in(data, folder)
    listings = read_photos(data)["listings"]
    assert listings.map(len).value_counts().to_dict() == {1: 8, 0: 2}
    assert listings.explode().value_counts()["import:swift/car-swift0"] == 2


def test_listings_csv_gives_listing_and_city_also_to_what_was_imported_before(data, folder):
    sha256 = write(folder, "swift/plain.jpg", encode(scene(901, (64, 48))))
    bring_in(data, folder)
    (folder / "listings.csv").write_text("file,listing,city\nswift/plain.jpg,77,Pune\n")
    bring_in(data, folder)
    photo = read_photos(data).set_index("sha256").loc[sha256]
    assert (photo["listings"], photo["city"]) == (("import:77",), "Pune")


def test_listings_csv_without_its_columns_is_refused(data, folder):
    (folder / "listings.csv").write_text("name,id\n")
    with pytest.raises(ValueError, match="listings.csv: needs the columns file and listing"):
        bring_in(data, folder)


def test_importing_again_adds_nothing(data, folder):
    write(folder, "swift/bad.jpg", b"")
    bring_in(data, folder)
    before = (data / "raw/import/journal.jsonl").read_bytes()
    report = bring_in(data, folder)
    assert (data / "raw/import/journal.jsonl").read_bytes() == before
    assert report.photos["known"].sum() == 8 and report.photos["new"].sum() == 0
    assert report.refused["reason"].tolist() == ["the file is empty"]


def test_changed_bytes_under_a_known_name_are_a_new_photo(data, folder):
    bring_in(data, folder)
    write(folder, "swift/car-swift0__00.jpg", encode(scene(500, (64, 48))))
    assert bring_in(data, folder).photos["new"].sum() == 1
    assert len(read_photos(data)) == 9


def test_bad_files_are_named_with_their_reasons_and_stop_nothing(data, folder):
    photo = scene(7, (64, 48))
    bad = {
        "swift/empty.jpg": b"",
        "swift/cut.jpg": encode(photo)[:500],
        "swift/page.jpg": b"<html>404</html>",
        "swift/drawing.svg": b"<svg></svg>",
        "swift/notes.txt": b"nice car",
        "swift/bomb.png": encode(Image.new("1", (9000, 9000)), "PNG"),
    }
    good = {
        "swift/deep/er/photo.png": encode(photo, "PNG"),
        "swift/cmyk.jpg": encode(photo.convert("CMYK")),
        "swift/palette.png": encode(photo.quantize(16), "PNG"),
        "swift/animated.gif": encode(photo, "GIF", save_all=True, append_images=[scene(8, (64, 48))]),
        "swift/misnamed.txt.jpg": encode(photo, "WEBP"),
    }
    for name, content in (bad | good).items():
        write(folder, name, content)
    write(folder, "swift/.DS_Store", b"x")
    report = bring_in(data, folder)
    assert set(report.refused["file"]) == set(bad)
    for name in bad:
        assert name in str(report)
    refused = [line for line in journal_of(data) if line["status"] == "refused"]
    assert len(refused) == len(bad) and all(line["reason"] and line["sha256"] is None for line in refused)
    assert sorted(path.rpartition(".")[2] for path in read_photos(data)["path"]) == ["gif"] + ["jpg"] * 9 + [
        "png",
        "png",
        "webp",
    ]


def test_the_same_bytes_under_two_labels_are_one_photo_with_two_labels(data, folder):
    shutil.copy(folder / "swift/car-swift0__00.jpg", folder / "wagonr/car-wagonr9__00.jpg")
    bring_in(data, folder)
    photos = read_photos(data)
    assert len(photos) == 8
    both = photos[photos["labels"].map(len) == 2].iloc[0]
    assert both["labels"] == ("swift", "wagonr")
    assert both["listings"] == ("import:swift/car-swift0", "import:wagonr/car-wagonr9")


def test_only_the_wanted_classes_are_imported_and_labels_are_slugs(data, folder):
    (folder / "swift").rename(folder / "Maruti Swift (2019)")
    report = bring_in(data, folder, classes=["Maruti Swift (2019)"])
    assert report.photos.index.tolist() == ["maruti-swift-2019"]
    assert set(read_photos(data)["label"]) == {"maruti-swift-2019"}
    assert slugify("Škoda Rapid") == "skoda-rapid"


def test_two_sites_make_one_table(data, folder):
    bring_in(data, folder)
    shutil.copytree(data / "raw/import", data / "raw/other")
    photos = read_photos(data)
    assert len(photos) == 8 and set(photos["sites"]) == {("import", "other")}
    assert photos["listings"].map(len).tolist() == [2] * 8


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: shutil.rmtree(folder), FileNotFoundError, "no such folder"),
        (lambda folder: [shutil.rmtree(child) for child in folder.iterdir()], ValueError, "no class folders"),
        (lambda folder: (folder / "???").mkdir(), ValueError, "no label can be made"),
        (
            lambda folder: [child.rename(folder / name) for child, name in zip(folder.iterdir(), ("train", "test"))],  # noqa: B905
            ValueError,
            "add what it lacks of train, validation and test.* --ignore-split",
        ),
    ],
    ids=["missing folder", "no class folders", "name without letters", "already split"],
)
def test_a_folder_that_cannot_be_imported_says_why(data, folder, spoil, error, message):
    spoil(folder)
    with pytest.raises(error, match=message):
        bring_in(data, folder)
    assert not data.exists()


def test_an_unknown_class_is_named_with_those_that_exist(data, folder):
    with pytest.raises(ValueError, match="no class 'alto'; there are swift, wagonr"):
        bring_in(data, folder, classes=["alto"])


def test_no_photos_at_all_says_what_to_do(data):
    with pytest.raises(FileNotFoundError, match="scrape a site or import a folder"):
        read_photos(data)


def slow_import(data, folder):
    plain = importing._store
    importing._store = lambda *arguments: (time.sleep(0.03), plain(*arguments))[1]
    import_folder(data, folder, show_progress=False)


def test_an_import_that_was_killed_goes_on_where_it_stopped(data, folder):
    process = multiprocessing.get_context("fork").Process(target=slow_import, args=(data, folder))
    process.start()
    journal = data / "raw/import/journal.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = journal.read_bytes().count(b"\n")
    assert 2 <= done < 8
    with open(journal, "ab") as lines:
        lines.write(b'{"url": "import:swift/to')
    assert len(read_photos(data)) == done
    report = bring_in(data, folder)
    assert report.photos["known"].sum() == done and report.photos["new"].sum() == 8 - done
    assert len(journal_of(data)) == 8 and len(read_photos(data)) == 8


def test_damage_in_the_middle_of_a_journal_is_named(data, folder):
    bring_in(data, folder)
    journal = data / "raw/import/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:3], "oops\n", *lines[3:]]))
    with pytest.raises(ValueError, match="journal.jsonl, line 4"):
        read_photos(data)


def test_missing_bytes_are_named_and_an_import_heals_them(data, folder):
    bring_in(data, folder)
    photo = read_photos(data).iloc[3]
    (data / photo["path"]).unlink()
    with pytest.raises(FileNotFoundError, match=photo["sha256"]):
        read_photos(data)
    bring_in(data, folder)
    assert len(read_photos(data)) == 8


def test_forget_takes_the_bytes_everywhere_and_leaves_a_tombstone(data, folder):
    bring_in(data, folder)
    shutil.copytree(data / "raw/import", data / "raw/other")
    photos = read_photos(data)
    load_images(data, photos[:4], 8, show_progress=False)
    load_images(data, photos[4:], 8, show_progress=False)
    sha256 = photos["sha256"][2]
    report = data / "reports/audit-photos/index.html"
    report.parent.mkdir(parents=True)
    report.write_bytes(b"<img>")
    forget(data, sha256)

    assert not report.exists()
    assert not [file for file in data.rglob("*") if sha256 in file.name]
    assert len(list((data / "images").glob("*.npy"))) == 1, "only the array that held the photo goes"
    assert sha256 not in set(read_photos(data)["sha256"]) and len(read_photos(data)) == 7
    assert read_forgotten(data) == {sha256}
    for site in ("import", "other"):
        last = journal_of(data, site)[-1]
        assert last["status"] == "forgotten" and last["sha256"] == sha256 and last["url"].startswith("import:")
    report = bring_in(data, folder)
    assert report.refused["reason"].str.contains("forgotten").tolist() == [True]
    assert len(read_photos(data)) == 7 and not list(data.rglob(f"{sha256}.*"))


def test_forget_takes_a_download_that_holds_the_photo(data, folder):
    bring_in(data, folder)
    photo = read_photos(data).iloc[0]
    (data / "kaggle").mkdir()
    for name, content in (("with", (data / photo["path"]).read_bytes()), ("without", b"another")):
        with zipfile.ZipFile(data / f"kaggle/{name}.zip", "w") as archive:
            archive.writestr("train/swift/1.jpg", content)
    (data / "kaggle/cut.zip").write_bytes(b"PK")
    deleted = forget(data, photo["sha256"])
    assert {"kaggle/with.zip", "kaggle/cut.zip"} < set(deleted)
    assert [file.name for file in (data / "kaggle").iterdir()] == ["without.zip"]


def test_forget_does_not_write_beside_a_crawl(data, folder):
    bring_in(data, folder)
    sha256 = read_photos(data)["sha256"][0]
    with open(data / "raw/import/.lock", "a") as crawl:
        fcntl.flock(crawl, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="a crawl or an import is writing here"):
            forget(data, sha256)
    assert len(read_photos(data)) == 8 and read_forgotten(data) == set()


def test_forget_twice_and_forget_nonsense(data, folder):
    bring_in(data, folder)
    sha256 = read_photos(data)["sha256"][0]
    forget(data, sha256)
    lines = len(journal_of(data))
    assert forget(data, sha256) == [] and len(journal_of(data)) == lines
    with pytest.raises(ValueError, match="no journal"):
        forget(data, "0" * 64)
    with pytest.raises(ValueError, match="64 hexadecimal"):
        forget(data, "../../etc")


def test_a_file_name_that_is_not_utf8_is_imported_like_any(data, folder):
    photo = next(folder.rglob("*.jpg"))
    os.rename(photo, os.fsencode(photo.parent) + b"/caf\xe9.jpg")
    bring_in(data, folder)
    assert len(read_photos(data)) == 8
