"""Several browsers at once: the same photos, one pace per host, and nobody's end harms another's work."""

import json
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from scraper.browser import CHROMIUM_NAMES, GUARD
from scraper.politeness import Pacer, Stopped
from scraper.site import Politeness
from tests.scraper.misbehaving_site import MisbehavingSite
from tests.scraper.test_scraper_crawl import (
    assert_no_browser_left,
    journaled,
    kill_browser,
    read_lines,
    start_scraper,
    stored,
    wait_until,
    write_site_file,
)
from tests.scraper.without_browser import Clock, downloader

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(shutil.which, CHROMIUM_NAMES)) or not shutil.which("chromedriver"),
        reason="no chromium and chromedriver on PATH; `make setup` installs them",
    ),
]
GALLERIES = '[detail]\nphotos = "#gallery img"'
DELAY = 0.15  # seconds


def crawl(folder, site, browsers: int, **settings):
    """Crawl two searches whose galleries are on the listings' own pages; return exit code and closing figures."""
    folder.mkdir()
    file = write_site_file(folder, f"{site.base_url}/search?listings=4", more=GALLERIES, **settings)
    second = f'[[start]]\nlabel = "wagonr"\nurl = "{site.base_url}/search?listings=5&model=wagonr"\n[selectors]'
    file.write_text(file.read_text().replace("[selectors]", second))
    process = start_scraper(file, folder, "--browsers", str(browsers), "--json")
    output, text = process.communicate(timeout=300)
    assert output, text
    return process.returncode, json.loads(output), text


def test_two_browsers_give_the_same_photos_at_the_pace_of_one(short_path):
    found = {}
    for browsers in (1, 2):
        folder, most = short_path / str(browsers), 0
        with MisbehavingSite() as site:

            def count_browsers(path, folder=folder):
                nonlocal most
                most = max(most, len(list(folder.glob("scraper-browser-*"))))

            site.on_request = count_browsers
            code, stats, text = crawl(folder, site, browsers, delay=DELAY)
            asked = [
                (path, moment)
                for path, moment in zip(site.log, site.times, strict=True)
                if re.match("/(robots|search|detail|photos)", path)
            ]
        assert (code, stats["fetched"], most) == (0, 10, browsers), text
        photos = [path for path, _ in asked if path.startswith("/photos")]
        assert len(photos) == len(set(photos)) == 10
        # over four requests, for a busy machine lets one arrive late and the next in time
        spans = [after - before for (_, before), (_, after) in zip(asked, asked[4:], strict=False)]
        assert min(spans) > 3 * DELAY, f"four requests within {min(spans):.3f} s"
        found[browsers] = stored(folder)
        listings = {urlsplit(line["url"]).path: line["listing"] for line in lines_of(folder)}
        assert all(path.startswith(f"/photos/detail-{listing}-") for path, listing in listings.items())
        assert_no_browser_left(folder)
    assert found[1] == found[2] and len(found[1]) == 10


def lines_of(folder):
    return read_lines(folder / "raw" / "misbehaving" / "journal.jsonl")


def test_a_browser_that_crashes_does_not_lose_the_others_work(short_path):
    with MisbehavingSite() as site:

        def crash(path):
            if path == "/photos/detail-2-0.jpg" and site.counts["/photos/detail-2-0.jpg"] == 1:
                profiles = sorted((short_path / "crash").glob("scraper-browser-*"))
                kill_browser(short_path / "crash", f"--user-data-dir={profiles[-1]}")

        site.on_request = crash
        code, stats, text = crawl(short_path / "crash", site, 2)
    assert (code, stats["fetched"], stats["pages_lost"]) == (0, 10, {}), text
    assert_no_browser_left(short_path / "crash")


