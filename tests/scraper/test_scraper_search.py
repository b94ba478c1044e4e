"""What a crawl makes of the pages of a search, and when it stops; without a browser."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from scraper.browser import Browser
from scraper.closing import CrawlStopped, closing_table, exit_code
from scraper.crawl import Crawl, NoListings
from scraper.journal import Journal
from scraper.loading import LoadedPage
from scraper.politeness import Failed
from scraper.reparse import reparse
from scraper.site import Detail, Paging, Site
from tests.scraper.without_browser import OnePage, crawl_photos, downloader


class Pages:
    """Stands in for the browser: the pages of one search, by the ids of their listings."""

    def __init__(self, base_url: str, *pages: str):
        self.pages = [
            LoadedPage(f"{base_url}/search", "".join(map(CARD.format, page)), "single page", []) for page in pages
        ]

    def load(self, url, max_listings=None):
        yield from self.pages


CARD = '<article class="listing" data-listing-id="{0}"><img class="photo" src="/photos/{0}.jpg"></article>'


def test_a_page_without_listings_is_the_end_unless_others_follow(site, clock, tmp_path):
    fetcher = downloader(clock, site.base_url)
    with Journal(tmp_path / "end") as journal:
        assert Crawl(fetcher.site, journal, [Pages(site.base_url, "ab", "c", "", "")], fetcher).run().fetched == 3
    with Journal(tmp_path / "gap") as journal, pytest.raises(NoListings, match=r"article.listing.*html\.gz"):
        Crawl(fetcher.site, journal, [Pages(site.base_url, "ab", "", "c")], fetcher).run()


def test_one_page_of_known_listings_is_passed_over_and_two_are_the_end(site, clock, tmp_path):
    fetcher = downloader(clock, site.base_url)
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [Pages(site.base_url, "ab", "ba", "c", "c", "c", "d")], fetcher).run()
    assert (stats.fetched, exit_code(stats)) == (3, 0)


def test_another_car_under_a_known_id_is_counted(site, clock, tmp_path):
    first, second = Pages(site.base_url, "ab"), Pages(site.base_url, "ab")
    first.pages.append(replace(second.pages[0], html=second.pages[0].html.replace("/photos/", "/photos/2-")))
    fetcher = downloader(clock, site.base_url)
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [first], fetcher).run()
    assert (stats.fetched, stats.merged, exit_code(stats)) == (4, 2, 5)


@pytest.mark.parametrize("names, merged", [("ab", 0), ("cd", 2)])
def test_another_car_with_an_id_of_another_search_is_counted(names, merged, site, clock, tmp_path):
    """As where the id is the number of a row: each city has a first row."""

    class Cities(Pages):
        def load(self, url, max_listings=None):
            yield self.pages[url.endswith("pune")]

    cities = Cities(site.base_url, "ab", "ab")
    html = cities.pages[1].html
    for old, new in zip("ab", names, strict=True):
        html = html.replace(f"/photos/{old}", f"/photos/{new}")
    cities.pages[1] = replace(cities.pages[1], html=html)
    fetcher = downloader(clock, site.base_url)
    start = fetcher.site.starts[0]
    fetcher.site = replace(fetcher.site, starts=(start, replace(start, url=start.url + "?city=pune", city="pune")))
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [cities], fetcher).run()
    assert (stats.listings, stats.merged, stats.fetched) == (4, merged, 2 + merged)


class Numbered(Browser):
    """Opens the pages of a numbered search, five listings on each; some fail."""

    def __init__(self, site: Site, *failing: int):
        self.site, self.failing = site, failing

    def open(self, url: str, is_detail: bool = True, hurry: bool = False, most: int | None = None) -> LoadedPage:
        number = int(url.rpartition("=")[2])
        if number in self.failing:
            raise Failed("status 500: the site answered with a page titled 'error'")
        html = "".join(CARD.format(5 * number + place) for place in range(5)) if number < 5 else ""
        return LoadedPage(url, html, "single page", [])


@pytest.mark.parametrize("failing, fetched, lost", [((3,), 15, 1), ((2, 3), 5, 2), ((1,), 0, 1)])
def test_numbered_pages_after_one_that_fails_are_read(failing, fetched, lost, site, clock, tmp_path):
    fetcher = downloader(clock, site.base_url)
    start = replace(fetcher.site.starts[0], url=f"{site.base_url}/search?page={{page}}")
    fetcher.site = replace(fetcher.site, starts=(start,), paging=Paging("numbered"))
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [Numbered(fetcher.site, *failing)], fetcher).run()
        reasons = [line["reason"] for line in journal.read_pages() if line["status"] == "failed"]
    assert [reason[-8:] for reason in reasons] == [f"(page {number})" for number in failing]
    assert (stats.fetched, stats.pages_lost.total(), exit_code(stats)) == (fetched, lost, 1)


@pytest.mark.parametrize("stand_ins, code", [("abc", 5), ("ab", 0)])
def test_the_same_bytes_under_addresses_of_several_listings_are_counted(stand_ins, code, site, clock, tmp_path):
    search, fetcher = Pages(site.base_url, "abcd"), downloader(clock, site.base_url)
    html = re.sub(f"/photos/([{stand_ins}]).jpg", r"/good.jpg?car=\1", search.pages[0].html)
    search.pages = [replace(search.pages[0], html=html)]
    for _ in range(2):  # the second time all are known
        with Journal(tmp_path) as journal:
            stats = Crawl(fetcher.site, journal, [search], fetcher).run()
        assert exit_code(stats) == code
        assert stats.shared == ({f"{site.base_url}/good.jpg?car=a": 3} if code else {})


@pytest.mark.parametrize("id_, count", [("@data-ids", 2), ("@data-listing-id", 0), (None, 0)])
def test_listings_in_which_id_finds_nothing_are_said(id_, count, site, clock, tmp_path):
    fetcher = downloader(clock, site.base_url)
    fetcher.site = replace(fetcher.site, selectors=replace(fetcher.site.selectors, id=id_))
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [Pages(site.base_url, "ab")], fetcher).run()
    assert stats.without_id == count
    assert (f"warning: {count} listings without an id" in closing_table(stats, "raw")) == bool(count)


class OwnPage(OnePage):
    """A search that leads to one listing's own page."""

    def __init__(self, base_url: str):
        super().__init__(f"{base_url}/search")
        link = '<article class="listing" data-listing-id="1"><a href="/car/1">more</a></article>'
        own = (
            '<p class="main"><img src="/photos/1.jpg"></p><p class="all"><img src="/photos/1.jpg"><img src="/good.jpg">'
        )
        self.page, self.own = replace(self.page, html=link), LoadedPage(f"{base_url}/car/1", own, "single page", [])
        self.opened = 0

    def open(self, url: str, is_detail: bool = True, hurry: bool = False) -> LoadedPage:
        self.opened += 1
        return self.own


