"""When a page may be taken: everything on it was in view once, and nothing new has come for a moment.

This is the one place that decides so. A page is walked through from card to card, as a reader scrolls, because many
pages give a card its photo only when it comes into view, and some take cards away again that left it. Each card is
kept as it was when it was complete; those that the page no longer shows in the end are added to its HTML.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bs4 import BeautifulSoup
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from scraper.pages import KEPT, SHARED_BY, is_challenge, read_card, title_of
from scraper.pictures import BACKGROUND
from scraper.politeness import BUSY, LONGEST_WAIT
from scraper.site import Site, split_selector
from scraper.traffic import Traffic

POLL = 0.05  # seconds
REDRAW = 0.35  # seconds in which a list redraws itself after it was scrolled
LONGEST_FRAME = 2.0  # seconds; a page that nobody sees is not drawn at all
MAX_STEPS = 5000  # of a walk through one page
MAX_ROUNDS = 20  # walks after something came late
PAST_THE_END = (404, 410)  # a page that was numbered too high, or a car that is sold

PAGE = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
ANSWER, HTML, PRESS, FOLLOWING, SURVEY = (
    f"{PAGE}\nreturn {name}(...arguments);" for name in ("answer", "html", "press", "following", "survey")
)


class PageFailed(Exception):
    """A page could not be opened: it hung, crashed, did not answer or refused."""


class PageBusy(Exception):
    """The site asked us to come later, in `seconds` if it said when."""

    def __init__(self, reason: str, seconds: float | None):
        super().__init__(reason)
        self.seconds = seconds


@dataclass(frozen=True)
class LoadedPage:
    """A page as the browser shows it in the end, why loading stopped there, and the session's cookies."""

    url: str
    html: str
    stopped_by: str  # "end marker" · "nothing new" · "bound" · "single page"
    cookies: list[dict]
    asked: str = ""  # the address that led there
    http_status: int | None = None  # None where the browser does not tell
    odd: str | None = None  # why something may be missing, though it looks well
    following: str = ""  # the next page's address, with paging "next"


@dataclass(frozen=True)
class _Card:
    key: object  # what tells it from others, None while it shows nothing; a gallery's is the element itself
    link: str | None
    photos: tuple[str, ...]
    html: str


