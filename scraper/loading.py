"""When a page may be taken: everything on it was in view once, and nothing new has come for a moment.

This is the one place that decides so. A page is walked through from card to card, as a reader scrolls, because many
pages give a card its photo only when it comes into view, and some take cards away again that left it. Each card is
kept as it was when it was complete; those that the page no longer shows in the end are added to its HTML.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from selenium.common.exceptions import NoSuchFrameException, NoSuchWindowException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from scraper.cards import Cards
from scraper.pages import is_challenge, title_of
from scraper.pictures import BACKGROUND
from scraper.politeness import BUSY, Busy, Failed, Pacer
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


class OpenPage:
    """The page that a browser shows at `url`: a page of a search, or a listing's own with `is_detail`.

    Whatever may make the site work is done in the context that `permit(url)` returns; `pacer` hears of an answer to a
    script that asks us to wait.
    """

    def __init__(
        self,
        driver: WebDriver,
        site: Site,
        url: str,
        permit: Callable[[str], AbstractContextManager],
        pacer: Pacer,
        requests: Traffic,
        is_detail: bool = False,
    ):
        self.driver, self.site, self.url, self.requests, self.is_detail = driver, site, url, requests, is_detail
        self.permit, self.pacer, self.paging = permit, pacer, site.paging
        self.odd: str | None = None  # what may be missing, in words
        selectors = site.selectors
        if is_detail:
            self._selector, self._photos = split_selector(site.detail.photos)[0], None
        else:
            self._selector, self._photos = selectors.listing, split_selector(selectors.photos or "")[0]
        self._again = False
        self._cards = Cards(site, is_detail)
        self._answer: dict = {"serials": [], "inView": [], "alive": True, "ready": False}
        self._clicked: set[str] = set()
        self._known_when_refused = 0  # cards
        self._is_in_frame = False
        self._frames_at = 0.0  # when frames were looked into for what is to be clicked
        self._paid = -1  # requests that had been started at the last permit
        self._loads = 0  # times that scrolling or clicking brought new cards
        self._bare_patience = self._longest_for_bare = max(self.paging.settle, self.paging.patience / 2)

    def read(self, most: int, hurry: bool = False) -> LoadedPage:
        """Load what `[paging]` says, up to about `most` listings, and return the page; in a `hurry` what is there.

        May be called again after an alert box cut an answer off. Raises Busy where the page, or what its scripts
        ask for, is to be asked for later, and Failed where the site refuses.
        """
        self._again, self._is_in_frame = True, False
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
        """Return the page's HTTP status. Raises Busy where it asks us to come later, Failed where it refuses.

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
                raise Busy(said, self.url, self.requests.retry_after(address))
            raise Failed(f"{said}; it may turn robots away, or ask for a log-in")
        return status or None

    def _enter_frame(self) -> bool:
        """Look into the frame that holds the listings; tell whether its page is there."""
        self._click_away()
        if frames := self._find(self.site.selectors.frame):
            self.driver.switch_to.frame(frames[0])
            if self.driver.execute_script("return location.href;") != "about:blank":
                self._is_in_frame = True
                return True
            self.driver.switch_to.default_content()
        return False

    def _gather(self, most: int, hurry: bool) -> str:
        """Load what `[paging]` says and return what ended it, as `LoadedPage.stopped_by` has it."""
        self._wait_for_first()
        if hurry:
            return "single page"
        kind, selector = self.paging.kind, self.paging.button
        if kind not in ("scroll", "button") or self.is_detail:
            self._paid = self.requests.started()  # the page itself was permitted; its scripts may ask for more
            self._settle_walking(most)
            self._check_scripts()
            if kind != "next" or self.is_detail or self._following() != "#":
                return "single page"
            selector = self.paging.next
        refusals = 0
        while True:
            self._walk(most)
            while kind != "scroll" and self._cards.has_lost() and not self._is_enough(most) and self._scroll_on(0):
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
            if len(self._cards.keys) > self._known_when_refused:
                self.odd = None  # what was refused came after all
            self._settle_walking(most)
            return stopped_by

    def _is_to_be_asked_again(self, attempt: int) -> bool:
        """Tell whether a script asked for more in vain and may ask again, after the rest that the site wants."""
        refusal = self.requests.take_refusal(self.url, self._cards.changed_at)
        if refusal:
            self.odd, self._known_when_refused = str(refusal), len(self._cards.keys)
        try:
            if isinstance(refusal, Busy):
                self.pacer.rest(refusal, attempt)
                return True
        except Failed:
            pass
        return False

    def _check_scripts(self) -> None:
        """Note that a script asked in vain. Raises Busy or Failed where the page shows nothing therefore."""
        if refusal := self.requests.take_refusal(self.url, self._cards.changed_at):
            if not self._cards.keys and not (self.paging.empty and self._find(self.paging.empty)):
                raise refusal
            self.odd = str(refusal) if isinstance(refusal, Busy) else self.odd

    def _is_enough(self, most: int) -> bool:
        return self._cards.count() >= most or self._loads >= self.paging.max_pages

    def _following(self) -> str:
        """Return the address of the page that `paging.next` leads to, "#" for a button, "" where there is none."""
        return self.driver.execute_script(FOLLOWING, self.paging.next)

    def _html(self) -> str:
        """Return the page's HTML, open shadow roots included, with the cards at its end that it no longer shows."""
        html = self.driver.execute_script(HTML) or self.driver.page_source
        self._survey()
        return html + self._cards.lost_html()

    def _survey(self, move: str = "") -> str:
        arguments = (self._selector or "html", self._photos, move, self._again, BACKGROUND)
        self._answer = self.driver.execute_script(SURVEY, *arguments)
        self._again = False
        self._cards.take(self._answer)
        return self._answer["moved"]

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
        """Click what stands in the way, once each: on the page, or in one of its frames, which are looked into less."""
        left = [selector for selector in self.paging.click if selector not in self._clicked]
        self._press_each(left)
        if left and not self._is_in_frame and time.monotonic() - self._frames_at > LONGEST_FRAME / 2:
            self._frames_at = time.monotonic()
            for frame in self._find("iframe"):
                # a dialog may take its frame with it
                with suppress(NoSuchFrameException, NoSuchWindowException, StaleElementReferenceException):
                    self.driver.switch_to.frame(frame)
                    self._press_each(left)
                self.driver.switch_to.default_content()

    def _press_each(self, selectors: list[str]) -> None:
        for selector in selectors:
            if selector not in self._clicked and self.driver.execute_script(PRESS, selector, False):
                self._clicked.add(selector)
                self._paid = -1

    def _settle_walking(self, most: int) -> None:
        """Walk to the end of the page and wait there until it has settled; again where cards came meanwhile."""
        for _ in range(MAX_ROUNDS):
            self._walk(most)
            while self._answer["alive"] and not self._is_enough(most) and self._scroll_on(0):
                self._walk(most)
            before = len(self._cards.noticed)
            self._settle()
            self._cards.keep()
            if self._loads >= self.paging.max_pages:
                self.odd = "stopped at paging.max_pages while more cards came"
            if len(self._cards.noticed) == before or self._is_enough(most):
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
            known = len(self._cards.keys)
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
        changed_at, began = self._cards.changed_at, time.monotonic()

        def is_drawn() -> bool:
            self._survey()
            more = self._answer["unseen"] or self._answer["bare"] or self._cards.changed_at != changed_at
            return self._answer["drawn"] and (more or time.monotonic() - began > REDRAW)

        self._until(is_drawn, LONGEST_FRAME)

    def _look(self) -> None:
        """Wait until each card in view is complete, or nothing has changed for a while; then keep what is there."""
        began = time.monotonic()
        while self._cards.is_something_missing() and self._answer["alive"]:
            if self._is_calm(began, self._bare_patience) or time.monotonic() - began > self._longest:
                # after each wait in vain a shorter one: cards without a photo are usual here
                in_vain = self._cards.changed_at < began
                self._bare_patience = max(2 * POLL, self._bare_patience / 2) if in_vain else self._longest_for_bare
                break
            time.sleep(POLL)
            self._look_again()
        self._cards.give_up()
        self._cards.keep()

    def _settle(self) -> None:
        """Wait until nothing new has come for the time of `settle`, and no script waits for data."""

        def is_settled() -> bool:
            self._look_again()
            return not self._answer["alive"] or self._is_calm(0.0, self.paging.settle)

        if self._answer["alive"] and not self._until(is_settled, self._longest):
            self.odd = f"still changing after {self._longest:g} s"

    def _is_calm(self, since: float, seconds: float) -> bool:
        """Tell whether nothing new has come for `seconds`, or for `patience` while something is still on its way."""
        calm = time.monotonic() - max(self._cards.changed_at, since)
        is_loaded = self._answer["ready"] and not self.requests.are_pending()
        return calm > seconds if is_loaded else calm > max(seconds, self.paging.patience)

    @property
    def _longest(self) -> float:
        return self.site.politeness.page_timeout

    def _scroll_on(self, patience: float) -> bool:
        """Scroll beyond the last card and tell whether new ones came, at the bottom within `patience` seconds."""
        known = len(self._cards.keys)
        for _ in range(MAX_STEPS):
            with self._pace(True):
                moved = self._survey("on")
            self._redraw()
            if len(self._cards.keys) > known or self._at_end() or moved != "further":
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
        known = len(self._cards.keys)
        with self.permit(self.url):
            if not self.driver.execute_script(PRESS, selector, True):
                return False
        came = self._has_more(known, self.paging.patience) and self._note_load(known)
        if not came and not self._scroll_on(0):  # to where a list draws what it got
            return False
        self._survey("first")
        return True

    def _note_load(self, known: int) -> bool:
        self._loads += len(self._cards.keys) > known
        return len(self._cards.keys) > known

    def _has_more(self, known: int, seconds: float) -> bool:
        """Tell whether new cards, or the end marker, came within `seconds`, or with an answer that is on its way."""
        began = time.monotonic()

        def is_over() -> bool:
            self._survey()
            is_there = len(self._cards.keys) > known or self._at_end()
            return is_there or time.monotonic() - began > seconds and not self.requests.are_pending()

        return self._until(is_over, self._longest) and (len(self._cards.keys) > known or self._at_end())

    def _at_end(self) -> bool:
        return bool(self.paging.end and self._find(self.paging.end))

    def _find(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)