def test_pages_read_with_other_settings_are_said_until_they_are_read_again(site, clock, tmp_path):
    browser, fetcher = OwnPage(site.base_url), downloader(clock, site.base_url)
    selectors = replace(fetcher.site.selectors, link="a")

    def crawl(photos: str) -> tuple[int, int]:
        fetcher.site = replace(fetcher.site, selectors=selectors, detail=Detail(photos))
        with Journal(tmp_path) as journal:
            stats = Crawl(fetcher.site, journal, [browser], fetcher).run()
        assert ("1 pages read with other settings: " in closing_table(stats, "raw")) == bool(stats.read_otherwise)
        return exit_code(stats), stats.fetched

    assert [crawl(".main img"), crawl(".main img"), crawl(".all img")] == [(0, 1), (0, 0), (5, 0)]
    with Journal(tmp_path) as journal:
        assert reparse(fetcher.site, journal)["new"] == 1
    assert [crawl(".all img"), crawl(".all img"), browser.opened] == [(0, 1), (0, 0), 1]


AWAY = {
    "the same with a name": ("/used/2-swift", 0),
    "another car of the search": ("/used/3", 1),
    "the folder above": ("/used", 1),
    "a folder of another name": ("/cars/2", 0),
}


@pytest.mark.parametrize("led_to, code", AWAY.values(), ids=AWAY)
def test_where_a_sold_car_leads_is_not_its_page(led_to, code, site, clock, tmp_path):
    search = OwnPage(site.base_url)
    html = "".join(search.page.html.replace('"1"', f'"{n}"').replace("/car/1", f"/used/{n}") for n in (2, 3))
    search.page = replace(search.page, html=html)
    search.open = lambda url, **_: replace(
        search.own, url=site.base_url + led_to if url.endswith("/2") else url, html='<img src="/good.jpg">'
    )
    fetcher = downloader(clock, site.base_url)
    selectors = replace(fetcher.site.selectors, link="a")
    fetcher.site = replace(fetcher.site, selectors=selectors, detail=Detail("img"))
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [search], fetcher).run()
        assert len(journal.outcomes[f"{site.base_url}/good.jpg"].shown_by) == 2 - code
    assert exit_code(stats) == code


