"""One crawl: from start pages to stored photos and a journal that knows what became of every URL."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from scraper.browser import Browser, LoadedPage, PageFailed
from scraper.download import Downloader, Photo
from scraper.journal import Journal, archive_page, store_photo
from scraper.pages import Listing, extract_detail, extract_listings, find_refusal, is_empty_search, is_end_of_search
from scraper.politeness import Failed, Refused
from scraper.site import Site, Start, named_selectors

RESULT_KEYS = {"status", "reason", "sha256", "bytes", "width", "height", "final_url", "time"}
MAX_FAILURES_IN_A_ROW = 20
PAST_THE_END = (404, 410)  # with these a page that was numbered too high is answered
MAX_BARE_PAGES_IN_A_ROW = 3  # a listing without photos happens; three in a row are a changed layout


class CrawlStopped(Exception):
    """The crawl ended before its end because going on would not help; the text says why and what to do."""


class NoListings(CrawlStopped):
    """A page gave nothing: the site changed its layout, or shows something else to robots."""


@dataclass
class Stats:
    """What a crawl did. Counts; `bytes` of photos, `seconds` of wall clock."""

    pages: int = 0
    listings: int = 0
    found: int = 0  # photo URLs seen on pages, each once
    fetched: int = 0
    known: int = 0  # had their fate from an earlier run
    refused: Counter = field(default_factory=Counter)  # reason -> photos
    failed: Counter = field(default_factory=Counter)
    pages_lost: Counter = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict:
        return vars(self) | {"photos_per_second": round(self.fetched / self.seconds, 2) if self.seconds else 0.0}


class _LimitReached(Exception):
    pass


class _Tasks:
    """What is still to do, newest first; a task may add others. Each is called with the browser that is to do it."""

    def __init__(self, tasks: Sequence[Callable[[Browser], None]]):
        self._waiting = list(reversed(tasks))
        self._changed = threading.Condition()
        self._under_way = 0
        self._is_ended = False

    def add(self, task: Callable[[Browser], None]) -> None:
        with self._changed:
            self._waiting.append(task)
            self._changed.notify()

    def end(self) -> None:
        """Give out no more tasks."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def work(self, browser: Browser) -> None:
        """Do tasks with `browser` until none is waiting or under way with another browser."""
        while task := self._take():
            try:
                task(browser)
            finally:
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()

    def _take(self) -> Callable[[Browser], None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._under_way or self._is_ended)
            if self._is_ended or not self._waiting:
                return None
            self._under_way += 1
            return self._waiting.pop()