class OpenPage:
    """The page that a browser shows at `url`: a page of a search, or a listing's own with `is_detail`.

    Whatever may make the site work is done in the context that `permit(url)` returns; `overloaded(url, attempt,
    seconds)` hears of an answer to a script that asks us to wait.
    """

    def __init__(
        self,
        driver: WebDriver,
        site: Site,
        url: str,
        permit: Callable[[str], AbstractContextManager],
        overloaded: Callable[[str, int, float | None], None],
        requests: Traffic,
        is_detail: bool = False,
    ):
        self.driver, self.site, self.url, self.requests, self.is_detail = driver, site, url, requests, is_detail
        self.permit, self.overloaded, self.paging = permit, overloaded, site.paging
        self.odd: str | None = None  # what may be missing, in words
        selectors = site.selectors
        if is_detail:
            self._selector, self._photos = split_selector(site.detail.photos)[0], None
        else:
            self._selector, self._photos = selectors.listing, split_selector(selectors.photos or "")[0]
        self._token = ""
        self._again = False
        self._cards: dict[int, _Card] = {}
        self._answer: dict = {"serials": [], "inView": [], "alive": True, "ready": False}
        self._keys: set = set()  # all cards noticed so far
        self._noticed: set = set()  # (card, photo address) pairs
        self._given_up: set = set()  # cards that were waited for in vain
        self._kept: dict[object, _Card] = {}
        self._clicked: set[str] = set()
        self._shown_by: Counter = Counter()  # how many cards show each address now
        self._changed_at = time.monotonic()
        self._paid = -1  # requests that had been started at the last permit
        self._loads = 0  # times that scrolling or clicking brought new cards
        self._bare_patience = self._longest_for_bare = max(self.paging.settle, self.paging.patience / 2)

    def read(self, most: int, hurry: bool = False) -> LoadedPage:
        """Load what `[paging]` says, up to about `most` listings, and return the page; in a `hurry` what is there.

        May be called again after an alert box cut an answer off. Raises PageBusy where the page, or what its scripts
        ask for, is to be asked for later, and PageFailed where the site refuses.
        """
        self._again = True
        self.driver.switch_to.default_content()
        status, led_to = self._check_answer(), self.driver.current_url
        if self.site.selectors.frame and not self.is_detail and self._until(self._enter_frame, self.paging.patience):
            status, inside = self._check_answer(), self.driver.execute_script("return location.href;")
            led_to = inside if inside.startswith("http") else led_to  # srcdoc: the frame's page has no address
        stopped_by = self._gather(most, hurry)
        following = self._following() if self.paging.kind == "next" and not self.is_detail else ""
        found = led_to, self._html(), stopped_by, self.driver.get_cookies(), self.url, status
        return LoadedPage(*found, self.odd, following if following != "#" else "")

    def _check_answer(self) -> int | None:
        """Return the page's HTTP status. Raises PageBusy where it asks us to come later, PageFailed where it refuses.

        A page that checks the browser with a script, and leads on when it is content, gets the time for it.
        """
        found = []

        def is_answered() -> bool:
            address, status = self.driver.execute_script(ANSWER)
            html = "" if status < 400 or status in PAST_THE_END else self.driver.page_source
            found[:] = address, status, html
            return not html or not is_challenge(html) or "<script" not in html

        self._until(is_answered, self.paging.patience)
        address, status, html = found
        if html:
            said = f"status {status}: the site answered with a page titled {title_of(html)!r}"
            if status in BUSY:
                raise PageBusy(said, self.requests.retry_after(address))
            raise PageFailed(f"{said}; it may turn robots away, or ask for a log-in")
        return status or None

    def _enter_frame(self) -> bool:
        """Look into the frame that holds the listings; tell whether its page is there."""
        if frames := self._find(self.site.selectors.frame):
            self.driver.switch_to.frame(frames[0])
            if self.driver.execute_script("return location.href;") != "about:blank":
                return True
            self.driver.switch_to.default_content()
        return False

    def _gather(self, most: int, hurry: bool) -> str:
        """Load what `[paging]` says and return what ended it, as `LoadedPage.stopped_by` has it."""
        self._wait_for_first()
        if hurry:
            return "single page"
        kind, selector = self.paging.kind, self.paging.button
        if kind == "next" and self._following() == "#":
            kind, selector = "button", self.paging.next
        if kind not in ("scroll", "button") or self.is_detail:
            self._paid = self.requests.started()  # the page itself was permitted; its scripts may ask for more
            self._settle_walking(most)
            self._check_scripts()
            return "single page"
        refusals = 0
        while True:
            self._walk(most)
            if self._at_end():
                stopped_by = "end marker"
            elif self._is_enough(most):
                return "bound"
            elif self._scroll_on(self.paging.patience) if kind == "scroll" else self._press(selector):
                refusals = 0
                continue
            elif self._at_end():
                stopped_by = "end marker"
            elif self._is_to_be_asked_again(refusals):
                refusals += 1
                continue
            else:
                stopped_by = "nothing new"
            self._settle_walking(most)
            return stopped_by

    def _is_to_be_asked_again(self, attempt: int) -> bool:
        """Tell whether a script asked for more in vain and may ask again, after the rest that the site wants."""
        if not (refusal := self.requests.take_refusal(self.url)):
            return False
        self.odd = f"a script's request was answered with status {refusal.status}"
        self.overloaded(self.url, attempt, refusal.seconds)
        is_worth_it = refusal.status in BUSY and (refusal.seconds or 0) <= LONGEST_WAIT
        if not is_worth_it or attempt + 1 >= self.site.politeness.attempts:
            return False
        self.odd = None
        return True

    def _check_scripts(self) -> None:
        """Note that a script asked in vain. Raises PageBusy or PageFailed where the page shows nothing therefore."""
        if refusal := self.requests.take_refusal(self.url):
            said = f"a script's request was answered with status {refusal.status}"
            if refusal.status in BUSY:
                self.odd = said
            if not self._keys and not (self.paging.empty and self._find(self.paging.empty)):
                raise PageBusy(said, refusal.seconds) if refusal.status in BUSY else PageFailed(said)

    def _is_enough(self, most: int) -> bool:
        return self._count() >= most or self._loads >= self.paging.max_pages

    def _following(self) -> str:
        """Return the address of the page that `paging.next` leads to, "#" for a button, "" where there is none."""
        return self.driver.execute_script(FOLLOWING, self.paging.next)

    def _html(self) -> str:
        """Return the page's HTML, open shadow roots included, with the cards at its end that it no longer shows."""
        html = self.driver.execute_script(HTML) or self.driver.page_source
        self._survey()
        present = {card.key: card for card in self._present()}
        shown = {photo for card in present.values() for photo in card.photos}
        lost = [
            card.html
            for key, card in self._kept.items()
            if not (self.is_detail and shown.issuperset(card.photos))
            and (card.photos or card.link or self.site.selectors.id)  # what it said may be "loading"
            and (key not in present or len(self._own_photos(card)) > len(self._own_photos(present[key])))
        ]
        return f"{html}\n<{KEPT}>{''.join(lost)}</{KEPT}>" if lost else html

    def _survey(self, move: str = "") -> str:
        arguments = (self._selector or "html", self._photos, move, self._again, BACKGROUND)
        self._answer = answer = self.driver.execute_script(SURVEY, *arguments)
        self._again = False
        if answer["token"] != self._token:  # another document
            self._token, self._cards = answer["token"], {}
        for serial, html in answer["changed"]:
            key, link, photos = read_card(BeautifulSoup(html, "html.parser").find(True), self.site, self.is_detail)
            key = (self._token, serial) if self.is_detail and photos else key or photos or None
            self._cards[serial] = _Card(key, link, photos, html)
            pairs = {(None if self.is_detail else key, value) for value in (None, link, *photos)}
            if not pairs <= self._noticed:
                self._changed_at = time.monotonic()
                self._noticed |= pairs
            self._keys |= {key} - {None}
        if answer["changed"] and not self.is_detail:
            by_key = {card.key: card for card in self._present()}
            self._shown_by = Counter(photo for card in by_key.values() for photo in set(card.photos))
        return answer["moved"]

    def _present(self) -> list[_Card]:
        return [self._cards[serial] for serial in self._answer["serials"] if serial in self._cards]

    def _own_photos(self, card: _Card) -> list[str]:
        """Return the photos that are not shared by several cards, as what stands in until a photo is loaded."""
        return [photo for photo in card.photos if self._shown_by[photo] < SHARED_BY]

    def _is_complete(self, card: _Card) -> bool:
        if not self.is_detail and self.site.detail and self.site.selectors.link:
            return bool(card.link)
        return not (self.is_detail or self._photos) or bool(self._own_photos(card))

    def _count(self) -> int:
        """Return how many cards are complete, with those that the page no longer shows."""
        complete = {card.key for card in self._present() if self._is_complete(card)}
        return len(complete | self._kept.keys())

    def _keep(self) -> None:
        for card in self._present():
            kept = self._kept.get(card.key)
            if card.key and (not kept or len(self._own_photos(card)) >= len(self._own_photos(kept))):
                self._kept[card.key] = card

    def _until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Ask for `condition` again and again; tell whether it came true within `seconds`."""
        end = time.monotonic() + seconds
        while True:
            time.sleep(POLL)
            if condition():
                return True
            if time.monotonic() > end:
                return False

    def _look_again(self) -> None:
        self._click_away()
        self._survey()

    def _wait_for_first(self) -> None:
        """Wait until a card or a marker is there; a page that shows neither in time is taken as it is."""
        marks = ", ".join(filter(None, (self.paging.empty, self.paging.end)))

        def is_there() -> bool:
            self._look_again()
            is_done = not self._answer["alive"] and self._answer["ready"]
            return is_done or self._answer["serials"] or marks and self._find(marks)

        self._until(is_there, self.paging.patience)

    def _click_away(self) -> None:
        for selector in self.paging.click:
            if selector not in self._clicked and self.driver.execute_script(PRESS, selector, False):
                self._clicked.add(selector)
                self._paid = -1

    def _settle_walking(self, most: int) -> None:
        """Walk to the end of the page and wait there until it has settled; again where cards came meanwhile."""
        for _ in range(MAX_ROUNDS):
            self._walk(most)
            while self._answer["alive"] and not self._is_enough(most) and self._scroll_on(0):
                self._walk(most)
            before = len(self._noticed)
            self._settle()
            self._keep()
            if self._loads >= self.paging.max_pages:
                self.odd = "stopped at paging.max_pages while more cards came"
            if len(self._noticed) == before or self._is_enough(most):
                return
            self._survey("first")
        self.odd = f"cards kept coming after {MAX_ROUNDS} times through the page"

    def _walk(self, most: int) -> None:
        """Bring each card and picture into view that was not, from where the page stands downwards."""
        self._look()
        for _ in range(MAX_STEPS):
            is_all_seen = not self._answer["unseen"] and not self._answer["bare"]
            if is_all_seen or not self._answer["alive"] or self._is_enough(most):
                return
            known = len(self._keys)
            with self._pace(self._answer["unseen"] <= len(self._answer["inView"])):
                self._survey("on")
            self._redraw()
            self._look()
            self._note_load(known)

    def _pace(self, may_load: bool) -> AbstractContextManager:
        """Return the site's permission for a step near the end of a list, unless none has caused a request lately."""
        started = self.requests.started()
        if not may_load or started == self._paid:
            return nullcontext()
        self._paid = started
        return self.permit(self.url)

    def _redraw(self) -> None:
        """Wait until the page was drawn after it moved, and a moment longer where the last known card is in view."""
        changed_at, began = self._changed_at, time.monotonic()

        def is_drawn() -> bool:
            self._survey()
            more = self._answer["unseen"] or self._answer["bare"] or self._changed_at != changed_at
            return self._answer["drawn"] and (more or time.monotonic() - began > REDRAW)

        self._until(is_drawn, LONGEST_FRAME)

    def _look(self) -> None:
        """Wait until each card in view is complete, or nothing has changed for a while; then keep what is there."""
        began = time.monotonic()
        while self._is_something_missing() and self._answer["alive"]:
            if self._is_calm(began, self._bare_patience) or time.monotonic() - began > self._longest:
                # after each wait in vain a shorter one: cards without a photo are usual here
                in_vain = self._changed_at < began
                self._bare_patience = max(2 * POLL, self._bare_patience / 2) if in_vain else self._longest_for_bare
                break
            time.sleep(POLL)
            self._look_again()
        self._given_up |= {card.key for card in self._in_view()} - {None}
        self._keep()

    def _settle(self) -> None:
        """Wait until nothing new has come for the time of `settle`, and no script waits for data."""

        def is_settled() -> bool:
            self._look_again()
            return not self._answer["alive"] or self._is_calm(0.0, self.paging.settle)

        if self._answer["alive"] and not self._until(is_settled, self._longest):
            self.odd = f"still changing after {self._longest:g} s"

    def _is_calm(self, since: float, seconds: float) -> bool:
        """Tell whether nothing new has come for `seconds`, or for `patience` while something is still on its way."""
        calm = time.monotonic() - max(self._changed_at, since)
        is_loaded = self._answer["ready"] and not self.requests.are_pending()
        return calm > seconds if is_loaded else calm > max(seconds, self.paging.patience)

    @property
    def _longest(self) -> float:
        return self.site.politeness.page_timeout

    def _in_view(self) -> list[_Card]:
        return [self._cards[serial] for serial in self._answer["inView"] if serial in self._cards]

    def _is_something_missing(self) -> bool:
        return any(not self._is_complete(card) and card.key not in self._given_up for card in self._in_view())

    def _scroll_on(self, patience: float) -> bool:
        """Scroll beyond the last card and tell whether new ones came, at the bottom within `patience` seconds."""
        known = len(self._keys)
        for _ in range(MAX_STEPS):
            with self._pace(True):
                moved = self._survey("on")
            self._redraw()
            if len(self._keys) > known or self._at_end() or moved != "further":
                break
        if patience and not self._has_more(known, patience / 2):
            # some loaders watch for movement: a step back up before the end is reached again
            self._survey("back")
            self._redraw()
            with self._pace(True):
                while self._survey("on") == "further":
                    time.sleep(POLL)
            self._has_more(known, patience / 2)
        return self._note_load(known)

    def _press(self, selector: str) -> bool:
        """Click the button that shows more, or others, and tell whether cards came that were not there before."""
        known = len(self._keys)
        with self.permit(self.url):
            if not self.driver.execute_script(PRESS, selector, True):
                return False
        self._has_more(known, self.paging.patience)
        if not self._note_load(known):
            return False
        self._survey("first")
        return True

    def _note_load(self, known: int) -> bool:
        self._loads += len(self._keys) > known
        return len(self._keys) > known

    def _has_more(self, known: int, seconds: float) -> bool:
        """Tell whether new cards, or the end marker, came within `seconds`."""

        def is_there() -> bool:
            self._survey()
            return len(self._keys) > known or self._at_end()

        return self._until(is_there, seconds)

    def _at_end(self) -> bool:
        return bool(self.paging.end and self._find(self.paging.end))

    def _find(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)
