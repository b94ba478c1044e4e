"""Crawls of the misbehaving site with stand-ins for the browser and the clock."""

import random
from pathlib import Path

from scraper.closing import exit_code
from scraper.crawl import Crawl
from scraper.download import Downloader
from scraper.journal import Journal
from scraper.loading import LoadedPage
from scraper.politeness import Pacer
from scraper.site import parse_site
from tests.scraper.misbehaving_site import MisbehavingSite

FAULTS = Path(__file__).parent.parent.parent / "scraper" / "FAULTS.md"


def table_rows(heading: str) -> list[list[str]]:
    """Return the cells of the table that follows `heading` in scraper/FAULTS.md, code marks removed."""
    text = FAULTS.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    assert rows, f"{FAULTS} has no table under {heading!r}"
    return [[cell.strip().strip("`") for cell in row] for row in rows]


class Clock:
    """A clock that sleeping moves on, so that minutes of waiting take no time."""

    def __init__(self):
        self.now = 1_000_000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def downloader(
    clock: Clock, base_url: str = "http://127.0.0.1", request: dict | None = None, **politeness
) -> Downloader:
    settings = {"delay": 0, "allow_private": ["127.0.0.1"], "timeout": 10, "total_timeout": 20, "max_bytes": 2_000_000}
    content = {
        "contact": "test@example.org",
        "start": [{"url": f"{base_url}/search", "label": "swift"}],
        "selectors": {"listing": "article.listing", "id": "@data-listing-id", "photos": "img.photo"},
        "politeness": settings | politeness,
        "request": request or {},
    }
    site = parse_site(content, Path("misbehaving.toml"))
    return Downloader(site, Pacer(site.politeness, clock.sleep, clock, random.Random(0)))


class OnePage:
    """Stands in for the browser: one page, already loaded."""

    def __init__(self, url: str, *photos: str):
        images = "".join(f'<img class="photo" src="{photo}">' for photo in photos)
        html = f'<article class="listing" data-listing-id="1">{images}</article>'
        self.page = LoadedPage(url, html, "single page", [])

    def load(self, url, max_listings=None):
        yield self.page

    def open(self, url, is_detail=True, hurry=False):
        return self.page


def crawl_photos(clock: Clock, site: MisbehavingSite, folder: Path, *photos: str, **politeness):
    """Crawl one page that shows `photos`; return (exit code, the journal's newest line by photo name)."""
    fetcher = downloader(clock, site.base_url, **politeness)
    with Journal(folder) as journal:
        crawl = Crawl(fetcher.site, journal, [OnePage(f"{site.base_url}/search", *photos)], fetcher)
        try:
            stats = crawl.run()
        finally:
            fetcher.close()
        lines = {url.partition(site.base_url)[2].strip("/"): journal.newest_line(url) for url in journal.outcomes}
    return exit_code(stats), lines
