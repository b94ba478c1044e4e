"""The archive of the sample study: the same bytes each time, unpacked as if it had been scraped, served as it is."""

from __future__ import annotations

import csv
import hashlib
import shutil
import urllib.request
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from carspotter.curation.reviews import REASONS, read_reviews
from carspotter.paths import Study
from carspotter.photos import archive as unpacking
from carspotter.photos.journal import read_journal
from carspotter.photos.splitting import split_photos
from carspotter.photos.table import read_photos
from carspotter_sample import archive as packing
from carspotter_sample.archive import CAPTION, CELL, COLUMNS, ROWS, write_contact_sheet
from carspotter_sample.listings import JUNK, write_photos
from carspotter_sample.second_site import SecondSite
from carspotter_sample.site import ARCHIVE, SampleSite

pytestmark = pytest.mark.slow  # the photos are drawn first

SMALL = {
    "sample": {"listings": 12, "seed": 3},
    "hyderabad": {"listings": 2, "seed": 4, "cities": ("hyderabad",)},
    "others": {"listings": 2, "seed": 5, "models": ("alto", "baleno")},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for name, order in SMALL.items():
        write_photos(folder / name, longest_side=260, processes=1, **order)
    return folder


@pytest.fixture(scope="module")
def archive(drawn, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "ORDERS", SMALL)
        return packing.write_archive(tmp_path_factory.mktemp("home") / "sample_2.zip", drawn)


@pytest.fixture
def study(archive, tmp_path, monkeypatch) -> Study:
    """The study in a home that has the archive, before its first use."""
    (tmp_path / "data").mkdir()
    shutil.copy(archive, tmp_path / "data")
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path))
    return Study.open("sample_2")


def truth_of(archive: Path) -> pd.DataFrame:
    with zipfile.ZipFile(archive) as opened:
        return pd.read_csv(opened.open("truth.csv"), keep_default_na=False)


def test_the_same_photos_make_the_same_bytes(archive, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "ORDERS", SMALL)
    assert packing.write_archive(tmp_path / "again.zip", drawn).read_bytes() == archive.read_bytes()


def test_the_truth_describes_the_photos_as_packed(archive, drawn):
    truth = truth_of(archive)
    with zipfile.ZipFile(archive) as opened:
        assert set(truth["file"]) == {name for name in opened.namelist() if name.endswith(".webp")}
        for row in truth.itertuples():
            assert hashlib.sha256(opened.read(row.file)).hexdigest() == row.sha256
    assert truth["sha256"].is_unique
    assert truth[["width", "height"]].min(axis=1).max() == packing.KEPT_SIDE >= 150  # what models see
    assert set(truth.loc[truth["copy"] != "", "duplicate_of"]) <= set(truth["file"])
    with open(drawn / "sample" / "truth.csv", encoding="utf-8") as file:
        drawn_kinds = [row["kind"] for row in csv.DictReader(file)]
    assert truth.loc[truth["file"].str.startswith("sample/"), "kind"].tolist() == drawn_kinds


def test_every_kind_of_junk_has_a_reason_that_reviewers_give():
    assert set(JUNK.values()) <= set(REASONS)


def test_the_first_use_of_the_study_unpacks_what_the_sites_let_a_robot_collect(study, archive):
    assert study.data.name == "sample_2"
    photos = read_photos(study.data)
    for site_class in (SampleSite, SecondSite):
        site = site_class(zipfile.Path(archive) / site_class.name)
        site._server.server_close()
        here = photos[photos["site"] == site.name]
        assert set(here["sha256"]) == site.allowed_photos()
        lines = list(read_journal(study.raw / site.name / "journal.jsonl"))
        refused = {line["url"].split("/", 3)[3] for line in lines if line["status"] == "refused"}
        assert refused == {path[1:] for path in site.files if path.startswith(site.private)}
    for row in photos.itertuples():
        assert hashlib.sha256((study.data / row.path).read_bytes()).hexdigest() == row.sha256
    truth = truth_of(archive).set_index("sha256")
    assert (photos["label"] == truth.loc[photos["sha256"], "file"].str.split("/").str[1].to_numpy()).all()
    rejected = set(read_reviews(study.data)["sha256"])
    assert rejected == set(truth.index[truth["kind"] != "car"])


def test_a_learner_gets_the_sealed_labels_of_the_study_s_split(study):
    photos = read_photos(study.data)
    shutil.rmtree(study.data)
    curation = photos[["sha256", "label"]].assign(verdict="keep", reason="", score=0.0, duplicate_cluster="", car="")
    splits = split_photos(photos, curation, shifted_sites=["hyderabad"])
    closed = splits["split"].isin(("test", "shifted"))
    study.folder.mkdir(parents=True)
    splits.assign(label=splits["label"].where(~closed, "")).to_csv(study.splits, index=False)
    read_photos(study.data)
    sealed = pd.read_csv(study.sealed)
    wanted = splits.loc[closed, ["sha256", "label"]].sort_values("sha256", ignore_index=True)
    assert len(wanted) and sealed.equals(wanted)


def test_an_unpacking_that_was_killed_starts_again(study, monkeypatch):
    write, written = unpacking._write, []

    def killed(path, content):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(unpacking, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        read_photos(study.data)
    monkeypatch.setattr(unpacking, "_write", write)
    photos = read_photos(study.data)
    assert len(photos) > 50 and all((study.data / path).exists() for path in photos["path"])


def test_kaggle_s_unzipped_data_set_is_found_and_unpacked(archive, tmp_path, monkeypatch):
    mounted = tmp_path / "input" / "datasets" / "somebody" / "carspotter-sample-2"
    (tmp_path / "working").mkdir()
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(mounted)
    monkeypatch.delenv("CARSPOTTER_HOME", raising=False)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.chdir(tmp_path / "working")
    study = Study.open("sample_2")
    assert study.data == tmp_path / "working" / "data" / "sample_2"
    assert len(read_photos(study.data)) > 50


def test_a_study_without_an_archive_shares_the_data_folder(study):
    assert Study.open("swift_wagonr").data == study.data.parent


def test_the_site_serves_the_archive_as_it_is(archive):
    with SampleSite(zipfile.Path(archive) / "sample", listings=3) as site:
        assert len(site.listings) == 3
        path = next(path for path in site.files if not path.startswith(site.private))
        with urllib.request.urlopen(site.base_url + path, timeout=10) as answer:
            assert answer.headers["Content-Type"] == "image/webp"
            assert answer.read() == site.files[path].read_bytes()
        with urllib.request.urlopen(site.base_url + site.small_path(path), timeout=10) as answer:
            assert answer.read()[:2] == b"\xff\xd8"


@pytest.mark.skipif(not ARCHIVE.exists(), reason="data/sample_2.zip is missing")
def test_the_archive_in_git_is_small_and_fills_the_contact_sheet(tmp_path):
    assert ARCHIVE.stat().st_size <= 30_000_000
    from PIL import Image

    sheet = write_contact_sheet(tmp_path / "sheet.jpg")
    with Image.open(sheet) as image:
        grey = image.convert("L")
        for row in range(len(ROWS)):
            for column in range(COLUMNS):
                top, left = row * (CELL[1] + CAPTION) + CAPTION, column * CELL[0]
                low, high = grey.crop((left, top, left + CELL[0], top + CELL[1])).getextrema()
                assert high - low > 60, (row, column)
    assert sheet.stat().st_size < 400_000
