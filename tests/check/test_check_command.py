"""The verbs `check` and `export` on the command line."""

import json

import pytest

from carspotter.cli import main
from carspotter_check import cli
from carspotter_check.rejection import Rejection
from tests.check.toy import as_png, make_check, noise, write_bundle


def test_where_a_study_has_no_run_the_shipped_model_answers_and_says_so(tmp_path, monkeypatch, capsys):
    photo = tmp_path / "photo.png"
    photo.write_bytes(as_png(noise(size=200)))
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path))
    asked = ["check", str(photo), "--study", "unheard_of", "--json"]
    monkeypatch.setattr(cli, "SHIPPED", tmp_path / "none")
    assert main(asked) == 2  # a checkout in which no model ships
    capsys.readouterr()
    monkeypatch.setattr(cli, "SHIPPED", write_bundle(tmp_path / "bundle"))
    assert main(asked) == 0
    answered = capsys.readouterr()
    assert json.loads(answered.out)["photo"] == "photo.png"
    assert "unheard_of" in answered.err and "comes with Carspotter" in answered.err
    assert main([*asked, "--run", "this_one"]) == 2  # who names a run gets that one or an error


def test_the_export_command_says_what_was_certified_and_where_that_is_written(tmp_path, monkeypatch, capsys):
    bundle = write_bundle(tmp_path / "bundle")
    monkeypatch.setattr("carspotter_check.export.export_run", lambda *_, **__: bundle)
    assert main(["export", "run", "--data", str(tmp_path), "--study", "toy"]) == 0
    said = capsys.readouterr().out
    assert str(bundle / "model_card.md") in said
    assert json.loads((bundle / "manifest.json").read_text())["rejection"]["reason"] in said


@pytest.mark.parametrize(("certified", "is_said"), [(0.01, False), (0.03, True), (None, True)])
def test_the_check_command_says_what_a_model_falls_short_of(certified, is_said, tmp_path, monkeypatch, capsys):
    promised = Rejection(risk=0.01, certified=certified, reason="1 % cannot be certified")
    monkeypatch.setattr("carspotter_check.photo_check.PhotoCheck.load", lambda *_: make_check(rejection=promised))
    (tmp_path / "a.png").write_bytes(as_png(noise()))
    assert main(["check", str(tmp_path / "a.png")]) == 0
    assert ("cannot be certified" in capsys.readouterr().err) is is_said


def test_the_command_answers_in_lines_and_in_tables_by_photo_and_by_car(tmp_path, capsys):
    bundle = str(write_bundle(tmp_path / "bundle"))
    for name, seed in (("one/a.png", 0), ("one/b.png", 1), ("two/c.png", 2), ("two/copy.png", 2)):
        (tmp_path / "cars" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cars" / name).write_bytes(as_png(noise(seed)))
    asked = ["check", "--model", bundle, "--claim", "wagonr"]
    by_car = [*asked, "--listing", str(tmp_path / "cars")]
    assert main([*asked, str(tmp_path / "cars"), "--csv"]) == main(by_car) == main([*by_car, "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = "photo,verdict,label,reason,decided_by,run,version,unlike,p_swift,p_wagonr"
    assert lines[0] == header and lines[1].startswith("a.png,match,wagonr,") and len(lines) == 10
    assert lines[5].startswith("one: match: 2 of 2 photos look like wagonr")
    assert lines[6].startswith("two: match: 1 of 1 photos look like wagonr") and "1 of 2 photos unusable" in lines[6]
    assert lines[7] == "listing,verdict,label,probability,decided,unusable,reason" and "; " in lines[8]


def test_what_cannot_be_checked_is_said_before_anything_is_answered(tmp_path, capsys, monkeypatch):
    bundle = str(write_bundle(tmp_path / "bundle"))
    (tmp_path / "a.png").write_bytes(as_png(noise()))
    (tmp_path / "cars.csv").write_text("listing,photo,claim\nx\x1b[31m,a.png,swift\ny,a.png,nano\n")
    assert main(["check", "--model", bundle, "--listing", str(tmp_path / "cars.csv")]) == 2
    said = capsys.readouterr()
    assert "cars.csv: listing y: 'nano' is not a class" in said.err and not said.out
    (tmp_path / "cars.csv").write_text("listing,photo\nx\x1b[31m,a.png\n")
    assert main(["check", "--model", bundle, "--listing", str(tmp_path / "cars.csv")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    assert main(["check", "--model", bundle, str(tmp_path / "none")]) == 2
    assert "no photos in" in capsys.readouterr().err

    def forbid(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("carspotter_check.photo_check.decode", forbid)
    assert main(["check", "--model", bundle, str(tmp_path / "a.png")]) == 0
    assert "a.png: unusable: cannot be opened: Permission denied" in capsys.readouterr().out
