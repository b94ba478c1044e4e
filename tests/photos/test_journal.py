"""Journals: whole lines stay, torn ones go, several processes may append."""

import json
import multiprocessing
import os
import signal

import pytest

from carspotter.photos import journal as module
from carspotter.photos.journal import Busy, Journal, JournalDamaged, append_line, hold, read_journal, repair_journal


def test_lines_come_back_with_their_places(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    assert list(read_journal(path)) == []
    with Journal(path) as journal:
        places = [journal.append({"title": "स्विफ्ट"}), journal.append({"number": 2}, sync=False)]
        assert [journal.read(place) for place in places] == list(read_journal(path))
        assert [place for place, _ in journal.replay()] == places
    assert "स्विफ्ट" in path.read_text(encoding="utf-8")


def test_a_name_that_is_not_utf8_is_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    append_line(tmp_path / "journal.jsonl", {"file": name})
    assert list(read_journal(tmp_path / "journal.jsonl")) == [{"file": name}]


@pytest.mark.parametrize("last", [b'{"a": ' + b"9" * 10_000, b"9" * 10_000, b"\0" * 5_000, b'{"a": 1', b"12"])
def test_a_torn_line_is_left_out_and_cut_off_before_the_next_is_written(tmp_path, last):
    path = tmp_path / "journal.jsonl"
    for before in (b"", b'{"a": 1}\n'):
        path.write_bytes(before + last)
        assert list(read_journal(path)) == ([{"a": 1}] if before else [])
        repair_journal(path)
        assert path.read_bytes() == before


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')  # as an editor may leave it
    assert list(read_journal(path)) == [{"a": 1}, {"a": 2}]
    append_line(path, {"a": 3})
    assert [line["a"] for line in read_journal(path)] == [1, 2, 3]


def test_damage_before_the_last_line_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": 1}\n\0\0\n{"a": 2}\n')
    with pytest.raises(JournalDamaged, match=r"journal.jsonl, line 2: not JSON .*correct or delete"):
        list(read_journal(path))


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"a": 1})

        class Full:
            def __init__(self, file):
                self.file, self.room = file, 5

            def write(self, text):
                if not self.room:
                    raise OSError(28, "No space left on device")
                written, self.room = self.file.write(text[: self.room]), 0
                return written

            def __getattr__(self, name):
                return getattr(self.file, name)

        plain = journal._file
        monkeypatch.setattr(journal, "_file", Full(plain))
        with pytest.raises(OSError, match="No space"):
            journal.append({"a": 2})
        monkeypatch.setattr(journal, "_file", plain)
        journal.append({"a": 3})
    assert [line["a"] for line in read_journal(path)] == [1, 3]


def test_synced_unless_told_otherwise(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module.os, "fsync", synced.append)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append({"a": 1}, sync=False)
        assert not synced
        journal.append({"a": 2})
        assert len(synced) == 1


def add_lines(path, name):
    for number in range(40):
        append_line(path, {"name": name, "number": number, "padding": "x" * 5_000})


def add_for_ever(path, ready):
    while True:
        append_line(path, {"padding": "x" * 20_000})
        ready.set()


def test_several_processes_append_whole_lines(tmp_path):
    path, context = tmp_path / "reviews.jsonl", multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_lines, args=(path, name)) for name in ("Asha", "Ben", "Chen")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = list(read_journal(path))
    assert len(lines) == 120
    for name in ("Asha", "Ben", "Chen"):
        assert [line["number"] for line in lines if line["name"] == name] == list(range(40))


def test_a_killed_writer_leaves_whole_lines_and_no_lock(tmp_path):
    path, context = tmp_path / "reviews.jsonl", multiprocessing.get_context("spawn")
    ready = context.Event()
    writer = context.Process(target=add_for_ever, args=(path, ready))
    writer.start()
    try:
        assert ready.wait(60)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    append_line(path, {"last": True})
    *rest, last = path.read_bytes().splitlines()
    assert json.loads(last) == {"last": True} and all(len(json.loads(line)["padding"]) == 20_000 for line in rest)


def test_a_lock_that_is_held_is_named(tmp_path):
    with (
        hold(tmp_path / ".lock"),
        pytest.raises(Busy, match="stop it first"),
        hold(tmp_path / ".lock", "stop it first"),
    ):
        pass
    with hold(tmp_path / ".lock", "free again"):
        pass
