"""Loads what a page shows, as the site's `[paging]` says; `settling` says when it may be taken."""

from contextlib import suppress
from dataclasses import dataclass

from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

from scraper.pages import DESTINATION, HIDDEN, is_busy, is_challenge, title_of
from scraper.politeness import BUSY, Busy, Failed
from scraper.settling import Settling
from scraper.site import split_selector

ALL_COOKIES = {"cmd": "Network.getAllCookies", "params": {}}  # those for photos alone, too
PAST_THE_END = (404, 410)  # a page that was numbered too high, or a car that is sold


@dataclass(frozen=True)
class LoadedPage:
    """A page as the browser shows it in the end, why loading stopped there, and the session's cookies."""

    url: str
    html: str
    stopped_by: str  # "end marker" · "nothing new" · "bound" · "single page"
    cookies: list[dict]
    asked: str = ""  # the address that led there
    http_status: int | None = None  # None where the browser does not tell
    clicked: tuple[str, ...] = ()  # of paging.click, what was there
    odd: str | None = None  # why something may be missing, though it looks well
    following: str = ""  # the next page's address, with paging "next"
    more: str = ""  # what seems to lead to further listings, in words, where the site file does not make use of it
    back: str = ""  # the same of listings before, with paging "numbered"


class Loading:
    """Loads one page, a listing's own or one of a search; in a `hurry` as it first shows."""

    def __init__(self, page: Settling, hurry: bool = False):
        self.page, self.hurry = page, hurry
        self.driver, self.site, self.paging = page.driver, page.site, page.site.paging
        self._known_when_refused = 0  # cards
        self._beside_button: str | None = None  # what led on besides, when the button was there first

    def read(self) -> LoadedPage:
        """Load what `[paging]` says and return the page.

        May be called again after an alert box cut an answer off. Raises Busy where the page, or what its scripts
        ask for, is to be asked for later, and Failed where the site refuses.
        """
        page = self.page
        page.begin()
        url, status = self._check_answer()
        table = "detail" if page.is_detail else "selectors"
        frame = getattr(self.site, table).frame
        odd = None
        if frame and page.until(lambda: self._enter_frame(frame), self.paging.patience):
            url, status = self._check_answer()
        elif frame:
            odd = f"{table}.frame = {frame!r} finds no frame with a page"
        documents = page.cards.documents
        stopped_by = self._gather()
        if page.cards.documents > documents + 1:  # a click or a script led to another page
            url, status = self._check_answer()
        if not page.cards.keys and not page.shows(self.paging.empty) and is_busy(self.driver.page_source):
            raise Busy(f"a page titled {title_of(self.driver.page_source)!r} asks to come later", page.url)
        is_numbered = self.paging.kind == "numbered" and not page.is_detail
        following = self._following() if self.paging.kind == "next" and not page.is_detail else ""
        return LoadedPage(
            url=url,
            html=(self._serialise() if self.hurry else self._html())
            + (f'\n<meta name="robots" content="{self._robots}">' if self._robots else ""),
            stopped_by=stopped_by,
            cookies=self.driver.execute("executeCdpCommand", ALL_COOKIES)["value"]["cookies"],
            asked=page.url,
            http_status=status,
            clicked=page.clicked(),
            odd=odd or page.odd,
            following=following if following != "#" else "",
            more="" if self.hurry else self._more(stopped_by, following),
            back=self._find_more(back=True) if is_numbered and self.paging.first_page is None else "",
        )

    def _check_answer(self) -> tuple[str, int | None]:
        """Return the page's address and HTTP status. Raises Busy where it asks to come later, Failed where it refuses.

        A page that checks the browser with a script, and leads on when it is content, gets the time for it.
        """
        found = []

        def is_answered() -> bool:
            address, status = self.page.run("answer")
            html = "" if status < 400 or status in PAST_THE_END else self.driver.page_source
            found[:] = address, status, html
            return not html or not is_challenge(html) or "<script" not in html

        self.page.until(is_answered, self.paging.patience)
        address, status, html = found
        self._robots = self.page.traffic.forbidding_word(address) or ""
        if html:
            said = f"status {status}: the site answered with a page titled {title_of(html)!r}"
            seconds = self.page.traffic.retry_after(address)
            if status in BUSY or status == 403 and seconds is not None:
                raise Busy(said, self.page.url, seconds)
            raise Failed(f"{said}; it may turn robots away, or ask for a log-in")
        # a listing's own page is the page around the frame
        is_elsewhere = self.page.is_in_frame and not self.page.is_detail
        inside = self.driver.execute_script("return location.href;") if is_elsewhere else ""
        # srcdoc: the frame's page has no address
        return inside if inside.startswith("http") else self.driver.current_url, status or None

    def _enter_frame(self, selector: str) -> bool:
        """Look into the frame that holds the listings, or one's photos; tell whether its page is there."""
        self.page.click_away()
        if frames := self.driver.find_elements(By.CSS_SELECTOR, selector):
            self.driver.switch_to.frame(frames[0])
            if self.driver.execute_script("return location.href;") != "about:blank":
                self.page.is_in_frame = True
                return True
            self.driver.switch_to.default_content()
        return False

    def _gather(self) -> str:
        """Load what `[paging]` says and return what ended it, as `LoadedPage.stopped_by` has it."""
        page, kind, selector = self.page, self.paging.kind, self.paging.button
        page.wait_for_first()
        if self.hurry:
            return "single page"
        if kind not in ("scroll", "button") or page.is_detail:
            page.start_paying()
            page.settle_walking()
            self._check_scripts()
            if kind != "next" or page.is_detail or self._following() != "#":
                return "single page"
            selector = self.paging.next
        refusals, tried = 0, -1  # `tried`: cards that were there when the button's clicks ceased to help
        while True:
            page.walk()
            while kind != "scroll" and page.cards.has_lost() and not page.is_enough() and page.scroll_on(0):
                page.walk()
            is_button = kind != "scroll" and self.driver.find_elements(By.CSS_SELECTOR, selector)
            if is_button and self._beside_button is None:
                self._beside_button = self._find_more()
            if not page.at_end():
                if page.is_enough():
                    return "bound"
                if page.scroll_on(self.paging.patience) if kind == "scroll" else page.press(selector):
                    refusals = 0
                    continue
            if not page.at_end() and self._is_to_be_asked_again(refusals):
                refusals += 1
                continue
            stopped_by = "end marker" if page.at_end() else "nothing new"
            if len(page.cards.keys) > self._known_when_refused:
                page.odd = None  # what was refused came after all
            tried = len(page.cards.keys) if kind != "scroll" and page.shows(selector) else tried
            page.settle_walking()
            # scrolling may bring the first loads, and only then the button
            if kind != "scroll" and len(page.cards.keys) > tried and page.shows(selector) and not page.is_enough():
                tried = len(page.cards.keys)
                continue
            return stopped_by

    def _is_to_be_asked_again(self, attempt: int) -> bool:
        """Tell whether a script asked for more in vain and may ask again, after the rest that the site wants."""
        page = self.page
        refusal = page.traffic.take_refusal(page.url, page.cards.changed_at)
        if refusal:
            page.odd, self._known_when_refused = str(refusal), len(page.cards.keys)
        with suppress(Failed):
            if isinstance(refusal, Busy):
                page.downloader.pacer.rest(refusal, attempt)
                return True
        return False

    def _check_scripts(self) -> None:
        """Note that a script asked in vain. Raises Busy or Failed where the page shows nothing therefore."""
        page = self.page
        if refusal := page.traffic.take_refusal(page.url, page.cards.changed_at):
            if not page.cards.keys and not page.shows(self.paging.empty):
                raise refusal
            page.odd = str(refusal) if isinstance(refusal, Busy) else page.odd

    def _following(self) -> str:
        """Return the address of the page that `paging.next` leads to, "#" for a button, "" where there is none."""
        return self.page.run("following", self.paging.next)

    def _more(self, stopped_by: str, following: str) -> str:
        """Return what seems to lead to further listings, though the site file says nothing of it or names another."""
        is_used = self.paging.kind == "none" or following
        if self.page.is_detail or is_used or stopped_by in ("bound", "end marker"):
            return ""
        found = self._find_more()
        return "" if found == self._beside_button else found

    def _find_more(self, back: bool = False) -> str:
        own = self.paging.button or self.paging.next or ""
        return self.page.run("more", self.site.selectors.listing, own, back)

    def _html(self) -> str:
        """Return the page's HTML, open shadow roots included, with the cards at its end that it no longer shows."""
        page, html = self.page, self._serialise()
        page.survey()
        lost, cards = page.cards.lost_html(), page.cards.present
        if self.site.detail and not page.is_detail and not all(card.link for card in cards):
            with page.downloader.permit(page.url):
                link, _ = split_selector(self.site.selectors.link)
                page.run("destinations", self.site.selectors.listing, link, DESTINATION)
            page.survey()
            if len(page.cards.present) == len(cards):
                html = self._serialise()
        html += lost
        if not page.cards.keys and not page.is_in_frame:
            with suppress(WebDriverException):
                asked = {"cmd": "DOM.getDocument", "params": {"depth": -1, "pierce": True}}
                found = self.driver.execute("executeCdpCommand", asked)["value"]
                html += "<scraper-closed></scraper-closed>" if "'shadowRootType': 'closed'" in str(found) else ""
        return html

    def _serialise(self) -> str:
        return self.page.run("html", self.paging.empty or "", HIDDEN) or self.driver.page_source
