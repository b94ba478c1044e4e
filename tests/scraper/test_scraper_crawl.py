"""Whole crawls with a real browser. The page faults are those of the table in scraper/FAULTS.md."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver.remote.command import Command
from selenium.webdriver.remote.webdriver import WebDriver

from scraper import browser as browser_module
from scraper.browser import ANSWERED, Browser
from scraper.cli import main
from tests.scraper.crawling import KeptBrowser, crawl, needs_browser, selected, short_folder, side_by_side
from tests.scraper.misbehaving_site import MisbehavingSite
from tests.scraper.without_browser import table_rows

pytestmark = needs_browser


@pytest.fixture(scope="module")
def kept_browser():
    """A browser for all tests of this file that need none of their own."""
    with pytest.MonkeyPatch.context() as patch, short_folder() as folder:
        patch.setattr("tempfile.tempdir", str(folder))  # the browser's profile, by which it is found
        browser = KeptBrowser()
        yield browser
        browser.quit()
        assert_no_browser_left(folder)


@pytest.fixture
def shared_browser(kept_browser, monkeypatch):
    """Let `main` use the browser that is there instead of starting one."""
    monkeypatch.setattr("scraper.cli.Browser", kept_browser.turn_to)


SITE_FILE = """
contact = "test@example.org"
[[start]]
label = "swift"
url = "{url}"
[selectors]
listing = "article.listing"
id = "@data-listing-id"
link = "a.more"
photos = "{photos}"
[fields]
title = "h2"
city = ".city"
[paging]
kind = "{kind}"
button = "#more"
next = "a[rel=next]"
end = "#end"
empty = "{empty}"
patience = 2.0
settle = 0.3
first_page = 0
max_pages = {max_pages}
[politeness]
delay = {delay}
jitter = 0
page_timeout = {page_timeout}
allow_private = ["127.0.0.1"]
restart_browser_every = {restart_every}
{more}
"""


def write_site_file(folder: Path, url: str, kind: str = "none", **settings) -> Path:
    defaults = {"photos": "img.photo", "empty": "#nothing", "max_pages": 30, "page_timeout": 120}
    defaults |= {"restart_every": 50, "delay": 0, "more": ""}
    path = folder / "misbehaving.toml"
    path.write_text(SITE_FILE.format(url=url, kind=kind, **defaults | settings))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# name in the table -> query of the search page, and what else differs
PAGE_FAULTS = {
    "scroll": ("listings=23&kind=scroll", {}),
    "scroll-silent": ("listings=13&kind=scroll&silent=1", {}),
    "scroll-endless": ("endless=1&kind=scroll", {"max_pages": 3}),
    "scroll-asleep": ("endless=1&kind=scroll&asleep=1", {"max_pages": 3}),
    "button": ("listings=13&kind=button", {}),
    "button-repeats": ("listings=10&kind=button&repeat=1", {}),
    "next": ("listings=13&kind=next", {"restart_every": 1}),
    "numbered": ("listings=13&kind=numbered&page={page}", {}),
    "numbered-repeats": ("listings=10&kind=numbered&repeat=1&page={page}", {}),
    "numbered-rot": ("listings=13&kind=numbered&rot=1&page={page}", {}),
    "next-rot": ("listings=13&kind=next&rot=1", {}),
    "numbered-mute": ("listings=13&kind=numbered&mute=1&page={page}", {"empty": ""}),
    "numbered-404": ("listings=13&kind=numbered&mute=1&missing=1&page={page}", {}),
    "numbered-rot-on": ("listings=23&kind=numbered&rot-from=2&page={page}", {}),
    "numbered-rot-on-mute": ("listings=23&kind=numbered&mute=1&rot-from=2&page={page}", {"empty": ""}),
    "next-rot-on": ("listings=23&kind=next&rot-from=2", {}),
    "session-expired": ("listings=13&kind=numbered&session=1&page={page}", {}),
    "detail": ("listings=3&kind=none", {"more": '[detail]\nphotos = "#gallery img"'}),
    "detail-bare": ("listings=5&kind=none", {"more": '[detail]\nphotos = "#renamed img"', "photos": "img.renamed"}),
    "forbidden": ("status=403", {}),
    "busy": ("status=429", {}),
    "reset": ("reset=2", {}),
    "alert": ("alert=1", {}),
    "cookie": ("cookie=1", {}),
    "hindi": ("hindi=1", {}),
    "noai": ("noai=1", {}),
    "empty": ("empty=1", {}),
    "blank": ("blank=1", {}),
    "changed-layout": ("changed=1", {}),
    "no-photos": ("listings=5", {"photos": "img.renamed"}),
    "hang": ("hang=1", {"page_timeout": 4}),
    "leak": ("leak=1", {"page_timeout": 240}),
    "crash-once": ("listings=5", {}),
    "tab-crash-once": ("listings=5", {}),
    "robots-forbids": ("listings=5", {"robots": "User-agent: *\nDisallow: /search\n"}),
    "robots-unreachable": ("listings=5", {"robots": "reset", "more": "attempts = 1"}),
}


ENDS_BROWSERS = ("hang", "leak", "crash-once", "tab-crash-once")


def write_fault(folder: Path, name: str, base_url: str) -> Path:
    query, settings = PAGE_FAULTS[name]
    kind = re.search(r"kind=(\w+)|$", query).group(1) or "none"
    settings = {key: value for key, value in settings.items() if key != "robots"}
    return write_site_file(folder, f"{base_url}/search?{query}", kind, **settings)


def crawl_fault(name: str, folder: Path, browser: KeptBrowser) -> tuple:
    """Return what a crawl of the site with this fault led to, its journal of pages, and what it asked the site for."""
    with MisbehavingSite(robots=PAGE_FAULTS[name][1].get("robots", "User-agent: *\nDisallow: /private/\n")) as site:
        done = crawl(write_fault(folder, name, site.base_url), folder / "raw", browser)
        return done, read_lines(folder / "raw" / "pages.jsonl"), site


@pytest.fixture(scope="module")
def faults(request, tmp_path_factory):
    names = [row[0] for row in selected(request, "row")]
    with side_by_side({name: partial(crawl_fault, name, tmp_path_factory.mktemp(name)) for name in names}) as found:
        yield found


@pytest.mark.parametrize(
    "row", [row for row in table_rows("Faults of a page") if row[0] not in ENDS_BROWSERS], ids=lambda row: row[0]
)
def test_page_fault_ends_as_the_table_says(row, faults):
    name, _, fetched, status, said, code = row
    done, pages, site = faults(name)
    assert (done.stats.fetched, pages[-1]["status"], done.code) == (int(fetched), status, int(code)), done.said
    assert re.search(said, done.said + json.dumps(pages, ensure_ascii=False)), done.said
    if name.startswith("robots"):
        assert "/search" not in {path.partition("?")[0] for path in site.log}
    asked = site.photo_requests()
    assert len(asked) == len(set(asked)), "a photo was asked for twice, by the browser perhaps"


@pytest.mark.parametrize(
    "row", [row for row in table_rows("Faults of a page") if row[0] in ENDS_BROWSERS], ids=lambda row: row[0]
)
def test_page_fault_that_ends_a_browser_ends_as_the_table_says(row, tmp_path, short_path, capsys, monkeypatch):
    name, _, fetched, status, said, code = row
    with MisbehavingSite() as site:
        if "crash" in name:
            kind_of_process = "--type=renderer" if name.startswith("tab") else ""
            site.on_request = lambda path: kill_browser(short_path, kind_of_process) if len(site.log) == 2 else None
        monkeypatch.setattr(browser_module, "TAB_MEGABYTES", 128)  # filled sooner
        monkeypatch.setattr("tempfile.tempdir", str(short_path))  # the browser's profile, by which it is found
        start, starts = Browser._start, []
        monkeypatch.setattr(Browser, "_start", lambda browser: (starts.append(browser), start(browser)))
        result = main([str(write_fault(tmp_path, name, site.base_url)), "--out", str(tmp_path / "raw"), "--json"])
    output = capsys.readouterr()
    stats = json.loads(output.out)
    pages = read_lines(tmp_path / "raw" / "misbehaving" / "pages.jsonl")
    assert (stats["fetched"], pages[-1]["status"], result) == (int(fetched), status, int(code)), output.err
    assert re.search(said, output.err + json.dumps(pages, ensure_ascii=False)), output.err
    assert_no_browser_left(short_path)
    assert len(starts) == 2, "a second browser tries"
    asked = site.photo_requests()
    assert len(asked) == len(set(asked))


CUT_OFF = (0, 2, 5, 9)  # the numbers of the answers that do not come


@pytest.mark.parametrize(
    ("command", "kind"), [*((command, "button") for command in ANSWERED), (Command.W3C_EXECUTE_SCRIPT, "next")]
)
def test_no_answer_that_an_alert_box_cuts_off_ends_a_page_early(
    command, kind, shared_browser, tmp_path, capsys, monkeypatch
):
    """What chromedriver does when a box opens in the midst of a command: it answers with nothing."""
    execute, answers = WebDriver.execute, itertools.count()

    def cut_off(driver, driver_command, params=None):
        answer = execute(driver, driver_command, params)
        is_cut_off = driver_command == command and next(answers) in CUT_OFF
        return {"value": None} if is_cut_off else answer

    monkeypatch.setattr(WebDriver, "execute", cut_off)
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=13&kind={kind}", kind)
        assert main([str(file), "--out", str(tmp_path / "raw"), "--json"]) == 0
        browsers = site.counts["/search"]
    stats = json.loads(capsys.readouterr().out)
    assert (stats["fetched"], stats["pages"], stats["pages_lost"]) == (13, 3 if kind == "next" else 1, {})
    assert browsers == stats["pages"], "the page was read again, not opened again"
    assert next(answers) > 1, "one answer did not come, another did"


def test_the_table_and_the_page_faults_agree():
    assert [row[0] for row in table_rows("Faults of a page")] == list(PAGE_FAULTS)


def browser_processes(folder: Path, kind: str = "") -> list[int]:
    """Return the processes in the groups of the browsers whose profile is in `folder`, of one kind if so asked."""
    commands = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            commands[int(process.name)] = (process / "cmdline").read_bytes(), os.getpgid(int(process.name))
        except OSError:
            continue  # it ended meanwhile
    profile = str(folder / "scraper-browser-").encode()
    groups = {group for command, group in commands.values() if profile in command}
    return [process for process, (command, group) in commands.items() if group in groups and kind.encode() in command]


def kill_browser(folder: Path, kind: str) -> None:
    for process in browser_processes(folder, kind):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def wait_until(condition, seconds: float = 100.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def assert_no_browser_left(folder: Path) -> None:
    assert wait_until(lambda: not browser_processes(folder)), "browser processes are left"
    assert wait_until(lambda: not list(folder.glob("scraper-browser-*"))), "a browser profile is left"


def start_scraper(file: Path, folder: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "scraper", str(file), "--out", str(folder / "raw"), *more],
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # tests that run in a shell's background inherit an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stored(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "raw" / "misbehaving").glob("??/*")}


def journaled(folder: Path) -> list[str]:
    return [line["url"] for line in read_lines(folder / "raw" / "misbehaving" / "journal.jsonl")]


@pytest.mark.parametrize("moment", ["at a photo's request", "while the page scrolls"])
def test_sigkill_and_restart_give_the_same_set(moment, short_path):
    path, count = {"at a photo's request": ("/photos/swift-7.jpg", 1), "while the page scrolls": ("/api/cards", 2)}[
        moment
    ]
    with MisbehavingSite() as site:
        file = write_site_file(short_path, f"{site.base_url}/search?listings=15&kind=scroll&private=1", "scroll")
        killed = start_scraper(file, short_path)

        def kill_at(asked: str) -> None:
            if asked.startswith(path) and site.counts[path] == count and killed.returncode is None:
                killed.kill()
                killed.wait()

        site.on_request = kill_at
        _, text = killed.communicate(timeout=300)
        assert killed.returncode == -signal.SIGKILL, text
        before = len(stored(short_path))
        assert_no_browser_left(short_path)
        again = start_scraper(file, short_path)
        _, text = again.communicate(timeout=300)
        assert again.returncode == 0, text
        asked = site.photo_requests()
    assert before == {"at a photo's request": 7, "while the page scrolls": 0}[moment]
    assert len(stored(short_path)) == 15
    assert len(asked) - len(set(asked)) <= 1 and set(asked) == {f"/photos/swift-{number}.jpg" for number in range(15)}
    urls = journaled(short_path)
    assert len(urls) == len(set(urls)) == 20, "15 photos and the 5 that robots.txt forbids, each once"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_it_says_how_far_it_came(name, short_path):
    with MisbehavingSite() as site:
        file = write_site_file(short_path, f"{site.base_url}/search?listings=5")
        process = start_scraper(file, short_path)
        site.on_request = lambda path: process.send_signal(signal.Signals[name]) if path.endswith("-3.jpg") else None
        _, text = process.communicate(timeout=300)
    assert process.returncode == 130, text
    assert "the same command goes on where it stopped" in text and re.search(r"photos found +[45]\n", text)
    assert_no_browser_left(short_path)


@pytest.fixture
def webdriver_endpoint(short_path):
    """A chromedriver of its own, as a WebDriver endpoint somewhere else would be; gives its address."""
    command = ["chromedriver", "--port=0"]
    environment = os.environ | {"TMPDIR": str(short_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            port = next(found[1] for line in process.stdout if (found := re.search(r"success.* on port (\d+)", line)))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_a_browser_behind_a_webdriver_endpoint_does_the_same(webdriver_endpoint, tmp_path):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=13&kind=scroll", "scroll", restart_every=1)
        assert main([str(file), "--out", str(tmp_path / "raw"), "--remote-url", webdriver_endpoint]) == 0
        assert len(site.photo_requests()) == 13


def test_a_browser_that_ends_while_it_is_set_up_is_started_again(short_path, monkeypatch, capsys):
    set_up, started = Browser._devtools, []

    def ends_at_first(browser, command, parameters):
        started.append(browser.guard)
        if len(started) == 1:
            os.killpg(browser.guard.pid, signal.SIGKILL)
        set_up(browser, command, parameters)

    monkeypatch.setattr(Browser, "_devtools", ends_at_first)
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    with MisbehavingSite() as site:
        file = write_site_file(short_path, f"{site.base_url}/search?listings=2")
        assert main([str(file), "--out", str(short_path / "raw"), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert (stats["fetched"], stats["pages_lost"]) == (2, {}) and len(started) > 1


def test_an_endpoint_that_is_not_there_is_named(tmp_path, capsys):
    file = write_site_file(tmp_path, "http://127.0.0.1:9/search")
    assert main([str(file), "--out", str(tmp_path / "raw"), "--remote-url", "http://127.0.0.1:9"]) == 3
    assert "no browser at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_temporary_folder_too_deep_for_the_browser_is_named(tmp_path, monkeypatch, capsys):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    file = write_site_file(tmp_path, "http://127.0.0.1:9/search")
    assert main([str(file), "--out", str(tmp_path / "raw")]) == 3
    assert re.search("too long a path for the browser's socket.*TMPDIR=/tmp", capsys.readouterr().err)


def test_a_folder_that_cannot_be_written_stops_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    file = write_site_file(tmp_path, "http://127.0.0.1:9/search")
    assert main([str(file), "--out", str(tmp_path / "file" / "raw")]) == 3
    assert re.search("cannot write .*file.*run the same command again", capsys.readouterr().err)


def test_limit_ends_the_crawl_early(shared_browser, tmp_path, capsys):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?endless=1&kind=scroll", "scroll")
        assert main([str(file), "--out", str(tmp_path / "raw"), "--limit", "4"]) == 0
        assert len(site.photo_requests()) == 4 and site.counts["/api/cards"] == 0
    assert "First crawl of misbehaving" in capsys.readouterr().err


def test_second_run_asks_for_no_photo_but_for_what_failed(shared_browser, tmp_path, capsys):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=5", more="attempts = 1")
        site.on_request = lambda path: (_ for _ in ()).throw(OSError) if path.endswith("-2.jpg") else None
        assert main([str(file), "--out", str(tmp_path / "raw")]) == 4
        site.on_request = lambda path: None
        site.log.clear()
        assert main([str(file), "--out", str(tmp_path / "raw")]) == 0
        assert site.photo_requests() == ["/photos/swift-2.jpg"]
    output = capsys.readouterr().err
    assert output.count("First crawl of") == 1 and re.search("known from earlier runs +4", output)


def test_one_photo_under_two_labels_is_fetched_once_and_journaled_twice(shared_browser, tmp_path):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=2")
        content = file.read_text()
        second = f'[[start]]\nlabel = "wagonr"\nurl = "{site.base_url}/search?listings=2&again=1"\n[selectors]'
        file.write_text(content.replace("[selectors]", second))
        for _ in range(2):
            assert main([str(file), "--out", str(tmp_path / "raw")]) == 0
        assert len(site.photo_requests()) == 2
    lines = read_lines(tmp_path / "raw" / "misbehaving" / "journal.jsonl")
    assert [(line["label"], line["status"]) for line in lines] == [("swift", "fetched")] * 2 + [
        ("wagonr", "fetched")
    ] * 2
    assert lines[0]["sha256"] == lines[2]["sha256"]


def test_one_own_page_under_two_labels_is_journaled_twice(shared_browser, tmp_path):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=2", more='[detail]\nphotos = "#gallery img"')
        second = f'[[start]]\nlabel = "wagonr"\nurl = "{site.base_url}/search?listings=2&again=1"\n[selectors]'
        file.write_text(file.read_text().replace("[selectors]", second))
        for _ in range(2):
            assert main([str(file), "--out", str(tmp_path / "raw")]) == 0
        assert site.counts["/detail"] == 4 and len(site.photo_requests()) == 4
    lines = read_lines(tmp_path / "raw" / "misbehaving" / "journal.jsonl")
    assert [line["label"] for line in lines] == ["swift"] * 4 + ["wagonr"] * 4


def test_check_shows_what_each_selector_finds(shared_browser, tmp_path, capsys):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=5")
        assert main(["check", str(file)]) == 0
        text = capsys.readouterr().out
        assert re.search(r"✓ selectors.listing +5 × 'article.listing'", text) and "– paging.end" in text
        assert "status 200, title 'Swift VXi 0" in text and re.search("✓ selectors.photos .* 5 addresses", text)
        assert "5 listings, 5 photos on this page" in text and "title: Swift VXi 0" in text
        assert main(["check", str(write_site_file(tmp_path, f"{site.base_url}/search?changed=1"))]) == 1
        assert re.search("✗ selectors.listing .* nearest: 'article' finds 5", capsys.readouterr().out)
        assert not site.photo_requests()


def test_headers_cookies_and_user_agent_reach_pages_and_photos(tmp_path):
    request = '[request]\nheaders = { Accept-Language = "hi" }\ncookies = { consent = "yes" }\nuser_agent = "Us/1"'
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=1", more=request)
        assert main([str(file), "--out", str(tmp_path / "raw")]) == 0
        for path, headers in zip(site.log, site.headers, strict=True):
            if path != "/favicon.ico":
                assert (headers["User-Agent"], headers["Accept-Language"]) == ("Us/1", "hi"), path
                assert "consent=yes" in headers["Cookie"], path


def test_without_paging_it_is_said_that_one_page_is_read_and_messages_name_the_file(shared_browser, tmp_path, capsys):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?changed=1")
        file.write_text(file.read_text().replace('kind = "none"', ""))
        assert main([str(file), "--out", str(tmp_path / "raw")]) == 1
    output = capsys.readouterr().err
    assert "one page of each start is read" in output and f"python -m scraper check {file}" in output


def test_reparse_corrects_the_journal_offline(shared_browser, tmp_path, capsys):
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, f"{site.base_url}/search?listings=5&private=1")
        assert main([str(file), "--out", str(tmp_path / "raw")]) == 0
        good = file.read_text()
        file.write_text(good.replace('title = "h2"', 'name = "h2"').replace("img.photo", "img, a.more"))
        site.log.clear()
        capsys.readouterr()
        for expected in ((5, 7, 5), (5, 0, 0)):
            assert main(["reparse", str(file), "--out", str(tmp_path / "raw"), "--json"]) == 0
            counts = json.loads(capsys.readouterr().out)
            assert (counts["listings"], counts["corrected"], counts["new"]) == expected
        assert not site.log, "reparse asked the site"
        lines = read_lines(tmp_path / "raw" / "misbehaving" / "journal.jsonl")
        newest = {line["url"]: line for line in lines}
        assert {line["name"] for line in newest.values()} == {f"Swift VXi {number}" for number in range(5)}
        assert sum(line["status"] == "fetched" for line in newest.values()) == 5
        # the new ones are fetched by the next crawl, even if no page shows them any more
        file.write_text(good)
        main([str(file), "--out", str(tmp_path / "raw")])
        assert site.counts["/detail"] == 5