class Crawl:
    """One crawl of `site` into the folder of `journal`; `report(stats, text)` hears of each photo and page.

    With several `browsers` each opens pages, and fetches their photos, in a thread of its own. `run()` may be left by
    StorageError, CrawlStopped, BrowserError or KeyboardInterrupt; `stats` then tells how far it came, and the same
    crawl started again goes on there. `limit` ends it after that many fetched photos.
    """

    def __init__(
        self,
        site: Site,
        journal: Journal,
        browsers: Sequence[Browser],
        downloader: Downloader,
        limit: int | None = None,
        report: Callable[[Stats, str], None] = lambda stats, text: None,
    ):
        self.site, self.journal, self.browsers, self.downloader = site, journal, browsers, downloader
        self.limit, self.report = limit, report
        self.stats = Stats()
        self._tasks = _Tasks([partial(self._crawl_start, start) for start in site.starts])
        # holds what the threads share: all below, the stats, the journal's folder; never held while a site is asked
        self._shared = threading.Condition(threading.RLock())
        self._in_hand: set[str] = set()  # photo URLs that a thread is fetching now
        self._found: set[str] = set()
        self._handled: set[str] = set()
        self._failures_in_a_row = self._bare_pages_in_a_row = 0
        self._misses = dict.fromkeys(site.fields, 0)

    def run(self) -> Stats:
        """Crawl all start entries, then try again what failed in earlier runs. Raises as the class says."""
        started = time.monotonic()
        try:
            if len(self.browsers) == 1:
                self._tasks.work(self.browsers[0])
            else:
                self._work_side_by_side()
            self._retry_earlier_failures()
        except _LimitReached:
            pass
        finally:
            self.stats.seconds = round(time.monotonic() - started, 2)
            for name, misses in self._misses.items():
                if misses and misses == self.stats.listings:
                    self.stats.warnings.append(f"fields.{name} = {self.site.fields[name]!r} found nothing anywhere")
        return self.stats

    def _work_side_by_side(self) -> None:
        """Work with all browsers at once; whatever ends one of them, or us, ends all."""
        with ThreadPoolExecutor(len(self.browsers)) as pool:
            workers = [pool.submit(self._tasks.work, browser) for browser in self.browsers]
            try:
                for worker in as_completed(workers):
                    worker.result()
            except BaseException:
                self._tasks.end()
                self.downloader.stop()
                for browser in self.browsers:
                    browser.give_up()
                raise

    def _crawl_start(self, start: Start, browser: Browser) -> None:
        known: set[str] = set()
        first: LoadedPage | None = None
        bare: str | None = None  # what to say of a page without listings if another with listings comes after it
        try:
            for number, page in enumerate(browser.load(start.url, self.limit)):
                archived = self._archive(page, start)
                listings = self._read_page(page, archived, first)
                first = first or page
                if not listings and not bare and number and not is_empty_search(page.html, self.site):
                    bare = self._rot(page, "selectors.listing", archived)
                    continue
                fresh = [listing for listing in listings if listing.id is None or listing.id not in known]
                if not fresh:  # past its last page a site shows nothing, or the last page once more
                    return
                if bare:
                    raise NoListings(bare)
                known.update(listing.id for listing in fresh if listing.id)
                self._count(fresh, page)
                self._collect(fresh, page, start, browser)
            if number + 1 == self.site.paging.max_pages:
                self._warn(f"{start.url}: stopped after paging.max_pages, there may be more")
        except (Refused, Failed, PageFailed) as error:
            self._lose_page(start.url, error)

    def _collect(self, listings: list[Listing], page: LoadedPage, start: Start, browser: Browser) -> None:
        refusal = self._refusal(page)
        if not self.site.detail:  # tell the progress bar how much is ahead
            self._find(*(url for listing in listings for url in listing.photos))
        for listing in listings:
            if not self.site.detail or not listing.link:
                self._fetch_all(listing, page, start, refusal)
            elif len(self.browsers) == 1:
                self._open_and_fetch(listing, start, browser)
            else:  # whichever browser is free
                self._tasks.add(partial(self._open_and_fetch, listing, start))

    def _count(self, listings: list[Listing], page: LoadedPage) -> None:
        with self._shared:
            self.stats.pages += 1
            self.stats.listings += len(listings)
            for name in self._misses:
                self._misses[name] += sum(name not in listing.fields for listing in listings)
            self.report(self.stats, f"{page.url}: {len(listings)} listings ({page.stopped_by})")
        if page.stopped_by == "bound" and not self.limit:
            self._warn(f"{page.url}: stopped at a bound of [paging], there may be more")

    def _warn(self, text: str) -> None:
        with self._shared:
            self.stats.warnings.append(text)

    def _lose_page(self, url: str, error: Exception) -> None:
        status = "refused" if isinstance(error, Refused) else "failed"
        with self._shared:
            self.stats.pages_lost[kind_of(error)] += 1
            self.journal.append_page({"url": url, "status": status, "reason": str(error)})
            self.report(self.stats, f"{url}: not opened: {error}")

    def _archive(self, page: LoadedPage, start: Start, link: str | None = None) -> Path:
        """Keep the page before anything is read from it. Raises Refused if the browser was led where it may not go."""
        self.downloader.check(page.url)
        self.downloader.use_cookies(page.cookies)
        with self._shared:
            archived = archive_page(self.journal.folder, page.html)
            line = {"url": page.url, "status": "loaded", "reason": page.stopped_by, "archive": archived.name}
            self.journal.append_page(line | {"start": asdict(start), "listing_link": link})
        return archived

    def _read_page(self, page: LoadedPage, archived: Path, first: LoadedPage | None) -> list[Listing]:
        """Give the listings of a page of a search that began with `first` (None when this is it).

        Raises NoListings when there should be some, or photos in them.
        """
        listings = extract_listings(page.html, page.url, self.site)
        if not listings and page.asked and _path(page.asked) != _path(page.url):
            raise Failed(f"led to {page.url}, which shows no listing: a log-in page, perhaps, or the session expired")
        if not listings and (first is None or page.http_status not in PAST_THE_END):
            if not is_end_of_search(page.html, first and first.html, self.site):
                raise NoListings(self._rot(page, "selectors.listing", archived))
        elif listings and not self.site.detail and not any(listing.photos for listing in listings):
            raise NoListings(self._rot(page, "selectors.photos", archived))
        return listings

    def _rot(self, page: LoadedPage, name: str, archived: Path) -> str:
        return (
            f"{page.url} gave nothing: {name} = {named_selectors(self.site)[name]!r} finds nothing on it. The page as "
            f"we got it is in {archived}; look at it (zcat), mend the site file, and see what each selector finds "
            f"with: python -m scraper check {self.site.name}"
        )

    def _open_and_fetch(self, listing: Listing, start: Start, browser: Browser) -> None:
        """Fetch the photos of one listing from its own page."""
        if listing.link in self.journal.collected:
            return
        try:
            own_page = browser.open(listing.link)
            archived = self._archive(own_page, start, listing.link)
        except (Refused, Failed, PageFailed) as error:
            self._lose_page(listing.link, error)
            return
        listing = extract_detail(own_page.html, own_page.url, self.site, listing)
        with self._shared:
            self.stats.pages += 1
            bare_pages = self._bare_pages_in_a_row = 0 if listing.photos else self._bare_pages_in_a_row + 1
        if bare_pages >= MAX_BARE_PAGES_IN_A_ROW:
            raise NoListings(self._rot(own_page, "detail.photos", archived))
        self._fetch_all(listing, own_page, start, self._refusal(own_page))
        with self._shared:
            if listing.photos and all(self.journal.fates[url].is_final for url in listing.photos):
                self.journal.append_page({"url": listing.link, "status": "collected"})

    def _refusal(self, page: LoadedPage) -> str | None:
        word = find_refusal(page.html) if self.site.politeness.respect_noai else None
        return f"the page says {word}" if word else None

    def _fetch_all(self, listing: Listing, page: LoadedPage, start: Start, refusal: str | None) -> None:
        self._find(*listing.photos)
        for url in listing.photos:
            about = {"url": url, "page_url": page.url, "listing": listing.id, "label": start.label, "city": start.city}
            self._photo(about | listing.fields, refusal)

    def _find(self, *urls: str) -> None:
        with self._shared:
            self._found.update(urls)
            self.stats.found = len(self._found)

    def _photo(self, about: dict, refusal: str | None = None) -> None:
        """See that one photo URL has its fate: fetched now, known from before, or shown by a second listing."""
        url = about["url"]
        with self._shared:
            self._shared.wait_for(lambda: url not in self._in_hand)
            if self._is_settled(url, about):
                return
            self._in_hand.add(url)
        try:
            if refusal:
                raise Refused(refusal)
            photo = self.downloader.fetch(url, about["page_url"])
            if photo.sha256 in self.journal.forgotten:
                raise Refused("forgotten: somebody asked for this photo to be removed")
            self._keep(photo, about)
        except (Refused, Failed) as error:
            self._record_loss(about, error)
        finally:
            with self._shared:
                self._in_hand.discard(url)
                self._shared.notify_all()

    def _is_settled(self, url: str, about: dict) -> bool:
        """Tell whether `url` need not be asked for; note it when another listing shows a photo that we have."""
        fate = self.journal.fates.get(url)
        is_new_here = url not in self._handled
        self._handled.add(url)
        if not fate or not fate.is_final:
            return not is_new_here  # it failed a moment ago
        self.stats.known += is_new_here
        if fate.status == "fetched" and (about["listing"], about["label"]) not in fate.shown_by:
            known = self.journal.newest_line(url)
            self.journal.append({**known, **about, "reason": "shown by another listing too"})
        return True

    def _keep(self, photo: Photo, about: dict) -> None:
        moved = {"final_url": photo.final_url} if photo.final_url != about["url"] else {}
        size = {"bytes": len(photo.content), "width": photo.width, "height": photo.height}
        with self._shared:
            if self.limit and self.stats.fetched >= self.limit:
                raise _LimitReached  # another browser was quicker
            # bytes first: after a kill between the two, the same bytes come to the same name once more
            store_photo(self.journal.folder, photo.sha256, photo.extension, photo.content)
            self.journal.append(about | {"status": "fetched", "reason": None, "sha256": photo.sha256} | size | moved)
            self._failures_in_a_row = 0
            self.stats.fetched += 1
            self.stats.bytes += len(photo.content)
            self.report(self.stats, "")
            if self.limit and self.stats.fetched >= self.limit:
                raise _LimitReached

    def _record_loss(self, about: dict, error: Refused | Failed) -> None:
        is_final = isinstance(error, Refused)
        nothing = {"sha256": None, "bytes": None, "width": None, "height": None}
        with self._shared:
            self.journal.append(about | {"status": "refused" if is_final else "failed", "reason": str(error)} | nothing)
            (self.stats.refused if is_final else self.stats.failed)[kind_of(error)] += 1
            self.report(self.stats, "")
            failures = self._failures_in_a_row = 0 if is_final else self._failures_in_a_row + 1
        if failures >= MAX_FAILURES_IN_A_ROW:
            raise CrawlStopped(
                f"{MAX_FAILURES_IN_A_ROW} photos in a row could not be had, the last because: {error}. The site may "
                "be down or have had enough of us; run the same command again later, it goes on where it stopped"
            )

    def _retry_earlier_failures(self) -> None:
        """Pages change: what failed in an earlier run may no longer be shown anywhere."""
        left = [url for url, fate in self.journal.fates.items() if not fate.is_final and url not in self._handled]
        self._find(*left)
        for url in left:
            line = self.journal.newest_line(url)
            self._photo({key: value for key, value in line.items() if key not in RESULT_KEYS})


def _path(url: str) -> str:
    return urlsplit(url).path.rstrip("/")


def kind_of(error: Exception) -> str:
    """Give what a reason has in common with others of its kind: the part before the colon."""
    return str(error).partition(":")[0]
