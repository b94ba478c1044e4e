"""Reads pages: HTML in, listings and photo addresses out. BeautifulSoup only; opens nothing, keeps nothing."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace

from bs4 import BeautifulSoup, Tag

from scraper.addresses import absolute, absolute_link, listing_ids
from scraper.pictures import addresses_of, image_files, is_bare, read_json, walk
from scraper.politeness import forbidding_word
from scraper.site import Site, split_selector

# At the end of a page's HTML, around what the page no longer showed when it was taken: see `loading`.
KEPT = "scraper-kept"
HIDDEN = "data-scraper-hidden"  # set by `loading` on the marker of an empty search that does not show
DESTINATION = "data-scraper-destination"  # set by `loading` on what leads to another page when it is clicked
# What the addresses in a page are relative to, or in an element that it showed when it was at another address.
BASE = "data-scraper-base"
ONCLICK = re.compile(r"""['"]((?:https?:/|\.)?/[^'"\s]+|[\w./-]+\.(?:php|aspx?|html?)[^'"\s]*)['"]""")
SHARED_BY = 3  # listings that show one address: no photo of any of them
SIZES = {"width", "w", "size", "sizes", "format"}  # what tells one size of a photo from the next
# The same within an address: 800x600, 1280, small, _s.
SIZE = re.compile(r"\d+x\d+|(?<!\d)\d{3,4}(?!\d)|thumb(nail)?|small|medium|large|full|[-_]x*[sml](?=[-_.])", re.I)
CHALLENGE = re.compile(
    r"captcha|just a moment|are you (a )?(human|robot)|\ba (ro)?bot\b|human verification|(verify|confirm) (that )?you|"
    "checking your browser|access (to this page )?(has been |is )?denied|attention required|unusual (traffic|activity)|"
    "too many requests|rate limit|security (check|verification)|pardon our|ddos|(request|access|been) blocked|"
    "enable javascript and cookies",
    re.IGNORECASE,
)
# A short page without listings that says so may be well a moment later.
BUSY_NOW = re.compile(
    r"too many requests|rate[- ]?limit|slow(ing)? down|try again in\b|temporarily (unavailable|down|out of)|"
    r"(service|server) (is )?(temporarily )?(unavailable|busy|overloaded)|bad gateway|gateway time-?out|"
    r"internal server error|something went wrong|error.{0,40}try again|^(error )?(429|50[0234]|52\d)\b",
    re.IGNORECASE,
)
# What a button or a link says that shows the rest of a gallery.
ALL_PHOTOS = re.compile(
    r"((view|see|show)( all)?|all|\+) ?(?P<count>\d{1,3})( more)? (photos|pictures|images|pics)", re.I
)
# What services that turn robots away (DataDome, Cloudflare, Imperva, PerimeterX, AWS) write into such pages only.
GATEKEEPERS = re.compile("captcha-delivery|_cf_chl_opt|<iframe[^>]*_incapsula_|px-captcha|gokuprops", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """One car on sale as a page shows it; `id` is unique within the site, None when the page does not tell."""

    id: str | None
    link: str | None
    fields: dict[str, str]
    photos: tuple[str, ...]
    cards: int = 1  # elements of the page that were different cars to look at, and became this listing
    bare: int = 0  # pictures that have no address


def extract_listings(html: str, page_url: str, site: Site) -> list[Listing]:
    """Return the listings of a page in its order, each id once; photo addresses are absolute and largest first."""
    soup = BeautifulSoup(html, "html.parser")
    base = _base_url(soup, page_url)
    cards = _select(soup, site.selectors.listing)
    cards = [card for card in cards if not card.find_parent("noscript")] or cards  # as the page shows them
    links = [link and absolute_link(_base_of(card, base), link) for card in cards for link in [read_link(card, site)]]
    stand_ins = shared_sources(cards, site)
    found = [photos_of(card, base, site, stand_ins) for card in cards]
    looks = [_look(card, photos, site) for card, (photos, _) in zip(cards, found, strict=True)]
    ids = listing_ids(links, page_url, site.selectors.ignore_query, looks)
    listings: dict[str | int, Listing] = {}
    different: defaultdict[str | int, set] = defaultdict(set)
    for card, link, by_link, look, (photos, bare) in zip(cards, links, ids, looks, found, strict=True):
        identity = named_id(card, by_link, link, site)
        fields = {name: value for name, css in site.fields.items() if (value := read(card, css))}
        key = identity if identity is not None else len(listings)
        if known := listings.get(key):  # a "load more" that repeats itself shows a card twice
            link, fields = known.link or link, known.fields | fields
            photos, bare = tuple(dict.fromkeys(known.photos + photos)), known.bare
        listings[key] = Listing(identity, link, fields, photos, bare=bare)
        different[key].add((by_link, look))
    return [replace(listing, cards=len(different[key])) for key, listing in listings.items()]


def _look(card: Tag, photos: tuple[str, ...], site: Site) -> tuple:
    """Return what is the same where a page shows one car twice: its first photo, and price, year or kilometres."""
    first = [site.name_of(photo) for photo in photos[:1]]
    text = card.get_text(" ")
    return *first, *sorted(re.findall(r"\d[\d.,]{2,}", text) or [" ".join(text.split())])


def extract_detail(html: str, page_url: str, site: Site, listing: Listing) -> Listing:
    """Return `listing` with what its own page shows: the gallery's photos and the fields of `[detail]`."""
    soup = BeautifulSoup(html, "html.parser")
    fields = {name: value for name, css in site.detail.fields.items() if (value := read(soup, css))}
    photos, bare = photos_of(soup, _base_url(soup, page_url), site, detail=True)
    # a search page shows the same photos small
    return replace(listing, fields=listing.fields | fields, photos=photos or listing.photos, bare=bare)


def shared_sources(cards: list[Tag], site: Site) -> set[str]:
    """Return the values of `src` that several cards show: pictures that stand in until the real ones are loaded."""
    css, _ = split_selector(site.selectors.photos)
    sources = [{tag.get("src") for tag in card.select(css)} for card in cards] if css else []
    counts = Counter(source for found in sources for source in found if source)
    return {source for source, count in counts.items() if count >= SHARED_BY}


def read(tag: Tag, selector: str | None, default_attribute: str | None = None) -> str | None:
    """Return what `css`, `css@attribute` or `@attribute` finds in `tag`, white space collapsed; None if nothing."""
    css, attribute = split_selector(selector)
    attribute = attribute or default_attribute
    found = tag.select_one(css) if css else tag
    if not selector or found is None:
        return None
    value = found.get(attribute) if attribute else found.get_text(" ")
    value = " ".join(value) if isinstance(value, list) else value
    return " ".join(value.split()) or None if value else None


def is_empty_search(html: str, site: Site) -> bool:
    """Tell whether the page says itself that nothing was found, by the marker of the site file, where it shows."""
    marks = BeautifulSoup(html, "html.parser").select(site.paging.empty) if site.paging.empty else ()
    return any(not mark.has_attr(HIDDEN) for mark in marks)


def is_challenge(html: str) -> bool:
    """Tell whether a short page asks who is there, or turns robots away."""
    text = _text_of(html)
    return len(text) < 2000 and bool(CHALLENGE.search(text) or GATEKEEPERS.search(html))


def is_busy(html: str) -> bool:
    """Tell whether a short page, whatever its status, says that it may be well a moment later."""
    text = _text_of(html)
    return len(text) < 600 and bool(BUSY_NOW.search(text) or BUSY_NOW.search(title_of(html)))


def _text_of(html: str) -> str:
    return " ".join(BeautifulSoup(html, "html.parser").get_text(" ").split())


def title_of(html: str) -> str:
    """Return what a page calls itself, in 80 characters at most: its title, else its first heading or text."""
    soup = BeautifulSoup(html, "html.parser")
    found = soup.find("title") or soup.find(["h1", "h2"]) or soup
    return " ".join(found.get_text(" ").split())[:80]


def hints(html: str, table: str = "selectors") -> list[str]:
    """Return what a page without listings, or without photos, holds that may hide them, as sentences."""
    soup = BeautifulSoup(html, "html.parser")
    found = []
    if frame := soup.find("iframe", src=re.compile("^(?!about:|javascript:|data:).")):
        found.append(f"A frame ({frame['src']}) may hold what is looked for: set frame = 'iframe' under [{table}].")
    if soup.find("scraper-shadow"):
        found.append("Parts of the page are in shadow roots: write selectors as if their content stood in the page.")
    if soup.find("scraper-closed"):
        found.append("A part of the page is in a closed shadow root, which is not read: ask the site's owner.")
    if soup.find("button", string=re.compile("accept|agree|consent|allow|enter|continue", re.IGNORECASE)):
        found.append("A dialog may be in the way: name its button with click = ['…'] under [paging].")
    return found


def lists_more_photos(html: str, page_url: str, photos: Collection[str]) -> bool:
    """Tell whether a script of the page lists further photos beside `photos`, which were found there by a selector.

    What counts is a list, of objects or addresses, that has each of them in an entry of its own. One photo alone may
    stand among its sizes.
    """
    soup = BeautifulSoup(html, "html.parser")
    base, found = _base_url(soup, page_url), set(photos)
    values = (value for script in soup.find_all("script") for value in read_json(script.get_text()))
    for entries in (part for value in values for part in walk(value) if isinstance(part, list)):
        if not all(isinstance(entry, dict | str) for entry in entries):
            continue
        shown = [{absolute(base, address) for address in image_files(entry)} for entry in entries]
        is_one_photo = len(found) == 1 and any(SIZES & entry.keys() for entry in entries if isinstance(entry, dict))
        is_one_photo |= len({SIZE.sub("", entry) for entry in entries if entry in image_files(entry)}) == 1
        if found and found <= set().union(*shown) and sum(map(bool, map(found.__and__, shown))) >= len(found):
            return not is_one_photo and any(of_entry and not of_entry & found for of_entry in shown)
    return False


def promised_photos(html: str, site: Site) -> int:
    """Return how many photos a button or a link of a listing's own page promises, beside cards of other listings."""
    soup = BeautifulSoup(html, "html.parser")
    for card in soup.select(site.selectors.listing):
        card.extract()
    texts = (" ".join(tag.get_text(" ").split()) for tag in soup.find_all(["a", "button"]))
    return max((int(found["count"]) for text in texts if (found := ALL_PHOTOS.fullmatch(text))), default=0)


def is_end_of_search(html: str, first: str | None, site: Site) -> bool:
    """Tell whether a page without listings may be the end of a search whose first page was `first`.

    On a first page, and on sites with an `empty` marker, only the marker says so. Elsewhere a page past the end
    resembles the first page without its listings, while one whose layout changed is still about as large as the first
    page with them; what is in between counts as what it is nearer to. A page that turns robots away is never the end.
    """
    if first is None or site.paging.empty:
        return is_empty_search(html, site)
    if is_challenge(html):
        return False
    whole = BeautifulSoup(first, "html.parser")
    for kept in whole.select(KEPT):
        kept.extract()
    full = len(whole.find_all())
    for card in whole.select(site.selectors.listing):
        card.extract()
    return len(BeautifulSoup(html, "html.parser").find_all()) <= (full + len(whole.find_all())) / 2


def find_refusal(html: str) -> str | None:
    """Return the word by which a page's `<meta name="robots">` keeps its photos out of data sets, or None."""
    soup = BeautifulSoup(html, "html.parser")
    named = soup.find_all("meta", attrs={"name": re.compile("^(robots|carspotterscraper)$", re.IGNORECASE)})
    return next(filter(None, (forbidding_word(meta.get("content") or "") for meta in named)), None)


def _select(scope: Tag, css: str) -> list[Tag]:
    """Return what a selector finds; in a whole page also what was kept at its end."""
    found = scope.select(css) if css else [scope]
    if isinstance(scope, BeautifulSoup):
        kept = [tag for end in scope.select(KEPT) for tag in end.find_all(recursive=False)]
        found = [tag for tag in found if not tag.find_parent(KEPT)] + kept
    return found


def read_link(card: Tag, site: Site) -> str | None:
    """Return the address of the listing's own page as the card has it: a link's, or that to which a click leads."""
    link = read(card, site.selectors.link, default_attribute="href")
    if not site.selectors.link or link and link != "#" and not link.startswith("javascript:"):
        return link
    css, attribute = split_selector(site.selectors.link)
    tag = css and not attribute and card.select_one(css) or card
    while tag is not None:
        clicked = ONCLICK.search(tag.get("onclick") or "")
        if tag.get(DESTINATION) or clicked:
            return tag.get(DESTINATION) or clicked[1]
        tag = tag.parent if tag is not card else None
    return link


def named_id(card: Tag, by_link: str | None, link: str | None, site: Site) -> str | None:
    """Return a listing's id: what the site file's `id` finds, without one what the link gives."""
    if not site.selectors.id and not site.selectors.id_pattern:
        return by_link
    text = read(card, site.selectors.id) if site.selectors.id else link
    if text and site.selectors.id_pattern:
        match = re.search(site.selectors.id_pattern, text)
        return match.group(1) if match else None
    return text


def _base_url(soup: BeautifulSoup, page_url: str) -> str:
    if soup.html and soup.html.get(BASE, "").startswith("http"):
        return soup.html[BASE]
    base = soup.find("base", href=True)
    return absolute(page_url, base["href"]) or page_url if base else page_url


def _base_of(tag: Tag, base: str) -> str:
    """Return what an element's addresses are relative to, by default the page's `base`; "" leaves them as they are."""
    holder = tag if tag.has_attr(BASE) else tag.find_parent(KEPT)
    return base and (holder and holder.get(BASE) or base)


def photos_of(
    scope: Tag, base: str, site: Site, stand_ins: Collection[str] = (), detail: bool = False
) -> tuple[tuple[str, ...], int]:
    """Return the photo addresses in a card, or in the page of one listing, and how many pictures there have none."""
    selectors = site.detail if detail else site.selectors
    if not selectors.photos:
        return (), 0
    css, attribute = split_selector(selectors.photos)
    found: dict[str, None] = {}
    bare = 0
    for tag in _select(scope, css):
        sources = addresses_of(tag, attribute, selectors.photos_path, stand_ins)
        bare += not sources and not attribute and is_bare(tag)
        for url in filter(None, (absolute(_base_of(tag, base), source) for source in sources)):
            for pattern, text in site.selectors.replace.items():
                url = re.sub(pattern, text, url)
            found |= {url: None} if url else {}
    return tuple(found), bare