def test_killed_with_two_browsers_it_goes_on_where_it_stopped(short_path):
    with MisbehavingSite() as site:
        file = write_site_file(short_path, f"{site.base_url}/search?listings=5", more=GALLERIES)
        killed = start_scraper(file, short_path, "--browsers", "2")

        def kill(path):
            if len(site.photo_requests()) >= 5 and killed.poll() is None:
                killed.kill()
                killed.wait()

        site.on_request = kill
        killed.communicate(timeout=300)
        assert killed.returncode == -signal.SIGKILL
        assert_no_browser_left(short_path)
        again = start_scraper(file, short_path, "--browsers", "2")
        _, text = again.communicate(timeout=300)
        assert again.returncode == 0, text
        asked = site.photo_requests()
    assert len(stored(short_path)) == 10 and len(asked) - len(set(asked)) <= 2, "at most one again for each browser"
    assert len(journaled(short_path)) == len(set(journaled(short_path))) == 10


def test_a_profile_into_which_a_browser_still_writes_is_removed_later(tmp_path):
    """The guard of a killed scraper meets an `rm` that fails at first, as where files come while it works."""
    profile, programs = tmp_path / "profile", tmp_path / "programs"
    profile.mkdir()
    programs.mkdir()
    failing = programs / "rm"
    failing.write_text(f'#!/bin/sh\n{shutil.which("rm")} -f "$0"\nexit 1\n')
    failing.chmod(0o700)
    path = {"PATH": f"{programs}:/usr/bin:/bin"}
    command = ["/bin/sh", "-c", GUARD, "guard", profile]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0, env=path)
    guard.communicate()
    assert not failing.exists() and not profile.exists()


def test_ctrl_c_does_not_wait_for_a_page_that_hangs(short_path):
    with MisbehavingSite() as site:
        file = write_site_file(short_path, f"{site.base_url}/search?hang=1", page_timeout=300)
        second = f'[[start]]\nlabel = "wagonr"\nurl = "{site.base_url}/search?listings=5"\n[selectors]'
        file.write_text(file.read_text().replace("[selectors]", second))
        process = start_scraper(file, short_path, "--browsers", "2")
        assert wait_until(lambda: site.counts["/search"] == 2)
        assert wait_until(lambda: len(stored(short_path)) == 5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=300)
    assert process.returncode == 130 and "the same command goes on where it stopped" in text
    assert time.monotonic() - started < 100 and len(stored(short_path)) == 5
    assert_no_browser_left(short_path)


def test_a_limit_holds_for_all_browsers_together(short_path):
    with MisbehavingSite() as site:
        file = write_site_file(short_path, f"{site.base_url}/search?listings=5", more=GALLERIES)
        process = start_scraper(file, short_path, "--browsers", "2", "--limit", "3")
        _, text = process.communicate(timeout=300)
    assert process.returncode == 0 and len(stored(short_path)) == len(journaled(short_path)) == 3, text


def test_nobody_asks_a_host_while_another_has_its_turn():
    pacer = Pacer(Politeness(delay=0.0))
    with ThreadPoolExecutor(1) as pool:
        with pacer.turn("http://a.example/1"):
            other = pool.submit(pacer.wait, "http://a.example/2")
            pacer.wait("http://b.example/")  # another host is free
            with pytest.raises(TimeoutError):
                other.result(timeout=0.1)
        other.result(timeout=100)


def test_stopped_every_wait_ends():
    pacer = Pacer(Politeness(delay=100.0))
    pacer.wait("http://a.example/1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pacer.wait, "http://a.example/2")
        pacer.stop()
        with pytest.raises(Stopped):
            waiting.result(timeout=100)
    with pytest.raises(Stopped):
        pacer.wait("http://b.example/1")


def test_stopped_a_photo_under_way_ends_without_an_outcome():
    with MisbehavingSite() as site, ThreadPoolExecutor(1) as pool:
        fetcher = downloader(Clock(), site.base_url, attempts=1)
        fetching = pool.submit(fetcher.fetch, f"{site.base_url}/delay.jpg")
        assert wait_until(lambda: site.counts["/delay.jpg"] == 1)
        fetcher.stop()
        with pytest.raises(Stopped):
            fetching.result(timeout=100)
        fetcher.close()