@pytest.mark.parametrize(
    "beside, code",
    {
        "<button>View all 24 photos</button>": 5,
        "<a href='#g'>+19 photos</a>": 5,
        "<button>View all 1 photos</button>": 0,
        "<article class=listing><a>All 24 photos</a></article>": 0,
        "<a>24 photos of Pune</a>": 0,
    }.items(),
)
def test_a_gallery_that_promises_more_photos_is_said(beside, code, site, clock, tmp_path):
    search = OwnPage(site.base_url)
    search.own = replace(search.own, html='<p class="main"><img src="/photos/1.jpg"></p>' + beside)
    fetcher = downloader(clock, site.base_url)
    selectors = replace(fetcher.site.selectors, link="a")
    fetcher.site = replace(fetcher.site, selectors=selectors, detail=Detail(".main img"))
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [search], fetcher).run()
    assert (exit_code(stats), stats.fetched) == (code, 1)
    assert ("promises more photos" in closing_table(stats, "raw")) == bool(code)


def test_twenty_failures_in_a_row_stop_the_crawl(site, clock, tmp_path):
    photos = [f"/error.jpg?{number}" for number in range(30)]
    with pytest.raises(CrawlStopped, match="20 photos in a row.*status 500"):
        crawl_photos(clock, site, tmp_path, *photos, attempts=1)
    assert site.counts["/error.jpg"] == 20


def test_a_ban_is_told_from_photos_that_are_forbidden(site, clock, tmp_path):
    """Twenty refusals in a row stop the crawl, and are not final, where a photo is refused that was given before."""
    banned = [f"/banned.jpg?{number}" for number in range(30)]
    with pytest.raises(CrawlStopped, match="20 photos in a row.*status 403"):
        crawl_photos(clock, site, tmp_path / "ban", *banned)
    with pytest.raises(CrawlStopped):  # it lasts; what was given is known from the run before
        crawl_photos(clock, site, tmp_path / "ban", *banned)
    with Journal(tmp_path / "ban") as journal:
        assert Counter(known.status for known in journal.outcomes.values()) == {"fetched": 5, "failed": 20}
    site.counts["/banned.jpg"] = -99
    code, lines = crawl_photos(clock, site, tmp_path / "ban", *banned)
    assert (code, {line["status"] for line in lines.values()}) == (0, {"fetched"})
    code, lines = crawl_photos(
        clock, site, tmp_path / "forbidden", "/good.jpg", *(f"/forbidden.jpg?{n}" for n in range(30))
    )
    assert (code, Counter(line["status"] for line in lines.values())) == (5, {"fetched": 1, "refused": 30})


def test_an_address_of_an_earlier_crawl_that_expired_is_no_sign_of_a_ban(site, clock, tmp_path):
    crawl_photos(clock, site, tmp_path, "/banned.jpg?signature=1")
    site.counts["/banned.jpg"] = 99
    code, lines = crawl_photos(clock, site, tmp_path, *(f"/forbidden.jpg?{n}" for n in range(25)))
    assert (code, Counter(line["status"] for line in lines.values())) == (5, {"fetched": 1, "refused": 25})
    with pytest.raises(CrawlStopped):  # a photo of an earlier crawl at the address that a page shows now is one
        crawl_photos(clock, site, tmp_path, "/banned.jpg?signature=2", *(f"/forbidden.jpg?more={n}" for n in range(25)))


def test_twenty_pages_in_a_row_that_are_not_opened_stop_the_crawl(site, clock, tmp_path):
    class NoPages:
        def load(self, url, max_listings=None):
            raise Failed("status 403: the site answered with a page titled 'Blocked'")

    fetcher = downloader(clock, site.base_url)
    fetcher.site = replace(fetcher.site, starts=fetcher.site.starts * 30)
    with Journal(tmp_path) as journal:
        crawl = Crawl(fetcher.site, journal, [NoPages()], fetcher)
        code, said = crawl.finish()
    assert code == 3 and re.match("20 pages in a row .*'Blocked'", said) and crawl.stats.pages_lost.total() == 20
