"""What becomes of the photos that pages show: each is asked for once, and its outcome holds from visit to visit."""

import hashlib
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from scraper.closing import CrawlStopped, Report, Stats, kind_of
from scraper.download import Downloader, Photo
from scraper.journal import Journal, store_photo
from scraper.loading import LoadedPage
from scraper.pages import SHARED_BY, Listing, find_refusal
from scraper.pictures import DECODABLE
from scraper.politeness import ROBOTS_FORBID, Failed, Refused
from scraper.site import Site, Start

RESULT_KEYS = {"status", "reason", "sha256", "bytes", "width", "height", "final_url", "time", "asked", "judged_by"}
MAX_FAILURES_IN_A_ROW = 20
HAD_ENOUGH = (
    "{} {} in a row could not be had, the last because: {}. The site may be down or have had enough of us; run the "
    "same command again later, it goes on where it stopped"
)
EXPIRED = ("status 400", "status 401", "status 403", "status 404", "status 410")  # what an address becomes in time
MOST_TRIALS = 2  # addresses of a host that are refused, yet still shown, until others are taken to be gone at once
NOT_SHOWN = "address expired, and no page shows it any more"
MOST_IN_VAIN = 3  # times in a row that a page is opened again

# Opens a page once more, in a hurry or with all that comes late.
TakeAgain = Callable[[bool], tuple[LoadedPage, list[Listing]]]
Shown = tuple[str, str, Listing]  # a photo's name, its address, and the listing that shows it


class LimitReached(Exception):
    """As many photos were fetched as the user asked for."""


@dataclass(frozen=True)
class Expired:
    """A photo whose address may have been good for a time only; `is_volatile`: that it changes is known."""

    about: dict
    address: str
    error: Refused
    is_volatile: bool


