"""What a page shows while it is walked through: its cards, which are complete, and those that it shows no longer."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from html import escape

from bs4 import BeautifulSoup

from scraper.pages import BASE, KEPT, SHARED_BY, named_id, photos_of, read_link
from scraper.pictures import addresses_of
from scraper.site import Site, split_selector

# What changes in a card while one looks at it.
TICKING = re.compile(r"\d+(:\d\d)+|\d+ ?(s|secs?|seconds?|m|mins?|minutes?|h|hours?)\b")
TICKS = 3  # changes of a card's text after which it is taken for a clock


@dataclass(frozen=True)
class Card:
    """An element that shows a listing, or on a listing's own page an element of the gallery, at one moment."""

    element: tuple[str, int]  # its document, and its serial number there
    key: object  # what tells it from others, None while it shows nothing; a gallery's is the element itself
    link: str | None
    photos: tuple[str, ...]
    html: str
    base: str = ""  # what its addresses are relative to
    is_named: bool = True  # an id or a link is its key, not what it says
    left_over: Collection[str] = ()  # photos that the same element showed for another car


class Cards:
    """All cards of one page, from one look at it to the next."""

    def __init__(self, site: Site, is_detail: bool):
        self.site, self.is_detail = site, is_detail
        # where `photos` names an attribute of the card itself
        self._has_no_pictures = not is_detail and not split_selector(site.selectors.photos)[0]
        self.keys: set = set()  # of all cards noticed so far
        self.noticed: set = set()  # (card, link or photo address) pairs
        self.given_up: set = set()  # cards that were waited for in vain
        self.changed_at = time.monotonic()
        self.pause = 0.0  # seconds between the last two changes, but for those of one moment
        self.documents = 0  # that were looked at: a click or a script may lead to another
        self.present: list[Card] = []
        self._in_view: list[Card] = []
        self._tried: set[tuple[str, int]] = set()  # elements that were in view
        self._token = ""
        self._by_serial: dict[int, Card] = {}
        self._kept: dict[object, Card] = {}
        self._faces: defaultdict = defaultdict(dict)  # element of a gallery -> what it showed, one after the other
        self._shown_by: Counter = Counter()  # how many cards show each address now
        self._ticks: Counter = Counter()  # element -> times that it said something else beside the same photos

    def take(self, answer: dict) -> None:
        """Take note of what `survey` of page.js found."""
        if answer["token"] != self._token:  # another document
            self._token, self._by_serial = answer["token"], {}
            self.documents += 1
        for serial, html in answer["changed"]:
            card = self._by_serial[serial] = self._read(serial, html, answer["base"])
            pairs = {(None if self.is_detail else card.key, value) for value in (None, card.link, *card.photos)}
            if not pairs <= self.noticed:
                now = time.monotonic()
                self.pause = now - self.changed_at if self.noticed and now - self.changed_at > 0.2 else self.pause
                self.changed_at = now
                self.noticed |= pairs
            self.keys |= {card.key} - {None}
        self.present, self._in_view = (
            [self._by_serial[serial] for serial in answer[name] if serial in self._by_serial]
            for name in ("serials", "inView")
        )
        if answer["changed"] and not self.is_detail:
            by_key = {card.key: card for card in self.present}
            self._shown_by = Counter(photo for card in by_key.values() for photo in set(card.photos))

    def _read(self, serial: int, html: str, base: str) -> Card:
        """Read a card; addresses are as the page has them, for comparing it with itself a moment later."""
        tag, element = BeautifulSoup(html, "html.parser").find(True), (self._token, serial)
        photos, _ = photos_of(tag, "", self.site, detail=self.is_detail)
        if self.is_detail:
            detail = self.site.detail
            photos = photos or tuple(addresses_of(tag, split_selector(detail.photos)[1], detail.photos_path))
            if photos:
                self._faces[element][tuple(map(self.site.name_of, photos))] = base, html
            return Card(element, element if photos else None, None, photos, html, base)
        link = read_link(tag, self.site)
        name = named_id(tag, link, link, self.site)
        text = " ".join(TICKING.sub("", tag.get_text(" ")).split())
        key, before = name or text or photos or None, self._by_serial.get(serial)
        is_another = before is not None and before.key not in (None, key)
        is_same_photo = not name and before is not None and photos == before.photos
        self._ticks[element] = self._ticks[element] + is_another if is_same_photo else 0
        if is_another and self._ticks[element] >= TICKS:
            return before
        left_over = before.photos if is_another else before.left_over if before else ()
        return Card(element, key, link, photos, html, base, bool(name), left_over)

    def is_something_missing(self) -> bool:
        """Tell whether a card in view is not complete and was not waited for yet."""
        return any(not self._is_complete(card) and card.key not in self.given_up for card in self._in_view)

    def give_up(self) -> None:
        """Wait no more for the cards in view."""
        self.given_up |= {card.key for card in self._in_view} - {None}
        self._tried |= {card.element for card in self._in_view}

    def take_unseen(self) -> int | None:
        """Return the serial of a card that is incomplete, was not in view and not returned before; None without."""
        for card in self.present:
            is_done = card.element in self._tried or card.key in self.given_up or self._is_complete(card)
            kept = self._kept.get(card.key)
            if not is_done and not (kept and self._is_complete(kept)):
                self._tried.add(card.element)
                return card.element[1]
        return None

    def has_lost(self) -> bool:
        """Tell whether the page no longer shows some card, as lists do that hold only what is in view."""
        return not self._kept.keys() <= {card.key for card in self.present}

    def count(self) -> int:
        """Return how many cards are complete, with those that the page no longer shows."""
        return len({card.key for card in self.present if self._is_complete(card)} | self._kept.keys())

    def keep(self, only_new: bool = False) -> None:
        """Keep what the page shows now, each card as it was with the most photos; or only what is new and named."""
        for card in self.present:
            kept, own = self._kept.get(card.key), self._own_photos(card)
            is_another_cars = card.left_over and card.photos and not own and card.key not in self.given_up
            is_better = not kept or not only_new and len(own) >= len(self._own_photos(kept))
            if card.key and not is_another_cars and is_better and (card.is_named or not only_new):
                self._kept[card.key] = card

    def lost_html(self) -> str:
        """Return the HTML of the cards that the page no longer shows, or not with all their photos; empty without."""
        present = {card.key: card for card in self.present}
        shown = {photo for card in present.values() for photo in card.photos}
        lost = [
            (card.base, card.html)
            for key, card in self._kept.items()
            if not ((self.is_detail or not (card.is_named or card.link)) and shown.issuperset(card.photos))
            and (card.photos or card.link or card.is_named)  # what it said may be "loading"
            and (key not in present or len(self._own_photos(card)) > len(self._own_photos(present[key])))
        ]
        for faces in self._faces.values():
            # three are a slideshow, which may have gone on since; two a blurred picture and the sharp one
            lost += faces.values() if len(faces) >= 3 else ()
        by_base: defaultdict[str, str] = defaultdict(str)
        for base, html in lost:
            by_base[base] += html
        return "".join(f'\n<{KEPT} {BASE}="{escape(base)}">{html}</{KEPT}>' for base, html in by_base.items())

    def _own_photos(self, card: Card) -> list[str]:
        """Return the photos that are the card's own.

        Not those that several cards show, as what stands in until a photo is loaded, nor those of another car in an
        element that a list uses again.
        """
        return [p for p in card.photos if self._shown_by[p] < SHARED_BY and p not in card.left_over]

    def _is_complete(self, card: Card) -> bool:
        if self.site.detail and not self.is_detail:
            return bool(card.link)
        return self._has_no_pictures or bool(self._own_photos(card))
