"""Crawls of small sites, several side by side: browsers go from one site to the next instead of ending."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium.common.exceptions import UnexpectedAlertPresentException

from scraper.browser import CHROMIUM_NAMES, Browser
from scraper.closing import Stats, closing_table
from scraper.crawl import Crawl
from scraper.download import Downloader
from scraper.journal import Journal
from scraper.loading import LoadedPage
from scraper.politeness import Failed, Refused
from scraper.site import Site, load_site

needs_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(shutil.which, CHROMIUM_NAMES)) or not shutil.which("chromedriver"),
        reason="no chromium and chromedriver on PATH; `make setup` installs them",
    ),
]
SIDE_BY_SIDE = 4  # crawls wait most of the time


class KeptBrowser(Browser):
    """A browser that is still there when a crawl is at its end, for the next crawl of any site."""

    def __init__(self):
        super().__init__(None, None)

    def turn_to(self, site: Site, downloader: Downloader, headed: bool = False, remote_url: str | None = None):
        """Take over another site, as a visitor whom it does not know; may stand in for the class `Browser`."""
        if self.driver:
            with suppress(UnexpectedAlertPresentException):  # a test may cut its answer off
                self._devtools("Network.clearBrowserCookies", {})
        self.site, self.downloader = site, downloader
        return self

    def __exit__(self, *_) -> None:
        pass


class Remembering:
    """A browser that shows each page once more as it was, without opening it again."""

    def __init__(self, browser: Browser):
        self.browser = browser
        self._searches: dict[str, list[LoadedPage | Exception]] = {}
        self._pages: dict[str, LoadedPage | Exception] = {}

    def load(self, url: str, max_listings: int | None = None) -> Iterator[LoadedPage]:
        if url in self._searches:
            yield from map(_page_or_error, self._searches[url])
            return
        kept = self._searches[url] = []
        try:
            for page in self.browser.load(url, max_listings):
                kept.append(page)
                yield page
        except (Failed, Refused) as error:
            kept.append(error)
            raise

    def open(self, url: str, is_detail: bool = True, hurry: bool = False) -> LoadedPage:
        if url not in self._pages:
            try:
                self._pages[url] = self.browser.open(url, is_detail, hurry)
            except (Failed, Refused) as error:
                self._pages[url] = error
        return _page_or_error(self._pages[url])


def _page_or_error(found: LoadedPage | Exception) -> LoadedPage:
    if isinstance(found, Exception):
        raise found
    return found


@dataclass(frozen=True)
class Crawled:
    """What a crawl left: its exit code, its figures, and all that the command says."""

    code: int
    stats: Stats
    said: str


def crawl(site_file: Path, folder: Path, browser: KeptBrowser, remembers: Remembering | None = None) -> Crawled:
    """Crawl a site into `folder`, as the command does; with `remembers`, the pages that this has are not opened."""
    site, said = load_site(str(site_file)), []
    downloader = Downloader(site)
    browser.turn_to(site, downloader)
    with Journal(folder) as journal:
        crawl = Crawl(site, journal, [remembers or browser], downloader, report=lambda _, text: said.append(text))
        code, ended_by = crawl.finish()
    downloader.close()
    return Crawled(code, crawl.stats, "\n".join([*said, ended_by, closing_table(crawl.stats, folder)]))


@contextmanager
def side_by_side(jobs: dict[str, Callable[[KeptBrowser], object]]) -> Iterator[Callable[[str], object]]:
    """Do jobs with a few browsers; yield a function that waits for one of them and returns what it did.

    Jobs begin a little before they are waited for, in their order, since another process may do the others.
    """
    own, browsers, names = threading.local(), [], list(jobs)
    begun: dict[str, Future] = {}

    def work(job: Callable[[KeptBrowser], object]) -> object:
        if not hasattr(own, "browser"):
            own.browser = KeptBrowser()
            browsers.append(own.browser)
        return job(own.browser)

    def wait_for(name: str) -> object:
        here = names.index(name)
        for ahead in names[here : here + 2 * SIDE_BY_SIDE]:
            if ahead not in begun:
                begun[ahead] = pool.submit(work, jobs[ahead])
        return begun[name].result(timeout=600)

    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    try:
        yield wait_for
    finally:
        pool.shutdown(cancel_futures=True)
        for browser in browsers:
            browser.quit()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder with a short name, for a browser's profile; see `short_path` in conftest.py."""
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        yield Path(folder)


def selected(request: pytest.FixtureRequest, parameter: str) -> list:
    """Return the values of a parameter with which the tests that use a fixture will be called."""
    tests = (item for item in request.session.items if request.fixturename in getattr(item, "fixturenames", ()))
    return [item.callspec.params[parameter] for item in tests if item.path == request.path]
