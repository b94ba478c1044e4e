"""What survives: torn lines, a second scraper, a full disk, a read-only folder."""

import errno
import json
import multiprocessing
import os
import signal

import pytest

from scraper import journal as journal_module
from scraper.journal import Journal, StorageError, archive_page, read_archived_page, store_photo, write_atomically


def line(url="http://a/1.jpg", status="fetched", **more):
    return {"url": url, "status": status, "listing": "1", "label": "swift", "sha256": "ab"} | more


def test_replay_knows_what_was_written(tmp_path):
    with Journal(tmp_path / "new" / "site") as journal:
        assert journal.is_new
        journal.append(line())
        journal.append(line("http://a/2.jpg", "failed", listing="2"))
        journal.append(line("http://a/3.jpg", "refused"))
        journal.append(line(label="wagonr"))
        journal.append_page({"url": "http://a/car/1", "status": "collected"})
    with Journal(tmp_path / "new" / "site") as journal:
        assert not journal.is_new
        assert {url[-5]: known.is_final for url, known in journal.outcomes.items()} == {
            "1": True,
            "2": False,
            "3": True,
        }
        assert set(journal.outcomes["http://a/1.jpg"].shown_by) == {("1", "swift"), ("1", "wagonr")}
        assert journal.collected == {("http://a/car/1", None): {}}
        assert journal.line_of("http://a/1.jpg", "1", "wagonr") == journal.newest_line("http://a/1.jpg")
        assert journal.line_of("http://a/1.jpg", "1", "swift")["time"].endswith("+00:00")


def test_a_line_torn_anywhere_is_cut_off_and_nothing_else(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append(line())
        journal.append(line("http://a/2.jpg", title="स्विफ्ट"))
    whole = (tmp_path / "journal.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):
        (tmp_path / "journal.jsonl").write_bytes(whole[:cut])
        with Journal(tmp_path) as journal:
            assert list(journal.outcomes) == ["http://a/1.jpg"]
            journal.append(line("http://a/3.jpg"))
        lines = (tmp_path / "journal.jsonl").read_bytes().splitlines()
        assert [json.loads(text)["url"][-5] for text in lines] == ["1", "3"]


def test_a_broken_line_in_the_middle_is_not_guessed_at(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(
        b'{"url": "x", "status": "fetched"}\n\0\0\0\n{"url": "y", "status": "failed"}\n'
    )
    with pytest.raises(StorageError, match=r"journal.jsonl, line 2: not JSON"):
        Journal(tmp_path)


def _hold(folder, ready):
    with Journal(folder):
        ready.set()
        signal.pause()


def test_a_second_scraper_on_the_same_folder_refuses(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready), daemon=True)
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(StorageError, match="another scraper is at work"):
            Journal(tmp_path)
        other.kill()  # a killed scraper leaves no lock behind
        other.join()
        Journal(tmp_path).close()
    finally:
        # nobody waits on an event here: killed while waiting, a process would leave the event's lock behind for good
        other.kill()
        other.join()


def test_leftovers_of_a_kill_are_swept_up(tmp_path):
    (tmp_path / "ab").mkdir(parents=True)
    (tmp_path / "ab" / "abc.jpg.part").write_bytes(b"half")
    Journal(tmp_path).close()
    assert not list(tmp_path.glob("**/*.part"))


def test_same_bytes_are_kept_once(tmp_path):
    path = tmp_path / "ab" / "abcd.jpg"
    store_photo(tmp_path, "abcd", "jpg", b"bytes")
    written = path.stat().st_mtime_ns
    store_photo(tmp_path, "abcd", "jpg", b"bytes")
    assert path.stat().st_mtime_ns == written


def test_a_full_disk_while_a_photo_is_written_leaves_no_half_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; make room"):
        write_atomically(tmp_path / "ab" / "x.jpg", b"bytes")
    assert not list(tmp_path.glob("**/*.*"))


def test_a_really_full_disk_stops_the_journal_and_it_goes_on_after(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this machine")
    with Journal(tmp_path) as journal:
        journal.append(line())
        os.dup2(os.open("/dev/full", os.O_WRONLY), journal._photos._file.fileno())
        with pytest.raises(StorageError, match="No space left on device"):
            journal.append(line("http://a/2.jpg"))
        assert "http://a/2.jpg" not in journal.outcomes
    with Journal(tmp_path) as journal:
        assert list(journal.outcomes) == ["http://a/1.jpg"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write .*file.*--out another folder"):
        Journal(tmp_path / "file" / "site")


def test_a_read_only_folder_is_named(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user writes even into read-only folders (root)")
    with pytest.raises(StorageError, match="Permission denied"):
        Journal(folder)


def test_photos_forgotten_at_one_site_are_forgotten_at_all(tmp_path):
    with Journal(tmp_path / "a") as journal:
        journal.append(line(title='status "forgotten"'))
        journal.append({"status": "forgotten", "sha256": "cd"})
    with open(tmp_path / "a" / "journal.jsonl", "a") as torn:
        torn.write('{"status": "forgotten", "sha2')
    with Journal(tmp_path / "b") as journal:
        assert journal.forgotten == {"cd"}


def test_forgotten_photos_are_known_by_their_hash(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append({"status": "forgotten", "sha256": "ab"})
    with Journal(tmp_path) as journal:
        assert journal.forgotten == {"ab"} and not journal.outcomes


def test_archived_pages_come_back_and_are_kept_once(tmp_path):
    html = "<p>मारुति स्विफ्ट</p>"
    path = archive_page(tmp_path, html)
    assert archive_page(tmp_path, html) == path and path.suffixes == [".html", ".gz"]
    assert read_archived_page(path) == html
