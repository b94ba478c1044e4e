"""One crawl: from start pages to stored photos and a journal that knows what became of every URL."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from urllib.parse import urlsplit

from scraper.addresses import without_parameters
from scraper.browser import Browser
from scraper.closing import Stats, kind_of
from scraper.download import Downloader, Photo
from scraper.journal import Journal, archive_page, store_photo
from scraper.loading import PAST_THE_END, LoadedPage
from scraper.pages import (
    CHALLENGE,
    SHARED_BY,
    Listing,
    count_unread,
    extract_detail,
    extract_listings,
    find_refusal,
    hints,
    is_challenge,
    is_empty_search,
    is_end_of_search,
    title_of,
)
from scraper.pictures import DECODABLE
from scraper.politeness import ROBOTS_FORBID, Failed, Refused
from scraper.site import Site, Start, named_selectors
from scraper.tasks import Tasks

RESULT_KEYS = {"status", "reason", "sha256", "bytes", "width", "height", "final_url", "time", "asked", "judged_by"}
MAX_FAILURES_IN_A_ROW = 20
EXPIRED = ("status 400", "status 401", "status 403", "status 404", "status 410")  # what a signed address becomes
MAX_BARE_PAGES_IN_A_ROW = 3  # a listing without photos happens; three in a row are a changed layout


class CrawlStopped(Exception):
    """The crawl ended before its end because going on would not help; the text says why and what to do."""


class NoListings(CrawlStopped):
    """A page gave nothing: the site changed its layout, or shows something else to robots."""


class _LimitReached(Exception):
    pass


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
        self._tasks = Tasks([partial(self._crawl_start, start) for start in site.starts])
        # holds what the threads share: all below, the stats, the journal's folder; never held while a site is asked
        self._shared = threading.Condition(threading.RLock())
        self._in_hand: set[str] = set()  # photo URLs that a thread is fetching now
        self._found: set[str] = set()
        self._handled: set[str] = set()
        self._shown: Counter = Counter()  # photo URL -> listings that show it
        self._answers_404: set[str] = set()  # hosts that answer so to every page, and show it
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
            self.stats.shared = Counter({url: count for url, count in self._shown.items() if count >= SHARED_BY})
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
        known: dict[object, tuple[int, int]] = {}
        first: LoadedPage | None = None
        is_stale = False  # whether the page before showed known listings only
        bare: str | None = None  # what to say of a page without listings if another with listings comes after it
        try:
            for number, page in enumerate(browser.load(start.url, self.limit)):
                self._archive(page, start)
                listings = self._read_page(page, first)
                first = first or page
                if not listings and not bare and number and not is_empty_search(page.html, self.site):
                    bare = self._nothing_on(page, "selectors.listing")
                    continue
                fresh = [listing for listing in listings if not self._is_known(listing, known)]
                # past its last page a site shows nothing, or the last page once more; a page may also be sorted anew
                if not fresh and (not listings or is_stale):
                    return
                is_stale = not fresh
                if bare:
                    raise NoListings(bare)
                known.update((key, self._look_of(listing)) for listing in fresh if (key := _key(listing)))
                self._count(fresh, page)
                self._collect(fresh, page, start, browser)
            if number + 1 == self.site.paging.max_pages:
                self._warn(f"{start.url}: stopped after paging.max_pages, there may be more", "stopped at a bound")
        except (Refused, Failed) as error:
            self._lose_page(start.url, error)

    def _collect(self, listings: list[Listing], page: LoadedPage, start: Start, browser: Browser) -> None:
        own_pages = [listing for listing in listings if self.site.detail and listing.link]
        here = [listing for listing in listings if not (self.site.detail and listing.link)]

        def take_again(hurry: bool) -> tuple[LoadedPage, list[Listing]]:
            again = browser.open(page.asked, is_detail=False, hurry=hurry)
            self._archive(again, start)
            return again, extract_listings(again.html, again.url, self.site)

        self._fetch_all(here, page, start, take_again)
        for listing in own_pages:
            if len(self.browsers) == 1:
                self._open_and_fetch(listing, start, browser)
            else:  # whichever browser is free
                self._tasks.add(partial(self._open_and_fetch, listing, start))

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

    def _is_known(self, listing: Listing, known: dict[object, tuple[int, int]]) -> bool:
        """Tell whether a page before showed this listing; count another car that has the id of one."""
        look = known.get(_key(listing))
        link = self._look_of(listing)[0]
        photos = {hash(self._key_of(url)) for url in listing.photos}
        is_photo_known = look is not None and (look[1] in photos if photos else link == look[0])
        is_other = look is not None and not is_photo_known and (link != look[0] or not listing.link)
        self.stats.merged += is_other
        return look is not None and not is_other

    def _look_of(self, listing: Listing) -> tuple[int, int]:
        """Return hashes of a listing's link and first photo; without photos the link's path must do."""
        link = self._key_of(listing.link or "") if listing.photos else _path(listing.link or "")
        return hash(link), hash(self._key_of(next(iter(listing.photos), "")))

    def _warn(self, text: str, kind: str) -> None:
        with self._shared:
            self.stats.warnings.append(text)
            self.stats.odd_pages[kind] += 1

    def _lose_page(self, url: str, error: Exception) -> None:
        status = "refused" if isinstance(error, Refused) else "failed"
        with self._shared:
            self.stats.pages_lost[kind_of(error)] += 1
            self.journal.append_page({"url": url, "status": status, "reason": str(error)})
            self.report(self.stats, f"{url}: not opened: {error}")

    def _archive(self, page: LoadedPage, start: Start, link: str | None = None) -> None:
        """Keep the page before anything is read from it. Raises Refused if the browser was led where it may not go."""
        self.downloader.check(page.url)
        self.downloader.use_cookies(page.cookies)
        with self._shared:
            archived = archive_page(self.journal.folder, page.html)
            line = {"url": page.url, "status": "loaded", "reason": page.stopped_by, "archive": archived.name}
            line |= {"odd": page.odd} if page.odd else {}
            self.journal.append_page(line | {"start": asdict(start), "listing_link": link})

    def _read_page(self, page: LoadedPage, first: LoadedPage | None) -> list[Listing]:
        """Return the listings of a page of a search that began with `first` (None when this is it).

        Raises NoListings when there should be some, or photos in them, and Failed where the site refused to show them.
        """
        listings = extract_listings(page.html, page.url, self.site)
        if page.http_status in PAST_THE_END:
            if listings and (first is None or first.http_status == page.http_status):
                self._answers_404.add(urlsplit(page.url).netloc)
            elif first is None:
                raise Failed(f"status {page.http_status}: a page titled {title_of(page.html)!r}")
            else:
                return []
        if not listings:
            self._check_challenge(page)
        if not listings and page.asked and _path(page.asked) != _path(page.url):
            raise Failed(f"led to {page.url}, which shows no listing: a log-in page, perhaps, or the session expired")
        if not listings and not is_end_of_search(page.html, first and first.html, self.site):
            raise NoListings(self._nothing_on(page, "selectors.listing"))
        if listings and not self.site.detail and not any(listing.photos for listing in listings):
            raise NoListings(self._nothing_on(page, "selectors.photos"))
        return listings

    def _check_challenge(self, page: LoadedPage) -> None:
        is_no_answer = page.http_status in (202, 204, 205)
        if (is_no_answer or is_challenge(page.html)) and not is_empty_search(page.html, self.site):
            raise Failed(
                f"turned away: {page.url} shows a page titled {title_of(page.html)!r} (status {page.http_status}), "
                "which asks who is there or turns robots away; go slower (delay), or ask the site's owner"
            )

    def _nothing_on(self, page: LoadedPage, name: str) -> str:
        archived = archive_page(self.journal.folder, page.html)
        status = f" (status {page.http_status})" if page.http_status else ""
        return " ".join(
            [
                f"{page.url} gave nothing: {name} = {named_selectors(self.site)[name]!r} finds nothing on the page "
                f"titled {title_of(page.html)!r}{status}. It is kept in {archived}: look at it (zcat), correct the "
                f"site file, and see what each selector finds with: python -m scraper check {self.site.source}.",
                *hints(page.html),
            ]
        )

    def _open_and_fetch(self, listing: Listing, start: Start, browser: Browser) -> None:
        """Fetch the photos of one listing from its own page."""
        collected = self.journal.collected.get(self._key_of(listing.link))
        if collected is not None and self._is_judged_the_same(collected.get("judged_by")):
            with self._shared:
                self.stats.known_refused.update(collected.get("refused", {}))
            return

        def take(hurry: bool = False) -> tuple[LoadedPage, list[Listing]]:
            own_page = browser.open(listing.link, hurry=hurry)
            if own_page.http_status in PAST_THE_END and urlsplit(own_page.url).netloc not in self._answers_404:
                raise Failed(f"status {own_page.http_status}: a page titled {title_of(own_page.html)!r}")
            self._archive(own_page, start, listing.link)
            full = extract_detail(own_page.html, own_page.url, self.site, replace(listing, photos=()))
            return own_page, [full]

        try:
            own_page, (full,) = take()
            if not full.photos or CHALLENGE.search(title_of(own_page.html)):
                self._check_challenge(own_page)
        except (Refused, Failed) as error:
            self._lose_page(listing.link, error)
            return
        odd = [own_page.odd] if own_page.odd else []
        if count_unread(own_page.html, own_page.url, full.photos):
            odd.append("a script on a listing's own page lists more photos than detail.photos finds")
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
        self._fetch_all([full], own_page, start, take)
        outcomes = [self.journal.outcomes.get(self._key_of(url)) for url in full.photos]
        if not odd and outcomes and all(outcome and outcome.is_final for outcome in outcomes):
            refused = [outcome for outcome in outcomes if outcome.status == "refused"]
            judged_by = {name: value for outcome in refused for name, value in (outcome.judged_by or {}).items()}
            line = {"refused": Counter(kind_of(outcome.reason) for outcome in refused), "judged_by": judged_by}
            with self._shared:
                self.journal.append_page(
                    {"url": self._key_of(listing.link), "status": "collected"} | (line if refused else {})
                )

    def _refusal(self, page: LoadedPage) -> Refused | None:
        word = find_refusal(page.html) if self.site.politeness.respect_noai else None
        return Refused(f"the page says {word}", "respect_noai") if word else None

    def _fetch_all(
        self,
        listings: list[Listing],
        page: LoadedPage,
        start: Start,
        take_again: Callable[[bool], tuple[LoadedPage, list[Listing]]],
    ) -> None:
        """Fetch the photos that a page shows; where addresses expired on the way, take new ones from it.

        `take_again(hurry)` opens the page again, until that has twice in a row given no photo more: first in a hurry,
        for what expires within seconds, then with all that comes late.
        """
        with self._shared:
            for listing in listings:
                self.stats.without_photos += not listing.photos
                self._shown.update({self._key_of(url) for url in listing.photos})
        self._find(*(url for listing in listings for url in listing.photos))
        expired = self._fetch_shown(listings, page, start)
        in_vain = 0
        while expired and in_vain < 2:
            try:
                again, listings = take_again(not in_vain)
            except (Refused, Failed) as error:
                self._lose_page(page.asked, error)
                break
            left = self._fetch_shown(listings, again, start, only=expired.keys())
            in_vain = in_vain + 1 if len(left) >= len(expired) else 0
            expired = left
        for about, error in expired.values():
            self._record_loss(about, Failed(f"address expired: {error}"))

    def _fetch_shown(
        self, listings: list[Listing], page: LoadedPage, start: Start, only: Collection[str] | None = None
    ) -> dict[str, tuple[dict, Refused]]:
        """Fetch what a page shows, or `only` some of it, and return what could not be had since its address expired."""
        refusal, expired = self._refusal(page), {}
        for listing in listings:
            for address in listing.photos:
                url = self._key_of(address)
                if only is not None and url not in only:
                    continue
                about = {"url": url, "page_url": page.url, "listing": listing.id}
                about |= {"label": start.label, "city": start.city} | listing.fields
                if error := self._photo(about, address, refusal, is_second_try=only is not None):
                    expired[url] = about, error
        return expired

    def _key_of(self, url: str) -> str:
        """Return the address under which a photo is known from visit to visit."""
        return without_parameters(url, self.site.selectors.ignore_query)

    def _find(self, *urls: str) -> None:
        with self._shared:
            self._found.update(map(self._key_of, urls))
            self.stats.found = len(self._found)

    def _photo(
        self, about: dict, address: str, refusal: Refused | None = None, is_second_try: bool = False
    ) -> Refused | None:
        """See that one photo has its outcome: fetched now, known from before, or shown by a second listing.

        Returns the error where `address` was good for a time only, and that is over.
        """
        url = about["url"]
        with self._shared:
            self._shared.wait_for(lambda: url not in self._in_hand)
            is_settled, outcome = self._is_settled(url, about), self.journal.outcomes.get(url)
            if is_settled and not (is_second_try and not (outcome and outcome.is_final)):
                return None
            self._in_hand.add(url)
        try:
            if refusal:
                raise refusal
            photo = self.downloader.fetch(address, about["page_url"])
            if photo.sha256 in self.journal.forgotten:
                raise Refused("forgotten: somebody asked for this photo to be removed")
            self._keep(photo, about)
        except (Refused, Failed) as error:
            if address != url and str(error) in EXPIRED:
                return error
            self._record_loss(about | ({"asked": address} if address != url else {}), error)
        finally:
            with self._shared:
                self._in_hand.discard(url)
                self._shared.notify_all()
        return None

    def _is_settled(self, url: str, about: dict) -> bool:
        """Tell whether `url` need not be asked for; note it when another listing shows a photo that we have."""
        outcome = self.journal.outcomes.get(url)
        is_new_here = url not in self._handled
        self._handled.add(url)
        if not outcome or not outcome.is_final:
            return not is_new_here  # it failed a moment ago
        if outcome.status == "refused":
            # what robots.txt says may have changed, and costs no request of the photo
            if is_new_here and (outcome.reason == ROBOTS_FORBID or not self._is_judged_the_same(outcome.judged_by)):
                return False
            self.stats.known_refused[kind_of(outcome.reason)] += is_new_here
        self.stats.known += is_new_here
        if outcome.status == "fetched" and (about["listing"], about["label"]) not in outcome.shown_by:
            known = self.journal.newest_line(url)
            self.journal.append({**known, **about, "reason": "shown by another listing too"})
        return True

    def _is_judged_the_same(self, judged_by: dict | None) -> bool:
        """Tell whether the settings that led to a refusal are still the same."""
        return all(self._setting(name) == value for name, value in (judged_by or {}).items())

    def _setting(self, name: str) -> object:
        """Return a setting as it is kept beside a refusal."""
        if name == "formats":
            return sorted(kind for kind, is_read in DECODABLE.items() if is_read)
        if name == "request":  # it may hold passwords
            sent = self.site.request
            return hashlib.sha256(repr((sent.headers, sent.cookies, sent.user_agent)).encode()).hexdigest()[:12]
        value = getattr(self.site.politeness, name)
        return list(value) if isinstance(value, tuple) else value

    def _keep(self, photo: Photo, about: dict) -> None:
        moved = {"final_url": photo.final_url} if self._key_of(photo.final_url) != about["url"] else {}
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
        line = about | {"status": "refused" if is_final else "failed", "reason": str(error)} | nothing
        if is_final and error.settings:
            line["judged_by"] = {name: self._setting(name) for name in error.settings}
        with self._shared:
            known = self.journal.outcomes.get(about["url"])
            is_said = known and is_final and known.reason == line["reason"] and known.judged_by == line.get("judged_by")
            if not is_said or (about["listing"], about["label"]) not in known.shown_by:
                self.journal.append(line)
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
        left = [url for url, known in self.journal.outcomes.items() if not known.is_final and url not in self._handled]
        self._find(*left)
        for url in left:
            line = self.journal.newest_line(url)
            about = {key: value for key, value in line.items() if key not in RESULT_KEYS}
            if error := self._photo(about, line.get("asked", url)):
                self._record_loss(about | {"asked": line["asked"]}, Failed(f"address expired: {error}"))


def _key(listing: Listing) -> object:
    """Return what tells a listing from others of a search; None where nothing does."""
    return listing.id or listing.photos or None


def _path(url: str) -> str:
    return urlsplit(url).path.rstrip("/")
