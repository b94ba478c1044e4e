"""A long crawl keeps little more than the addresses it has seen."""

import gc
import hashlib
import tracemalloc

import pytest

from scraper.crawl import Crawl
from scraper.download import Photo
from scraper.journal import Journal
from scraper.loading import LoadedPage
from tests.scraper.without_browser import Clock, downloader

PER_PAGE = 25
CARD = '<article class="listing" data-listing-id="{0}"><h2>Swift {0}</h2><img class="photo" src="/{0}.jpg"></article>'


class ManyPages:
    """Stands in for the browser: `count` pages; notes the memory in use (bytes) as each is asked for."""

    def __init__(self, count: int):
        self.count, self.memory = count, []

    def load(self, url, max_listings=None):
        for page in range(self.count):
            gc.collect()  # parsed pages are cyclic and would be counted until the collector happens to run
            self.memory.append(tracemalloc.get_traced_memory()[0])
            html = "".join(CARD.format(page * PER_PAGE + number) for number in range(PER_PAGE))
            yield LoadedPage(f"http://127.0.0.1/{page}", html, "single page", [])


def crawl_many(folder, pages: int) -> tuple[ManyPages, int]:
    fetcher, browser = downloader(Clock()), ManyPages(pages)
    fetcher.check = lambda url: None

    def fetch(url, referer=None):
        content = url.encode() * 400  # some 15 kB
        return Photo(content, hashlib.sha256(content).hexdigest(), "jpg", 64, 48, url)

    fetcher.fetch = fetch
    tracemalloc.start()
    try:
        with Journal(folder) as journal:
            stats = Crawl(fetcher.site, journal, [browser], fetcher).run()
    finally:
        tracemalloc.stop()
    return browser, stats.fetched


@pytest.mark.slow
def test_memory_grows_by_an_address_per_listing(tmp_path, monkeypatch):
    monkeypatch.setattr("scraper.journal.os.fsync", lambda _: None)  # nothing here is about surviving a power cut
    browser, fetched = crawl_many(tmp_path, 11)
    assert fetched == 11 * PER_PAGE
    growth = browser.memory[-1] - browser.memory[2]
    assert growth / (8 * PER_PAGE) < 1000, f"{growth:,} bytes for {8 * PER_PAGE} listings"
