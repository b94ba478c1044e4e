"""Kaggle: the real client against a service on loopback that also fails; the published split; what a push sends."""

import hashlib
import io
import json
import random
import zipfile

import pytest
from generated_photos import encode, published_photos, scene
from kaggle_stub import KaggleStub
from notebook_cells import BOOTSTRAP

from carspotter import kaggle
from carspotter.curation import curate as curation
from carspotter.paths import Study
from carspotter.photos import splitting, verification
from carspotter.photos.journal import read_journal
from carspotter.photos.table import read_photos
from carspotter_project import kaggle_push

PER_CLASS = {"train": 8, "validation": 3, "test": 3}


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        # the client writes by the megabyte; less than one that arrives before a cut is lost
        archive.writestr("more.bin", random.Random(0).randbytes(4_000_000))
    return stream.getvalue()


@pytest.fixture(scope="module")
def files():
    return published_photos(PER_CLASS)


@pytest.fixture(scope="module")
def archive(files):
    return zipped(files)


@pytest.fixture
def stub(archive, tmp_path, monkeypatch):
    """The service, and a home without credentials; the real client is led to it."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".kaggle").mkdir(parents=True)
    with KaggleStub() as stub:
        for name, value in stub.environment.items():
            monkeypatch.setenv(name, value)
        stub.files[kaggle.DATASET] = archive
        yield stub


@pytest.fixture
def study(tmp_path):
    return Study("swift_wagonr", tmp_path / "data", tmp_path / "results")


def lay_out(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def fetch(study, **options):
    return kaggle.fetch(study, show_progress=False, **options)


def test_a_fetch_takes_over_the_published_split(stub, study, files):
    report = fetch(study)
    splits = splitting.read_splits(study)
    published = {hashlib.sha256(content).hexdigest(): name.split("/")[1] for name, content in files.items()}
    assert dict(zip(splits["sha256"], splits["split"], strict=True)) == published
    assert set(splits.loc[splits["split"] == "test", "label"]) == {""}, "labels of test photos are sealed"
    assert verification.verify_split(study, show_progress=False).ok
    assert report.crossing.empty and report.excluded == 0 and len(report.refused) == 0
    lines = [line for part in PER_CLASS for line in read_journal(study.raw / f"kaggle-{part}" / "journal.jsonl")]
    assert {line["sha256"] for line in lines} == set(published), "every photo's checksum is in our journal"

    before = study.splits.read_bytes()
    again = fetch(study)
    assert study.splits.read_bytes() == before and not again.taken_over
    assert stub.ranges == [None], "what is here is not downloaded again"


def test_the_notebooks_that_curate_and_split_leave_the_published_split_as_it_is(study, files, tmp_path):
    fetch(study, source=lay_out(files, tmp_path / "unzipped"))
    published = study.splits.read_bytes()
    curation.curate_study(study, show_progress=False)
    splitting.split_study(study, classes=("swift", "wagonr"))
    assert study.splits.read_bytes() == published


def test_a_file_of_the_users_own_is_not_to_be_deleted(study, tmp_path):
    (tmp_path / "notes.txt").write_text("my notes")
    with pytest.raises(
        ValueError, match=r"notes\.txt: not a whole zip file .*; name a zip file or an unzipped folder$"
    ):
        fetch(study, source=tmp_path / "notes.txt")


def test_copies_of_a_shot_stay_in_the_most_examined_part_alone(study, files, tmp_path):
    test_photo, validation_photo = files["data/test/swift/0.jpg"], files["data/validation/wagonr/0.jpg"]
    shot = scene(900, (200, 150))
    more = {
        "data/train/swift/same.jpg": test_photo,
        "data/validation/wagonr/shot.jpg": encode(shot),
        "data/train/wagonr/recoded.jpg": encode(shot, quality=50),
        "data/train/swift/conflict.jpg": validation_photo,
    }
    folder = lay_out(files | more, tmp_path / "unzipped")
    report = fetch(study, source=folder)
    side = splitting.read_splits(study).set_index("sha256")["split"]
    sha = {name: hashlib.sha256(content).hexdigest() for name, content in (files | more).items()}
    assert side[sha["data/train/swift/same.jpg"]] == "test"
    assert side[sha["data/validation/wagonr/shot.jpg"]] == "validation"
    assert side[sha["data/train/wagonr/recoded.jpg"]] == "excluded"
    assert side[sha["data/train/swift/conflict.jpg"]] == "excluded", "one photo under two names teaches nothing"
    assert verification.verify_split(study, show_progress=False).ok
    assert set(report.crossing["sha256"]) == {sha[name] for name in more} | {sha["data/train/wagonr/recoded.jpg"]}
    assert "4 photos, 2 of them with the same bytes, 1 clusters" in str(report)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"DownloadDataset": [401]}, "KAGGLE_API_TOKEN"),
        ({"GetDatasetMetadata": [403]}, "403.*terms"),
        ({"GetDatasetMetadata": [404]}, "404"),
        ({"GetDatasetMetadata": [429]}, "429.*patience|patience.*429"),
        ({"DownloadDataset": [503]}, "problem of its own .503"),
        ({"GetDatasetMetadata": ["cut"]}, "no way to Kaggle"),
    ],
    ids=["401", "403", "404", "429", "503", "cut"],
)
def test_a_refusal_names_the_cause_the_web_page_and_the_folder(stub, study, faults, words):
    stub.faults.update(faults)
    with pytest.raises(kaggle.KaggleRefused, match=words) as refusal:
        fetch(study)
    assert "https://www.kaggle.com/datasets/ajaykgp12/cars-wagonr-swift" in str(refusal.value)
    assert "kaggle fetch --from FOLDER" in str(refusal.value)
    assert not any(stub.faults.values())


def test_a_download_that_was_cut_goes_on_where_it_was(stub, study, archive):
    stub.faults["storage"] = ["cut"]
    fetch(study)
    first, second = stub.ranges
    assert first is None and int(second.removeprefix("bytes=").rstrip("-")) > 1_000_000
    assert (study.data / "kaggle" / "cars-wagonr-swift.zip").read_bytes() == archive


def test_a_fetch_is_bounded_in_time(stub, study, monkeypatch):
    stub.faults["GetDatasetMetadata"] = ["hang"]
    with pytest.raises(kaggle.KaggleRefused, match="the time given is over.*run the same command again"):
        fetch(study, minutes=1 / 60)


@pytest.mark.parametrize("kind", ["token", "access_token", "kaggle.json", "none", "wrong token"])
def test_every_kind_of_credentials_is_understood(stub, study, tmp_path, monkeypatch, kind):
    stub.private.add(kaggle.DATASET)
    folder = tmp_path / "home" / ".kaggle"
    if kind in ("token", "wrong token"):
        monkeypatch.setenv("KAGGLE_API_TOKEN", "good-token" if kind == "token" else "bad-token")
    elif kind == "access_token":
        (folder / "access_token").write_text("good-token\n")
    elif kind == "kaggle.json":
        (folder / "kaggle.json").write_text('{"username": "tester", "key": "good-key"}')
        (folder / "kaggle.json").chmod(0o600)
    if kind in ("none", "wrong token"):
        with pytest.raises(kaggle.KaggleRefused, match="403"):
            fetch(study)
    else:
        fetch(study)
        assert len(read_photos(study.data)) == 28


def test_a_damaged_zip_and_another_layout_are_named(study, tmp_path, files):
    (tmp_path / "damaged.zip").write_bytes(b"PK\3\4 and nothing more")
    with pytest.raises(ValueError, match=r"damaged.zip: not a whole zip file .*; name a zip file"):
        fetch(study, source=tmp_path / "damaged.zip")
    lay_out({"swift/1.jpg": files["data/test/swift/0.jpg"]}, tmp_path / "flat")
    with pytest.raises(ValueError, match=r"flat: no folders train, validation and test"):
        fetch(study, source=tmp_path / "flat")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fetch(study, source=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'\.\./x': Kaggle names them owner/name"):
        fetch(study, dataset="../x")


def test_photos_of_the_same_classes_from_elsewhere_are_not_mixed_in(study, tmp_path, files):
    lay_out({"swift/9.jpg": encode(scene(77))}, tmp_path / "own")
    kaggle.import_folder(study.data, tmp_path / "own", show_progress=False)
    with pytest.raises(ValueError, match="1 photos of swift from import.*--data"):
        fetch(study, source=lay_out(files, tmp_path / "unzipped"))


def sign_in(monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good-token")


@pytest.fixture
def built(monkeypatch):
    """No wheel is built here: that is for test_kaggle_mounts, which installs it."""

    def build(folder):
        folder.mkdir(parents=True)
        (folder / "carspotter-0.1.0-py3-none-any.whl").write_bytes(b"a wheel")
        return folder / "carspotter-0.1.0-py3-none-any.whl"

    monkeypatch.setattr(kaggle_push, "build_wheel", build)


@pytest.mark.slow
def test_a_push_sends_the_wheel_and_a_notebook_that_the_client_finds_no_fault_with(
    stub, tmp_path, monkeypatch, built, capsys
):
    sign_in(monkeypatch)
    kaggle_push.push(["04"], out=tmp_path / "push")
    (created,) = stub.datasets["tester/carspotter-wheel"]
    assert created["service"] == "CreateDataset" and created["isPrivate"]
    assert b"a wheel" in stub.uploads.values() and len(created["files"]) == 2, "the wheel and the recorded results"
    sent = stub.notebooks["tester/carspotter-04-baseline-cnn"]
    assert sent["newTitle"] == "Carspotter 04 baseline cnn"
    assert sent["enableGpu"] is True and sent["enableInternet"] is False and sent["isPrivate"] is True
    assert sent["machineShape"] == "NvidiaTeslaT4"
    assert sent["datasetDataSources"] == ["ajaykgp12/cars-wagonr-swift", "tester/carspotter-wheel"]
    cells = json.loads(sent["text"])["cells"]
    assert [cell["source"] for cell in cells if cell["cell_type"] == "code"][1] == BOOTSTRAP
    assert "carspotter-04-baseline-cnn" in capsys.readouterr().out

    kaggle_push.push(["04"], out=tmp_path / "push", internet=True)
    assert stub.datasets["tester/carspotter-wheel"][-1]["service"] == "CreateDatasetVersion", "a second push updates it"
    assert stub.notebooks["tester/carspotter-04-baseline-cnn"]["enableInternet"] is True


@pytest.mark.parametrize("path", kaggle_push._find_notebooks(None), ids=lambda path: path.stem)
def test_every_notebook_gets_metadata_whose_title_is_its_id(tmp_path, path):
    slugify = pytest.importorskip("slugify").slugify  # the one that Kaggle's client holds the title against
    metadata = kaggle_push.write_notebook(path, tmp_path, "tester", False, ["a/b"])
    assert metadata["id"] == f"tester/{slugify(metadata['title'])}"
    assert 5 <= len(metadata["title"]) <= 50
    assert 'outputs": [\n' not in (tmp_path / path.name).read_text()


def test_a_dry_run_sends_nothing(stub, tmp_path, built):
    with pytest.raises(ValueError, match="--user NAME"):
        kaggle_push.push(["04"], dry_run=True, out=tmp_path / "push")
    (folder,) = kaggle_push.push(["04"], user="somebody", dry_run=True, out=tmp_path / "push")
    assert stub.calls == []
    assert json.loads((folder / "kernel-metadata.json").read_text())["id"] == "somebody/carspotter-04-baseline-cnn"


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"SaveKernel": [401]}, "KAGGLE_API_TOKEN"),
        ({"SaveKernel": [403]}, "403"),
        ({"SaveKernel": [500]}, "500"),
        ({"SaveKernel": ["cut"]}, "no way to Kaggle"),
        ({"upload": [403]}, "Upload unsuccessful"),
        ({"GetDatasetStatus": [500]}, "500"),
        ({"CreateDataset": [500]}, "500"),
    ],
    ids=["401", "403", "500", "cut", "upload refused", "status 500", "create 500"],
)
def test_a_push_that_fails_says_so(stub, tmp_path, monkeypatch, built, faults, words):
    sign_in(monkeypatch)
    stub.faults.update(faults)
    with pytest.raises(kaggle.KaggleRefused, match=words):
        kaggle_push.push(["04"], out=tmp_path / "push")
    assert stub.notebooks == {} or "SaveKernel" in faults


def test_a_notebook_whose_data_set_is_not_there_is_no_success(stub, tmp_path, monkeypatch, built):
    sign_in(monkeypatch)
    monkeypatch.setattr(kaggle_push, "DATASET", "nobody/nothing")
    with pytest.raises(kaggle.KaggleRefused, match="not valid dataset sources.*nobody/nothing"):
        kaggle_push.push(["04"], out=tmp_path / "push")
