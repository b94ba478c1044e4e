"""All reported, lively, hard and unsaid sites, crawled twice: every photo comes, or it is said what is missing."""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.scraper.crawling import KeptBrowser, Remembering, crawl, needs_browser, selected, side_by_side
from tests.scraper.misbehaving_site import REPORTED, MisbehavingSite

SITES = {name: module.SITES[name] for name, module in REPORTED.items()}
# The second crawl reads the pages of the first once more, as they were. These sites are visited a second time: all
# whose addresses or ids change from visit to visit, and one of each other kind.
VISITED_TWICE = {
    *("other-button", "busy-until", "rows-at-rest", "gallery-by-script", "next-by-script", "in-memory", "two-gates"),
    *("same-path", "session-in-address", "presigned", "by-reference", "by-key", "signed-path", "expiring-path"),
}
pytestmark = needs_browser


@dataclass(frozen=True)
class Run:
    """What one crawl of a site led to."""

    photos: int
    listings: int
    code: int
    said: str
    asked: int  # requests of photos


def write_site_file(folder: Path, base_url: str, name: str) -> Path:
    site = SITES[name]
    path = folder / "reported.toml"
    path.write_text(
        f'contact = "test@example.org"\n[[start]]\nlabel = "swift"\nurl = "{base_url}/reported/{name}{site.url}"\n'
        f"[selectors]\n{site.selectors}\n{site.more}\n{'' if '[politeness]' in site.more else '[politeness]'}\n"
        'delay = 0\npage_timeout = 120\nallow_private = ["127.0.0.1"]\n'
    )
    return path


def crawl_twice(name: str, folder: Path, browser: KeptBrowser) -> list[Run]:
    runs, remembers = [], Remembering(browser)
    with MisbehavingSite() as site:
        file = write_site_file(folder, site.base_url, name)
        for _ in range(2):
            site.log.clear()
            done = crawl(file, folder / "raw", browser, None if name in VISITED_TWICE else remembers)
            lines = map(json.loads, (folder / "raw" / "journal.jsonl").read_text().splitlines())
            fetched = [line for line in lines if line["status"] == "fetched"]
            urls, listings = {line["url"] for line in fetched}, {line["listing"] for line in fetched}
            asked = sum(path.startswith("/photos/") for path in site.log)
            runs.append(Run(len(urls), len(listings), done.code, done.said, asked))
    return runs


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    jobs = {name: partial(crawl_twice, name, tmp_path_factory.mktemp(name)) for name in selected(request, "name")}
    with side_by_side(jobs) as found:
        yield found


@pytest.mark.parametrize("name", SITES)
def test_a_reported_site_gives_all_its_photos_or_says_what_is_missing(name, runs):
    expected = SITES[name]
    for number, run in enumerate(runs(name)):
        found = (run.photos, run.listings, run.code)
        assert found == (expected.photos, expected.listings, expected.code), run.said
        assert re.search(expected.said, run.said), run.said
        by_page = expected.asked_by_page if number == 0 or name in VISITED_TWICE else 0
        assert run.asked == (expected.photos if number == 0 else 0) + by_page
