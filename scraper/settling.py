"""When a page may be taken: everything on it was in view once, and nothing new has come for a moment."""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from selenium.common.exceptions import NoSuchFrameException, NoSuchWindowException, StaleElementReferenceException
from selenium.webdriver.common.by import By

from scraper.cards import Cards
from scraper.pictures import BACKGROUND
from scraper.site import split_selector

if TYPE_CHECKING:
    from scraper.browser import Browser

POLL = 0.05  # seconds
REDRAW = 0.35  # seconds in which a list redraws itself after it was scrolled
LONGEST_FRAME = 2.0  # seconds; a page that nobody sees is not drawn at all
MAX_STEPS = 5000  # of a walk through one page
MAX_ROUNDS = 20  # walks after something came late
MAX_CLICKS = 3  # on what stands in the way, while it does nothing: a page's scripts may not have begun

PAGE = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


class Settling:
    """The page that a browser shows at `url`, a listing's own with `is_detail`, and what is known of its cards.

    It is scrolled from card to card: many pages load a card's photo only when the card comes into view, and some remove
    cards that have left it. `cards` keeps each as it was when it was complete.
    Loading ends at about `most` cards. What may make the site work is done when the browser's downloader permits it.
    """

    def __init__(self, browser: "Browser", url: str, most: int | None, is_detail: bool):
        self.driver, self.site, self.traffic = browser.driver, browser.site, browser.traffic
        self.downloader, self.paging = browser.downloader, browser.site.paging
        self.url, self.is_detail = url, is_detail
        self.most = min(most or self.paging.max_listings, self.paging.max_listings)
        self.odd: str | None = None  # what may be missing, in words
        # of a card, and of the photos in it; in a gallery each photo is a card
        self._selector = split_selector(self.site.detail.photos)[0] if is_detail else self.site.selectors.listing
        self._photos = None if is_detail else split_selector(self.site.selectors.photos)[0]
        self.cards = Cards(self.site, is_detail)
        self.answer: dict = {"serials": [], "inView": [], "alive": True, "ready": False, "ended": False}
        self.is_in_frame = False
        self.loads = 0  # times that scrolling or clicking brought new cards
        self._longest = self.site.politeness.page_timeout
        self._again, self._changed_at = False, 0.0
        self._clicks: dict[str, list[tuple[float, int]]] = {selector: [] for selector in self.paging.click}
        self._frames_at = 0.0  # when frames were looked into for what is to be clicked
        self._paid = -1  # requests that had been started at the last permit
        self._bare_patience = self._longest_for_bare = max(self.paging.settle, self.paging.patience / 2)
        self._blank_patience = self.paging.patience

    def run(self, function: str, *arguments: object) -> object:
        """Call a function of page.js in the page."""
        return self.driver.execute_script(f"{PAGE}\nreturn {function}(...arguments);", *arguments)

    def begin(self) -> None:
        """Read every card anew, as when an alert box cut an answer off."""
        self._again, self.is_in_frame = True, False
        self.driver.switch_to.default_content()

    def survey(self, move: str = "", target: int | None = None) -> str:
        """Move as page.js knows it, take note of what the page shows, and return what moved."""
        where = self._selector or "html", self._photos, move, self._again, BACKGROUND, target
        milliseconds, changed_at = (1000 * self.paging.patience, 1000 * REDRAW), self.cards.changed_at
        is_new, end = changed_at != self._changed_at, self.paging.end
        self.answer = self.run("survey", *where, *milliseconds, is_new, end)
        self._again, self._changed_at = False, changed_at
        self.cards.take(self.answer)
        if move:
            self.cards.keep(only_new=True)  # what came just before the move may be gone at the next look
        return self.answer["moved"]

    def until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Ask for `condition` again and again; tell whether it came true within `seconds`."""
        end = time.monotonic() + seconds
        while True:
            time.sleep(POLL)
            if condition():
                return True
            if time.monotonic() > end:
                return False

    def shows(self, selector: str | None) -> bool:
        """Tell whether the page shows a marker; one that is hidden does not count."""
        return bool(selector) and self.run("shows", selector)

    def at_end(self) -> bool:
        return self.answer["ended"]

    def is_enough(self) -> bool:
        return self.cards.count() >= self.most or self.loads >= self.paging.max_pages

    def wait_for_first(self) -> None:
        """Wait until a card or a marker is there; a page that shows neither in time is taken as it is."""

        def is_there() -> bool:
            self._look_again()
            is_done = not self.answer["alive"] and self.answer["ready"]
            return is_done or self.answer["serials"] or self.at_end() or self.shows(self.paging.empty)

        for x in (1, 2):  # many pages hold their scripts back until a visitor moves; in the corner nothing unfolds
            move = {"type": "mouseMoved", "x": x, "y": 1}
            self.driver.execute("executeCdpCommand", {"cmd": "Input.dispatchMouseEvent", "params": move})
        self.until(is_there, self.paging.patience)

    def click_away(self) -> None:
        """Click what stands in the way: on the page, or in one of its frames, which are looked into less often."""
        left = [s for s, clicks in self._clicks.items() if len(clicks) < MAX_CLICKS]
        self._press_each(left)
        waiting = [selector for selector in left if not self._clicks[selector]]
        if waiting and not self.is_in_frame and time.monotonic() - self._frames_at > LONGEST_FRAME / 2:
            self._frames_at = time.monotonic()
            for frame in self.driver.find_elements(By.CSS_SELECTOR, "iframe"):
                # a dialog may take its frame with it
                with suppress(NoSuchFrameException, NoSuchWindowException, StaleElementReferenceException):
                    self.driver.switch_to.frame(frame)
                    self._press_each(waiting)
                self.driver.switch_to.default_content()

    def clicked(self) -> tuple[str, ...]:
        return tuple(selector for selector, clicks in self._clicks.items() if clicks)

    def _press_each(self, selectors: list[str]) -> None:
        """Click each once, and again after a second where the whole page is as it was before."""
        for selector in selectors:
            clicks = self._clicks[selector]
            if clicks and time.monotonic() - clicks[-1][0] < 1.0:
                continue
            if size := self.run("press", selector, False, clicks[-1][1] if clicks else 0):
                clicks.append((time.monotonic(), size))
                self._paid = -1

    def settle_walking(self) -> None:
        """Walk to the end of the page and wait there until it has settled; again where cards came meanwhile.

        It has when nothing new came for the time of `settle`, no script waits for data and no timer is to run.
        """

        def is_settled() -> bool:
            self._look_again()
            return not self.answer["alive"] or self._is_calm(0.0, self.paging.settle)

        in_all = -1  # complete cards after the last walk through a list that drops what is not in view
        for _ in range(MAX_ROUNDS):
            self.walk()
            while self.answer["alive"] and not self.is_enough() and self.scroll_on(0):
                self.walk()
            before = len(self.cards.noticed)
            if self.answer["alive"] and not self.until(is_settled, self._longest):
                self.odd = f"still changing after {self._longest:g} s"
            self.cards.keep()
            if self.loads >= self.paging.max_pages:
                self.odd = "stopped at paging.max_pages while more cards came"
            is_new = len(self.cards.noticed) > before
            if self.is_enough():
                return
            if is_new:
                self.survey("first")
            elif not self._visit_unseen():
                if self.is_detail or not self.cards.has_lost() or self.cards.count() == in_all:
                    return
                in_all, self._blank_patience = self.cards.count(), self.paging.patience
                self._move("top")  # the list may have been late with some of its cards
        self.odd = f"cards kept coming after {MAX_ROUNDS} times through the page"

    def _visit_unseen(self) -> bool:
        """Bring cards into view that came above where the page stood; tell whether there were any."""
        were_any = False
        while self.answer["alive"] and (serial := self.cards.take_unseen()) is not None:
            if self._move("to", serial):
                self._look()
                were_any = True
        return were_any

    def walk(self) -> None:
        """Bring each card and picture into view that was not, from where the page stands downwards."""
        self._look()
        for _ in range(MAX_STEPS):
            is_all_seen = not self.answer["unseen"] and not self.answer["bare"]
            if is_all_seen or not self.answer["alive"] or self.is_enough():
                return
            known = len(self.cards.keys)
            self._move("on", may_load=self.answer["unseen"] <= len(self.answer["inView"]))
            self._look()
            self._note_load(known)

    def start_paying(self) -> None:
        """Take the page itself as permitted; what its scripts ask for from now on costs a turn."""
        self._paid = self.traffic.started()

    def _move(self, move: str, target: int | None = None, may_load: bool = False) -> str:
        """Move, wait until the page was drawn, longer where the last known card is in view; return what moved.

        A list may draw what came into view by a timer, or when a script has it, and would lose it if we went on. So a
        part of it that shows nothing is waited for, each time in vain for half as long.
        Near the end of a list a step needs the site's permission, unless none has caused a request lately.
        """
        started = self.traffic.started()
        is_paid = not may_load or started == self._paid
        self._paid = self._paid if is_paid else started
        with nullcontext() if is_paid else self.downloader.permit(self.url):
            began = busy_at = time.monotonic()
            moved = self.survey(move, target)
        changed_at = self.cards.changed_at

        def is_blank() -> bool:
            return self.answer["blank"] and moved != "end"

        def is_over() -> bool:
            nonlocal busy_at
            self.survey()
            now, is_drawn = time.monotonic(), self.answer["drawn"]
            if self.answer["unseen"] or self.answer["bare"] or self.cards.changed_at != changed_at:
                return is_drawn or now - began > LONGEST_FRAME
            is_late = not is_drawn and now - began < LONGEST_FRAME
            is_awaited = is_blank() and now - began < self._blank_patience
            if is_late or is_awaited or self.answer["due"] or self.traffic.are_pending(self.url, began):
                busy_at = now
            return now - busy_at > REDRAW

        if moved or target is None:
            self.until(is_over, max(LONGEST_FRAME, self.paging.patience))
            if is_blank():
                self._blank_patience /= 2
        return moved

    def _look(self) -> None:
        """Wait until each card in view is complete, or nothing has changed for a while; then keep what is there."""
        began = time.monotonic()
        while self.cards.is_something_missing() and self.answer["alive"]:
            if self._is_calm(began, self._bare_patience) or time.monotonic() - began > self._longest:
                # after each wait in vain a shorter one: cards without a photo are usual here
                in_vain = self.cards.changed_at < began
                self._bare_patience = max(2 * POLL, self._bare_patience / 2) if in_vain else self._longest_for_bare
                break
            time.sleep(POLL)
            self._look_again()
        self.cards.give_up()
        self.cards.keep()

    def _look_again(self) -> None:
        self.click_away()
        self.survey()

    def _is_calm(self, since: float, seconds: float) -> bool:
        """Tell whether nothing new has come for `seconds`, or for `patience` while something is still on its way.

        Where things come one by one, the pause between the last two tells how long the next may take.
        """
        calm = time.monotonic() - max(self.cards.changed_at, since)
        is_loaded = self.answer["ready"] and not self.traffic.are_pending(self.url)
        usual = min(2 * self.cards.pause, self.paging.patience) if not since else 0.0
        return calm > max(seconds, usual if is_loaded else self.paging.patience)

    def scroll_on(self, patience: float) -> bool:
        """Scroll beyond the last card and tell whether new ones came, at the bottom within `patience` seconds."""
        known = len(self.cards.keys)
        self._scroll_to_more(known)
        if patience and not self._has_more(known, patience / 2):
            # some loaders watch for movement: a step back up before the end is reached again
            self._move("back")
            self._scroll_to_more(known)
            self._has_more(known, patience / 2)
        return self._note_load(known)

    def _scroll_to_more(self, known: int) -> None:
        """Scroll to the end of what scrolls, and no further than to where new cards come."""
        may_be_late = self.cards.has_lost()  # as a list that holds only what is in view, on a busy machine
        for _ in range(MAX_STEPS):
            is_over = len(self.cards.keys) > known or self._move("on", may_load=True) == "end"
            if is_over or self.at_end():
                return
            if may_be_late and len(self.cards.keys) == known:
                may_be_late = self._has_more(known, self.paging.patience)

    def press(self, selector: str) -> bool:
        """Click the button that shows more, or others, and tell whether cards came that were not there before."""
        known = len(self.cards.keys)
        with self.downloader.permit(self.url):
            if not self.run("press", selector, True):
                return False
        came = self._has_more(known, self.paging.patience) and self._note_load(known)
        if not came and not self.scroll_on(0):  # to where a list draws what it got
            return False
        self.survey("first")
        return True

    def _note_load(self, known: int) -> bool:
        self.loads += len(self.cards.keys) > known
        return len(self.cards.keys) > known

    def _has_more(self, known: int, seconds: float) -> bool:
        """Tell whether new cards, or the end marker, came within `seconds`, or with an answer that is on its way."""
        began = time.monotonic()

        def is_over() -> bool:
            self._look_again()
            is_there = len(self.cards.keys) > known or self.at_end()
            return is_there or time.monotonic() - began > seconds and not self.traffic.are_pending(self.url)

        self.until(is_over, self._longest)
        return len(self.cards.keys) > known or self.at_end()
