"""`carspotter audit`: what is planted in a folder of any layout is found, and the folder stays as it is."""

import csv
import shutil
import subprocess

import pytest
from generated_photos import encode, scene

from carspotter import cli
from carspotter.curation.audit import audit_folder


@pytest.fixture
def folder(tmp_path):
    """Photos of two classes in train and test, each of another scene, and a file that is no photo."""
    seeds = iter(range(100))
    for part, count in (("train", 6), ("test", 3)):
        for label in ("civic", "altima"):
            for number in range(count):
                write(tmp_path / "cars" / part / label / f"{number}.jpg", scene(next(seeds)))
    (tmp_path / "cars" / "README.txt").write_text("my photos")
    return tmp_path / "cars"


def write(path, image, quality=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, quality=quality))


def found(folder, out, **options):
    """Audit a folder; return {kind: files}, and the audit."""
    audit = audit_folder(folder, out, show_progress=False, **options)
    return audit.findings.groupby("kind")["file"].agg(set).to_dict(), audit


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sound_folder_has_no_findings_and_is_not_written_to(folder, tmp_path):
    before = contents(folder)
    kinds, audit = found(folder, tmp_path / "out")
    assert kinds == {}
    assert "aside (files: 0)" in str(audit)
    assert audit.photos.loc["civic"].to_dict() == {"test": 3, "train": 6}
    assert audit.notes == ("1 files are no photos by name and content, and were left alone",)
    assert contents(folder) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["findings.csv", "fix.sh", "index.html"]


def test_damage_copies_leaks_and_contradicting_labels_are_found(folder, tmp_path):
    train, test = folder / "train", folder / "test"
    whole = (train / "civic" / "0.jpg").read_bytes()
    (train / "civic" / "half.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    (test / "altima" / "empty.png").write_bytes(b"")
    write(train / "civic" / "smaller.jpg", scene(1).resize((240, 180)))  # a copy of train/civic/1.jpg
    shutil.copy(test / "civic" / "0.jpg", train / "civic" / "leaked.jpg")
    write(train / "altima" / "contradicts.jpg", scene(2), quality=70)  # train/civic/2.jpg
    kinds, audit = found(folder, tmp_path / "out")
    assert kinds == {
        "unreadable": {"train/civic/half.jpg", "test/altima/empty.png"},
        "copy": {"train/civic/smaller.jpg"},
        "leak": {"train/civic/leaked.jpg"},
        "two labels": {"train/altima/contradicts.jpg", "train/civic/2.jpg"},
    }
    reasons = audit.findings.set_index("file")["reason"]
    assert reasons["train/civic/leaked.jpg"] == "the same bytes as test/civic/0.jpg"
    assert "pixels are missing" in reasons["train/civic/half.jpg"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<figure>") == 2 + 2 * 2 + 2  # two damaged, two beside the file that stays, two contradictions
    assert "http" not in page, "the page must need no other file"
    with open(tmp_path / "out" / "findings.csv", newline="") as table:
        assert {row["file"] for row in csv.DictReader(table)} == set().union(*kinds.values())


def test_the_script_moves_what_is_certain_aside_and_leaves_doubts(folder, tmp_path):
    odd = "train/civic/it's $HOME; `ls`.jpg"
    write(folder / odd, scene(1), quality=60)
    write(folder / "train" / "altima" / "contradicts.jpg", scene(2), quality=70)
    shutil.copy(folder / odd, folder / "train" / "civic" / "line\nbreak.jpg")
    _, audit = found(folder, tmp_path / "out")
    assert "what is certain aside (files: 1): sh" in str(audit)
    for _ in range(2):  # again: what has moved already is no error
        subprocess.run(["sh", tmp_path / "out" / "fix.sh"], check=True)
    assert not (folder / odd).exists()
    assert (tmp_path / "out" / "removed" / odd).exists()
    assert (folder / "train" / "altima" / "contradicts.jpg").exists()
    assert (folder / "train" / "civic" / "line\nbreak.jpg").exists()
    assert found(folder, tmp_path / "again")[0].keys() == {"copy", "two labels"}


def test_one_car_on_two_sides_or_under_two_labels_is_found_by_its_listing(folder, tmp_path):
    rows = ["file,listing", "train/civic/0.jpg,a", "test/civic/0.jpg,a", "train/civic/1.jpg,b", "train/altima/1.jpg,b"]
    (folder / "listings.csv").write_text("\n".join(rows))
    kinds, audit = found(folder, tmp_path / "out")
    assert kinds == {
        "car on two sides": {"train/civic/0.jpg", "test/civic/0.jpg"},
        "car under two labels": {"train/civic/1.jpg", "train/altima/1.jpg"},
    }
    assert "listing a, in test, train" in set(audit.findings["reason"])


def test_a_part_alone_is_not_taken_for_a_class(folder, tmp_path):
    shutil.rmtree(folder / "test")
    for label in ("civic", "altima"):
        for photo in list((folder / "train" / label).iterdir()):
            (photo.parent / f"car{photo.stem}").mkdir()
            photo.rename(photo.parent / f"car{photo.stem}" / photo.name)
    _, audit = found(folder, tmp_path / "out of it")
    assert list(audit.photos.columns) == ["train"]
    assert "sub-folders were taken as one car each" in str(audit) and "import the folder" not in str(audit)
    assert str(audit).endswith(f"sh '{tmp_path / 'out of it' / 'fix.sh'}'")


def test_a_folder_without_classes_is_audited_too(tmp_path):
    for number in range(4):
        write(tmp_path / "flat" / f"{number}.jpg", scene(number))
    write(tmp_path / "flat" / "dark.jpg", scene(9).point(lambda value: value // 12))
    write(tmp_path / "flat" / "copy.jpg", scene(0), quality=50)
    kinds, audit = found(tmp_path / "flat", tmp_path / "out")
    assert kinds == {"copy": {"copy.jpg"}, "poor": {"dark.jpg"}}
    assert list(audit.photos.index) == ["flat"]


def test_a_sub_folder_per_car_needs_no_split(tmp_path):
    for number in range(4):
        write(tmp_path / "cars" / "civic" / f"car {number // 2}" / f"{number}.jpg", scene(number))
    kinds, audit = found(tmp_path / "cars", tmp_path / "out")
    assert kinds == {} and audit.notes[0].startswith("2 sub-folders were taken as one car each")


def test_labels_and_what_is_unlike_the_rest_are_ranked_in_a_folder_of_some_size(tmp_path):
    for number in range(24):
        for label, tint in (("red", (180, 30, 30)), ("blue", (30, 30, 180))):
            image = scene(number + 100 * (label == "red"))
            image.paste(tint, (0, 0, 320, 150))
            write(tmp_path / "in" / label / f"{number}.jpg", image)
    swapped = scene(999)
    swapped.paste((180, 30, 30), (0, 0, 320, 150))
    write(tmp_path / "in" / "blue" / "wrong.jpg", swapped)
    kinds, audit = found(tmp_path / "in", tmp_path / "out")
    assert "blue/wrong.jpg" in set(audit.findings[audit.findings["kind"] == "label"].head(3)["file"])


def test_what_cannot_be_audited_is_refused_with_what_to_do(folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="name another --out"):
        audit_folder(folder, folder / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files in it"):
        audit_folder(tmp_path / "empty", tmp_path / "out")
    assert cli.main(["audit", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_the_command_writes_beside_other_reports_unless_told(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path / "home"))
    assert cli.main(["audit", str(folder)]) == 0
    assert (tmp_path / "home" / "data" / "reports" / "audit-cars" / "index.html").is_file()
    assert "fix.sh" in capsys.readouterr().out
