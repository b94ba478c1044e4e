"""One crawl: from start pages to stored photos and a journal that knows what became of every URL."""

import re
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from urllib.parse import urlsplit

from scraper import pages
from scraper.browser import Browser
from scraper.closing import INTERRUPTED, NOTHING_FOUND, CrawlStopped, Report, Stats, exit_code
from scraper.download import Downloader
from scraper.journal import Journal, archive_page
from scraper.loading import PAST_THE_END, LoadedPage
from scraper.pages import Listing
from scraper.photos import LimitReached, Photos
from scraper.politeness import Failed, Refused
from scraper.site import Site, Start, named_selectors

MAX_BARE_PAGES_IN_A_ROW = 3  # a listing without photos happens; three in a row are a changed layout
LEADS_ON, LEADS_BACK = "the last page of a search leads on", "the first page of a search leads back"
# Where a site leads that has no page of this listing for us.
LED_AWAY = re.compile(r"log-?in|sign-?in|captcha|consent|error|expired|not-?found|(^|/)404", re.IGNORECASE)


class NoListings(CrawlStopped):
    """A page gave nothing: the site changed its layout, or shows something else to robots."""

    exit_code = NOTHING_FOUND


class Crawl:
    """One crawl of `site` into the folder of `journal`.

    With several `browsers` each opens pages, and fetches their photos, in a thread of its own. `run()` may be left by
    CrawlStopped or KeyboardInterrupt; `stats` then tells how far it came, and the same crawl started again goes on
    there. `limit` ends it after that many fetched photos.
    """

    def __init__(
        self,
        site: Site,
        journal: Journal,
        browsers: Sequence[Browser],
        downloader: Downloader,
        limit: int | None = None,
        report: Report = lambda stats, text: None,
    ):
        self.site, self.journal, self.browsers, self.downloader = site, journal, browsers, downloader
        self.limit, self.report = limit, report
        self._photos = Photos(site, journal, downloader, limit, report)
        self.stats, self._shared = self._photos.stats, self._photos.lock  # the lock guards all below, too
        self._answers_404: set[str] = set()  # hosts that answer so to every page, and show it
        self._bare_pages_in_a_row = 0
        self._later_pages = self._new_pages = 0  # after the first of a search
        self._looks: dict[object, tuple[int, int]] = {}  # of listings
        self._misses = dict.fromkeys(site.fields, 0)
        self._unclicked = dict.fromkeys(site.paging.click)  # what no page had so far
        self._pool: ThreadPoolExecutor | None = None  # with several browsers
        self._under_way: set[Future] = set()
        self._own = threading.local()  # `browser`: that of the thread

    def run(self) -> Stats:
        """Crawl all start entries, then try again what failed in earlier runs. Raises as the class says."""
        started = time.monotonic()
        try:
            if len(self.browsers) == 1:
                self._own.browser = self.browsers[0]
                for start in self.site.starts:
                    self._crawl_start(start)
            else:
                self._work_side_by_side()
            self._photos.retry_earlier_failures()
        except LimitReached:
            pass
        finally:
            self.stats.seconds = round(time.monotonic() - started, 2)
            for name, misses in self._misses.items():
                if misses and misses == self.stats.listings:
                    self.stats.warnings.append(f"fields.{name} = {self.site.fields[name]!r} found nothing anywhere")
            if self.stats.pages:
                self.stats.warnings += map("paging.click = {!r} found nothing anywhere".format, self._unclicked)
            self.stats.shared = self._photos.shared()
            if self._later_pages and not self._new_pages:
                kind = "the second page of each search shows the same listings as the first"
                self._warn(kind, kind)
        return self.stats

    def finish(self) -> tuple[int, str]:
        """Run the crawl; return its exit code, and in words what ended it early, if anything did."""
        try:
            self.run()
        except CrawlStopped as stop:
            return stop.exit_code, str(stop)
        except KeyboardInterrupt:
            return INTERRUPTED, "interrupted; the same command goes on where it stopped"
        return exit_code(self.stats), ""

    def _work_side_by_side(self) -> None:
        """Work with all browsers at once; whatever ends one of them, or us, ends all."""
        browsers, starts = iter(self.browsers), iter(self.site.starts)

        def take_browser() -> None:
            self._own.browser = next(browsers)

        with ThreadPoolExecutor(len(self.browsers), initializer=take_browser) as self._pool:
            try:
                while True:
                    # listings' own pages come before another search
                    while len(self._under_way) < len(self.browsers) and (start := next(starts, None)):
                        self._do(partial(self._crawl_start, start))
                    with self._shared:
                        under_way = self._under_way.copy()
                    if not under_way:
                        return
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    with self._shared:
                        self._under_way -= done
            except BaseException:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self.downloader.stop()
                for browser in self.browsers:
                    browser.give_up()
                raise

    def _do(self, task: Callable[[], None]) -> None:
        """Do a task now, or with several browsers in the thread of whichever is free first."""
        if not self._pool:
            task()
            return
        with self._shared:
            self._under_way.add(self._pool.submit(task))

    def _crawl_start(self, start: Start) -> None:
        known: set[object] = set()
        first = last = None  # pages with listings
        is_stale = False  # whether the page before showed known listings only
        bare: str | None = None  # what to say of a page without listings if another with listings comes after it
        try:
            for number, page in enumerate(self._own.browser.load(start.url, self.limit)):
                if isinstance(page, Failed):  # those after it may be well
                    self._photos.lose_page(start.url, page)
                    continue
                self._archive(page, start)
                listings = self._read_page(page, first)
                if not listings and not bare and first and not pages.is_empty_search(page.html, self.site):
                    bare = self._nothing_on(page, "selectors.listing")
                    continue
                fresh = [listing for listing in listings if not self._is_known(listing, known)]
                if number:
                    with self._shared:
                        self._later_pages += bool(listings)
                        self._new_pages += bool(fresh)
                # past its last page a site shows nothing, or the last page once more; a page may also be sorted anew
                if not fresh and (not listings or is_stale):
                    break
                is_stale = not fresh
                if page.back and not number:
                    self._warn(f"{page.url}: {LEADS_BACK}: {page.back!r}", LEADS_BACK)
                if bare:
                    raise NoListings(bare)
                first, last = first or page, page
                looks = {key: self._look_of(listing) for listing in fresh if (key := _key(listing))}
                self._looks.update(looks)
                known.update(looks)
                self._count(fresh, page)
                self._collect(fresh, page, start)
            if number + 1 == self.site.paging.max_pages:
                self._warn(f"{start.url}: stopped after paging.max_pages, there may be more", "stopped at a bound")
            elif last and last.more and not is_stale and not pages.is_empty_search(page.html, self.site):
                # what paging.next finds on a first page, it finds on the others as long as there are any
                if number and self.site.paging.kind == "next":
                    return
                self._warn(f"{last.url}: {LEADS_ON}: {last.more!r}", LEADS_ON)
        except (Refused, Failed) as error:
            self._photos.lose_page(start.url, error)

    def _collect(self, listings: list[Listing], page: LoadedPage, start: Start) -> None:
        """Fetch the photos of listings: from the pages of their own, where the site file says so, else from `page`."""
        own_pages, here = [], listings
        if self.site.detail:
            own_pages = [listing for listing in listings if listing.link]
            here = [listing for listing in listings if not listing.link and listing.photos]
            with self._shared:
                self.stats.without_address += len(listings) - len(own_pages)

        def take(hurry: bool) -> tuple[LoadedPage, list[Listing]]:
            again = self._own.browser.open(page.asked, is_detail=False, hurry=hurry)
            self._archive(again, start)
            return again, pages.extract_listings(again.html, again.url, self.site)

        self._photos.fetch_all(here, page, start, take)
        for listing in own_pages:
            self._do(partial(self._open_and_fetch, listing, page, start))

    def _count(self, listings: list[Listing], page: LoadedPage) -> None:
        with self._shared:
            self.stats.pages += 1
            self.stats.listings += len(listings)
            self.stats.merged += sum(listing.cards - 1 for listing in listings)
            for name in self._misses:
                self._misses[name] += sum(name not in listing.fields for listing in listings)
            self.report(self.stats, f"{page.url}: {len(listings)} listings ({page.stopped_by})")
        if page.stopped_by == "bound" and not self.limit:
            self._warn(f"{page.url}: stopped at a bound of [paging], there may be more", "stopped at a bound")
        if page.odd:
            self._warn(f"{page.url}: {page.odd}", page.odd)

    def _is_known(self, listing: Listing, known: Collection[object]) -> bool:
        """Tell whether a page of this search showed this listing; count another car that has the id of one."""
        if not (look := self._looks.get(_key(listing))):
            return False
        link, _ = self._look_of(listing)
        photos = {hash(self.site.name_of(url)) for url in listing.photos}
        is_photo_known = look[1] in photos if photos else link == look[0]
        is_other = not is_photo_known and (link != look[0] or not listing.link)
        with self._shared:
            self.stats.merged += is_other
        return not is_other and _key(listing) in known

    def _look_of(self, listing: Listing) -> tuple[int, int]:
        """Return hashes of a listing's link and first photo; without photos the link's path must do."""
        link = self.site.name_of(listing.link or "") if listing.photos else _path(listing.link or "")
        return hash(link), hash(self.site.name_of(next(iter(listing.photos), "")))

    def _warn(self, text: str, kind: str) -> None:
        with self._shared:
            self.stats.warnings.append(text)
            self.stats.odd_pages[kind] += 1

    def _archive(self, page: LoadedPage, start: Start, link: str | None = None) -> None:
        """Keep the page before anything is read from it. Raises Refused if the browser was led where it may not go."""
        self.downloader.check(page.url)
        self.downloader.use_cookies(page.cookies)
        with self._shared:
            for selector in page.clicked:
                self._unclicked.pop(selector, None)
            archived = archive_page(self.journal.folder, page.html)
            line = {"url": page.url, "status": "loaded", "reason": page.stopped_by, "archive": archived.name}
            line |= {"odd": page.odd} if page.odd else {}
            self.journal.append_page(line | {"start": asdict(start), "listing_link": link})

    def _read_page(self, page: LoadedPage, first: LoadedPage | None) -> list[Listing]:
        """Return the listings of a page of a search that began with `first` (None when this is it).

        Raises NoListings when there should be some, or photos in them, and Failed where the site refused to show them.
        """
        listings = pages.extract_listings(page.html, page.url, self.site)
        if page.http_status in PAST_THE_END:
            if listings and (first is None or first.http_status == page.http_status):
                self._answers_404.add(urlsplit(page.url).netloc)
            elif first is None:
                raise Failed(f"status {page.http_status}: a page titled {pages.title_of(page.html)!r}")
            else:
                if listings:
                    kind = f"status {page.http_status}, but it shows listings"
                    self._warn(f"{page.url}: {kind}: not taken", kind)
                return []
        if listings and first and pages.is_empty_search(page.html, self.site):
            kind = "paging.empty shows beside listings"
            text = f"{page.url}: {kind}, so the search ends: {len(listings)} listings left out"
            # what the first page shows, too, does not mark the end
            if pages.is_empty_search(first.html, self.site):
                self._warn(text, kind)
            else:
                self.stats.warnings.append(text)
            return []
        if listings:
            if not self.site.detail and not any(listing.photos for listing in listings):
                raise NoListings(self._nothing_on(page, "selectors.photos"))
            return listings
        self._check_challenge(page)
        if page.asked and _path(page.asked) != _path(page.url):
            raise Failed(f"led to {page.url}, which shows no listing: a log-in page, perhaps, or the session expired")
        if not pages.is_end_of_search(page.html, first and first.html, self.site):
            raise NoListings(self._nothing_on(page, "selectors.listing"))
        return []

    def _check_challenge(self, page: LoadedPage) -> None:
        is_no_answer = page.http_status in (202, 204, 205)
        if (is_no_answer or pages.is_challenge(page.html)) and not pages.is_empty_search(page.html, self.site):
            raise Failed(
                f"turned away: {page.url} shows a page titled {pages.title_of(page.html)!r} (status "
                f"{page.http_status}), which asks who is there or turns robots away; go slower (delay), or ask the "
                "site's owner"
            )

    def _nothing_on(self, page: LoadedPage, name: str) -> str:
        archived = archive_page(self.journal.folder, page.html)
        status = f" (status {page.http_status})" if page.http_status else ""
        text = (
            f"{page.url} gave nothing: {name} = {named_selectors(self.site)[name]!r} finds nothing on the page titled "
            f"{pages.title_of(page.html)!r}{status}. It is kept in {archived}: look at it (zcat), correct the site "
            f"file, and see what each selector finds with: python -m scraper check {self.site.source}."
        )
        besides = [page.odd] if page.odd else []
        besides += map("paging.click = {!r} found nothing so far".format, self._unclicked)
        return " ".join([text, *map("Besides, {}.".format, besides), *pages.hints(page.html, name.partition(".")[0])])

    def _open_and_fetch(self, listing: Listing, search: LoadedPage, start: Start) -> None:
        """Fetch the photos of one listing from its own page, to which the page `search` leads."""
        name = self.site.name_of(listing.link)
        # also as it was collected before labels were noted
        collected = self.journal.collected.get((name, start.label), self.journal.collected.get((name, None)))
        if collected is not None and self._photos.is_judged_the_same(collected.get("judged_by")):
            with self._shared:
                self.stats.known_refused.update(collected.get("refused", {}))
                self.stats.read_otherwise += collected.get("read_by", self.site.reading) != self.site.reading
            return

        def take(hurry: bool = False) -> tuple[LoadedPage, list[Listing]]:
            own_page = self._own.browser.open(listing.link, hurry=hurry)
            self._check_own_page(own_page, listing.link, search)
            self._archive(own_page, start, listing.link)
            full = pages.extract_detail(own_page.html, own_page.url, self.site, replace(listing, photos=()))
            return own_page, [full]

        try:
            own_page, (full,) = take()
            if not full.photos or pages.CHALLENGE.search(pages.title_of(own_page.html)):
                self._check_challenge(own_page)
        except (Refused, Failed) as error:
            self._photos.lose_page(listing.link, error)
            return
        odd = [own_page.odd] if own_page.odd else []
        if pages.lists_more_photos(own_page.html, own_page.url, full.photos):
            odd.append("a script on a listing's own page lists more photos than detail.photos finds")
        if pages.promised_photos(own_page.html, self.site) > len(full.photos) > 0:
            odd.append("a button on a listing's own page promises more photos than detail.photos finds")
        if listing.photos and not full.photos:
            odd.append("no detail.photos on a listing's own page, those of the search page were taken")
            full = replace(full, photos=listing.photos)
        for kind in odd:
            self._warn(f"{own_page.url}: {kind}", kind)
        with self._shared:
            self.stats.pages += 1
            bare_pages = self._bare_pages_in_a_row = 0 if full.photos else self._bare_pages_in_a_row + 1
        if bare_pages >= MAX_BARE_PAGES_IN_A_ROW:
            raise NoListings(self._nothing_on(own_page, "detail.photos"))
        self._photos.fetch_all([full], own_page, start, take)
        with self._shared:
            if not odd and not full.bare and (summary := self._photos.summary(full)) is not None:
                line = {"url": name, "status": "collected", "label": start.label, "read_by": self.site.reading}
                self.journal.append_page(line | summary)

    def _check_own_page(self, page: LoadedPage, link: str, search: LoadedPage) -> None:
        """Raises Failed where a site answers with something else than the listing's own page.

        That may be the page of another car of the search, or of the folder in which the car was.
        """
        led_to, place = urlsplit(page.url), self._place(page.url)
        if page.http_status in PAST_THE_END and led_to.netloc not in self._answers_404:
            raise Failed(f"status {page.http_status}: a page titled {pages.title_of(page.html)!r}")
        elsewhere = {_path(search.url), _path(search.asked or search.url), ""}
        is_away = _path(page.url) in elsewhere or LED_AWAY.search(led_to.path)
        is_away = is_away or re.match(rf"{re.escape(_path(page.url))}/.*\d", _path(link))
        is_other = place != self._place(link) and place in self._beside(link, search)
        if is_other or is_away and _path(link) != _path(page.url):
            raise Failed(f"led to {page.url}, which is not the listing's own page: sold, perhaps, or a log-in is asked")

    def _place(self, url: str) -> tuple[str, str, str]:
        """Return the path, query and fragment of a page."""
        parts = urlsplit(self.site.name_of(url))
        return parts.path.rstrip("/"), parts.query, parts.fragment

    def _beside(self, link: str, search: LoadedPage) -> set[tuple[str, str, str]]:
        """Return the places of the listings' own pages to which a page of a search leads, in the folder of `link`."""
        links = (listing.link for listing in pages.extract_listings(search.html, search.url, self.site) if listing.link)
        folder = _path(link).rpartition("/")[0]
        return {self._place(other) for other in links if _path(other).rpartition("/")[0] == folder}


def _key(listing: Listing) -> object:
    """Return what tells a listing from others of a search; None where nothing does."""
    return listing.id or listing.photos or None


def _path(url: str) -> str:
    return urlsplit(url).path.rstrip("/")