class Photos:
    """Sees to the photos of one crawl; several threads may do so at once.

    Raises CrawlStopped after 20 failures in a row, or as many refusals by a site that then refuses what it gave before,
    and LimitReached after `limit` fetched photos.
    """

    def __init__(self, site: Site, journal: Journal, downloader: Downloader, limit: int | None, report: Report):
        self.site, self.journal, self.downloader = site, journal, downloader
        self.limit, self.report = limit, report
        self.stats = Stats()
        # for what the threads share: the stats, the journal's folder and all below; never held while a site is asked
        self.lock = threading.RLock()
        self._outcome_came = threading.Condition(self.lock)
        self._in_hand: set[str] = set()  # photos that a thread is fetching now
        self._found: set[str] = set()
        self._handled: set[str] = set()
        self._shown: Counter = Counter()  # photo -> listings that show it
        self._trials: Counter = Counter()  # host -> addresses that were refused, and shown again unchanged
        self._failures_in_a_row = self._pages_lost_in_a_row = 0
        self._turned_away: list[dict] = []  # the last refusals in a row, which may mean us and not these photos
        self._given: tuple[str, str] | None = None  # the last photo's address, and the page that showed it

    def shared(self) -> Counter:
        """Return what several listings show, as what stands in for their photos, most often shown first.

        That is one address, or the first of several that gave the same bytes.
        """
        counts, alike = self._shown.copy(), defaultdict(list)
        for url in counts:
            if (known := self.journal.outcomes.get(url)) and known.content:
                alike[known.content].append(url)
        for urls in (urls for urls in alike.values() if len(urls) > 1):
            listings = {listing for url in urls for listing, _ in self.journal.outcomes[url].shown_by}
            counts[urls[0]] = max(counts[urls[0]], len(listings))
        return Counter({url: count for url, count in counts.most_common() if count >= SHARED_BY})

    def fetch_all(self, listings: list[Listing], page: LoadedPage, start: Start, take_again: TakeAgain) -> None:
        """Fetch the photos that a page shows; where addresses expired on the way, take new ones from it.

        The page is opened again until that has thrice in a row given no photo more: in a hurry, for what expires within
        seconds; the second time with all that comes late.
        """
        with self.lock:
            self._pages_lost_in_a_row = 0
            self.stats.without_photos += sum(not listing.photos for listing in listings)
            self.stats.bare += sum(listing.bare for listing in listings if listing.photos)
            if self.site.selectors.id or self.site.selectors.id_pattern:
                self.stats.without_id += sum(listing.id is None for listing in listings)
            for listing in listings:
                self._find(names_of(listing, self.site, self.journal).values())
        expired = self._ask(_by_place(listings, self.site, self.journal), page, start)
        in_vain = 0
        while expired and in_vain < MOST_IN_VAIN:
            try:
                again = take_again(in_vain != 1)
            except (Refused, Failed) as error:
                self.lose_page(page.asked, error)
                break
            left = self._fetch_renewed(expired, *again, start)
            in_vain = in_vain + 1 if len(left) >= len(expired) else 0
            expired = left
        for photo in expired.values():
            about, error = photo.about, photo.error
            if photo.is_volatile:
                about, error = about | {"asked": photo.address}, Failed(f"address expired: {error}")
            self._handled.add(about["url"])
            self._record_loss(about, error)

    def lose_page(self, url: str, error: Refused | Failed) -> None:
        status = "refused" if isinstance(error, Refused) else "failed"
        with self.lock:
            self.stats.pages_lost[kind_of(error)] += 1
            self.journal.append_page({"url": url, "status": status, "reason": str(error)})
            self.report(self.stats, f"{url}: not opened: {error}")
            is_answer = isinstance(error, Refused) or re.match("led to|status 4(04|10)", str(error))
            self._pages_lost_in_a_row = 0 if is_answer else self._pages_lost_in_a_row + 1
            if self._pages_lost_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise CrawlStopped(HAD_ENOUGH.format(MAX_FAILURES_IN_A_ROW, "pages", error))

    def retry_earlier_failures(self) -> None:
        """Ask for what failed in earlier runs and no page of this one showed."""
        left = [url for url, known in self.journal.outcomes.items() if not known.is_final and url not in self._handled]
        self._find(left)
        for url in left:
            line = self.journal.newest_line(url)
            about = {key: value for key, value in line.items() if key not in RESULT_KEYS}
            if expired := self._photo(about, line.get("asked", url)):
                is_gone = not self.stats.pages_lost  # all pages were seen
                words = f"{NOT_SHOWN if is_gone else 'address expired'}: {expired.error}"
                error = Refused(words) if is_gone else Failed(words)
                self._record_loss(expired.about, error if expired.is_volatile else expired.error)

    def summary(self, listing: Listing) -> dict | None:
        """Return what to remember of a listing whose photos all have their outcome for good; None where some have not.

        That is how many were refused, by reason, and the settings that led to that.
        """
        names = names_of(listing, self.site, self.journal).values()
        outcomes = [self.journal.outcomes.get(name) for name in names]
        in_doubt = {line["url"] for line in self._turned_away}
        if not outcomes or in_doubt.intersection(names) or not all(known and known.is_final for known in outcomes):
            return None
        refused = [outcome for outcome in outcomes if outcome.status == "refused"]
        judged_by = {name: value for outcome in refused for name, value in (outcome.judged_by or {}).items()}
        reasons = Counter(kind_of(outcome.reason) for outcome in refused)
        return {"refused": reasons, "judged_by": judged_by} if refused else {}

    def _find(self, names: Iterable[str]) -> None:
        with self.lock:
            self._found.update(names)
            self.stats.found = len(self._found)

    def _fetch_renewed(
        self, expired: dict[object, Expired], page: LoadedPage, listings: list[Listing], start: Start
    ) -> dict[object, Expired]:
        """Fetch from a page that was opened again what had expired, by its name or its place; return what is left."""
        by_place = dict(_by_place(listings, self.site, self.journal))
        by_name = {shown[0]: shown for shown in by_place.values()}
        renewed, left = [], {}
        for place, photo in expired.items():
            shown = by_name.get(photo.about["url"])
            if not shown and (here := by_place.get(place)) and here[0] not in self.journal.outcomes:
                shown = here
            if shown and shown[1] != photo.address:
                self._found -= {photo.about["url"]}
                renewed.append((place, shown))
            elif shown and not photo.is_volatile:
                with self.lock:
                    self._trials[urlsplit(photo.address).netloc] += 1
                self._record_loss(photo.about, photo.error)
            else:
                left[place] = photo
        again = self._ask(renewed, page, start, is_again=True)
        return {place: replace(photo, is_volatile=True) for place, photo in again.items()} | left

    def _ask(
        self, shown: Iterable[tuple[object, Shown]], page: LoadedPage, start: Start, is_again: bool = False
    ) -> dict[object, Expired]:
        """Fetch photos of one page and return what expired, first what was not asked for any more therefore."""
        word = find_refusal(page.html) if self.site.politeness.respect_noai else None
        refusal = Refused(f"the page says {word}", "respect_noai") if word else None
        skipped, expired, is_old = {}, {}, False
        for place, (name, address, listing) in shown:
            about = {"url": name, "page_url": page.url, "listing": listing.id}
            about |= {"label": start.label, "city": start.city} | listing.fields
            known = self.journal.outcomes.get(name)
            is_volatile = is_again or self.site.name_of(address) != address
            if is_old and is_volatile and not (known and known.is_final):
                skipped[place] = Expired(about, address, Refused("the page is too old"), True)
            elif photo := self._photo(about, address, refusal, is_again):
                expired[place] = photo
                is_old |= is_volatile
        return skipped | expired

    def _photo(
        self, about: dict, address: str, refusal: Refused | None = None, is_again: bool = False
    ) -> Expired | None:
        """See that one photo has its outcome: fetched now, known from before, or shown by a second listing.

        Returns it where its address was good for a time only, perhaps, and that is over.
        """
        with self.lock:
            self._outcome_came.wait_for(lambda: about["url"] not in self._in_hand)
            known = self.journal.outcomes.get(about["url"])
            if known and all(about["listing"] != shown_by for shown_by, _ in known.shown_by):
                # only other listings showed it: theirs may differ in what looks like a signature
                about["url"] = self.site.name_of(address, guess=False)
            url = about["url"]
            self._find([url])
            self._outcome_came.wait_for(lambda: url not in self._in_hand)
            self._shown[url] += not is_again
            if self._is_settled(url, about, is_again):
                if (settled := self.journal.outcomes.get(url)) and settled.status == "fetched":
                    self._given = self._given or (address, about["page_url"])
                return None
            self._in_hand.add(url)
        asked = {"asked": address} if address != url else {}
        try:
            if refusal:
                raise refusal
            photo = self.downloader.fetch(address, about["page_url"])
            if photo.sha256 in self.journal.forgotten:
                raise Refused("forgotten: somebody asked for this photo to be removed")
            self._given = address, about["page_url"]
            self._keep(photo, about | asked)
        except (Refused, Failed) as error:
            about |= asked
            is_volatile = self.site.name_of(address) != address
            if str(error) in EXPIRED and (is_volatile or self._trials[urlsplit(address).netloc] < MOST_TRIALS):
                return Expired(about, address, error, is_volatile)
            self._record_loss(about, error)
        finally:
            with self.lock:
                self._in_hand.discard(url)
                self._outcome_came.notify_all()
        return None

    def _is_settled(self, url: str, about: dict, is_again: bool) -> bool:
        """Tell whether `url` need not be asked for; note it when another listing shows a photo that we have."""
        outcome = self.journal.outcomes.get(url)
        is_new_here = url not in self._handled
        self._handled.add(url)
        if not outcome or not outcome.is_final:
            return not is_new_here and not is_again  # it failed a moment ago
        if outcome.status == "refused":
            # what robots.txt says may have changed, and costs no request of the photo; an address that expired is new
            is_passing = outcome.reason == ROBOTS_FORBID or outcome.reason.startswith(NOT_SHOWN)
            if is_new_here and (is_passing or not self.is_judged_the_same(outcome.judged_by)):
                return False
            self.stats.known_refused[kind_of(outcome.reason)] += is_new_here
        self.stats.known += is_new_here
        if outcome.status == "fetched" and (about["listing"], about["label"]) not in outcome.shown_by:
            known = self.journal.newest_line(url)
            self.journal.append({**known, **about, "reason": "shown by another listing too"})
        return True

    def is_judged_the_same(self, judged_by: dict | None) -> bool:
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
        line = about | {"status": "fetched", "reason": None, "sha256": photo.sha256}
        line |= {"bytes": len(photo.content), "width": photo.width, "height": photo.height}
        line |= {"final_url": photo.final_url} if self.site.name_of(photo.final_url) != about["url"] else {}
        guess = self.site.name_of(about["url"])
        with self.lock:
            if self.limit and self.stats.fetched >= self.limit:
                raise LimitReached  # another browser was quicker
            known = self.journal.newest_line(guess) if guess != about["url"] and guess in self.journal.outcomes else {}
            if known.get("sha256") == photo.sha256:  # what looked like a signature was one
                line |= {"url": guess, "reason": "shown by another listing too"}
            # bytes first: after a kill between the two, the same bytes come to the same name once more
            store_photo(self.journal.folder, photo.sha256, photo.extension, photo.content)
            self.journal.append(line)
            self._failures_in_a_row = 0
            self._turned_away.clear()
            self.stats.fetched += 1
            self.stats.bytes += len(photo.content)
            self.report(self.stats, "")
            if self.limit and self.stats.fetched >= self.limit:
                raise LimitReached

    def _record_loss(self, about: dict, error: Refused | Failed) -> None:
        is_final = isinstance(error, Refused)
        nothing = {"sha256": None, "bytes": None, "width": None, "height": None}
        line = about | {"status": "refused" if is_final else "failed", "reason": str(error)} | nothing
        if is_final and error.settings:
            line["judged_by"] = {name: self._setting(name) for name in error.settings}
        with self.lock:
            known = self.journal.outcomes.get(about["url"])
            is_said = known and is_final and known.reason == line["reason"] and known.judged_by == line.get("judged_by")
            if not is_said or (about["listing"], about["label"]) not in known.shown_by:
                self.journal.append(line)
            (self.stats.refused if is_final else self.stats.failed)[kind_of(error)] += 1
            self.report(self.stats, "")
            failures = self._failures_in_a_row = 0 if is_final else self._failures_in_a_row + 1
            self._turned_away = [*self._turned_away, line] if is_final and "request" in error.settings else []
            in_doubt = self._turned_away if len(self._turned_away) >= MAX_FAILURES_IN_A_ROW else []
            self._turned_away = [] if in_doubt else self._turned_away
        if failures >= MAX_FAILURES_IN_A_ROW or in_doubt and self._is_shut_out(in_doubt):
            raise CrawlStopped(HAD_ENOUGH.format(MAX_FAILURES_IN_A_ROW, "photos", error))

    def _is_shut_out(self, lines: list[dict]) -> bool:
        """Tell whether the site now refuses a photo that it gave before; then what `lines` refuse has no outcome yet.

        The photo is one that it gave, or showed again, in this crawl; else one of an earlier crawl whose address is its
        name, since others may have expired.
        """
        had = (url for url, known in self.journal.outcomes.items() if known.status == "fetched")
        known = map(self.journal.newest_line, had)
        given = self._given or next(((line["url"], line["page_url"]) for line in known if "asked" not in line), None)
        try:
            if given:
                self.downloader.fetch(*given)
            return False
        except (Refused, Failed):
            kinds = Counter(kind_of(line["reason"]) for line in lines)
            with self.lock:
                self.stats.refused -= kinds
                self.stats.failed += kinds
                for line in lines:
                    self.journal.append(line | {"status": "failed"})
            return True


def names_of(listing: Listing, site: Site, journal: Journal) -> dict[str, str]:
    """Return for each photo address of a listing the name under which the photo is known from visit to visit.

    What is a signature by guess may tell photos apart (`show.jpg?key=7`): it belongs to the name where two photos of
    the listing would have the same name without it, or where the photo is known by it.
    """
    guesses = {address: site.name_of(address) for address in listing.photos}
    certain = {address: site.name_of(address, guess=False) for address in listing.photos}
    count = Counter(guesses.values())
    return {
        address: certain[address] if count[guess] > 1 or certain[address] in journal.outcomes else guess
        for address, guess in guesses.items()
    }


def _by_place(listings: list[Listing], site: Site, journal: Journal) -> Iterator[tuple[object, Shown]]:
    """Yield the place of each photo, its listing and its number there, with its name, address and listing."""
    for place, listing in enumerate(listings):
        for number, (address, name) in enumerate(names_of(listing, site, journal).items()):
            yield (listing.id or place, number), (name, address, listing)
