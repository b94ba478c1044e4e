"""Reads pages: HTML in, listings and photo addresses out. BeautifulSoup only; opens nothing, keeps nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import urldefrag, urljoin, urlsplit

from bs4 import BeautifulSoup, Tag

from scraper.site import Site, named_selectors

# where lazy loaders keep the address until a picture comes into view, in the order of preference
LAZY_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-image", "data-bg", "data-url")
SRCSET_ATTRIBUTES = ("data-srcset", "data-lazy-srcset", "srcset")
AI_REFUSALS = {"noai", "noimageai", "noindex", "noimageindex", "none"}


@dataclass(frozen=True)
class Listing:
    """One car on sale as a page shows it; `id` is unique within the site, None when the page does not tell."""

    id: str | None
    link: str | None
    fields: dict[str, str]
    photos: tuple[str, ...]


def extract_listings(html: str, page_url: str, site: Site) -> list[Listing]:
    """Give the listings of a page in its order, each id once; photo addresses are absolute and largest first choice."""
    soup = BeautifulSoup(html, "html.parser")
    base = _base_url(soup, page_url)
    listings: dict[str | int, Listing] = {}
    for card in soup.select(site.selectors.listing):
        link = read(card, site.selectors.link, default_attribute="href")
        link = absolute(base, link) if link else None
        identity = _listing_id(card, link, site)
        fields = {name: value for name, css in site.fields.items() if (value := read(card, css))}
        listing = Listing(identity, link, fields, tuple(_photos(card, site.selectors.photos, base)))
        key = identity if identity is not None else len(listings)
        known = listings.get(key)  # a "load more" that repeats itself shows a card twice
        listings[key] = _merge(known, listing) if known else listing
    return list(listings.values())


def extract_detail(html: str, page_url: str, site: Site, listing: Listing) -> Listing:
    """Add to `listing` what its own page shows: the gallery's photos and the fields of `[detail]`."""
    soup = BeautifulSoup(html, "html.parser")
    fields = {name: value for name, css in site.detail.fields.items() if (value := read(soup, css))}
    photos = tuple(_photos(soup, site.detail.photos, _base_url(soup, page_url)))
    # a search page shows the same photos small
    return replace(listing, fields=listing.fields | fields, photos=photos or listing.photos)


def read(tag: Tag, selector: str | None, default_attribute: str | None = None) -> str | None:
    """Give what `css`, `css@attribute` or `@attribute` finds in `tag`, white space collapsed; None if nothing."""
    if not selector:
        return None
    css, _, attribute = selector.partition("@")
    attribute = attribute or default_attribute
    found = tag.select_one(css) if css.strip() else tag
    if found is None:
        return None
    value = found.get(attribute) if attribute else found.get_text(" ")
    value = " ".join(value) if isinstance(value, list) else value
    return " ".join(value.split()) or None if value else None


def is_empty_search(html: str, site: Site) -> bool:
    """Tell whether the page says itself that nothing was found, by the marker of the site file."""
    return bool(site.paging.empty) and BeautifulSoup(html, "html.parser").select_one(site.paging.empty) is not None


def is_end_of_search(html: str, first: str | None, site: Site) -> bool:
    """Tell whether a page without listings may be the end of a search whose first page was `first`.

    On a first page, and on sites with an `empty` marker, only the marker says so. Elsewhere a page past the end
    resembles the first page without its listings, while one whose layout changed is still about as large as the first
    page with them; what is in between counts as what it is nearer to.
    """
    if first is None or site.paging.empty:
        return is_empty_search(html, site)
    whole = BeautifulSoup(first, "html.parser")
    full = len(whole.find_all())
    for card in whole.select(site.selectors.listing):
        card.extract()
    return len(BeautifulSoup(html, "html.parser").find_all()) <= (full + len(whole.find_all())) / 2


def find_refusal(html: str) -> str | None:
    """Give the word by which a page's `<meta name="robots">` keeps its photos out of data sets, or None."""
    soup = BeautifulSoup(html, "html.parser")
    for meta in soup.find_all("meta", attrs={"name": re.compile("^(robots|carspotterscraper)$", re.IGNORECASE)}):
        words = {word.strip().lower() for word in (meta.get("content") or "").split(",")}
        if refused := words & AI_REFUSALS:
            return min(refused)
    return None


def count_matches(html: str, site: Site, names: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """Give for each named selector how many elements of the page it finds and what the first of them says."""
    soup = BeautifulSoup(html, "html.parser")
    cards = soup.select(site.selectors.listing)
    result = {}
    for name, selector in named_selectors(site).items():
        if name not in names:
            continue
        inside = cards if name.startswith(("selectors.id", "selectors.link", "selectors.photos", "fields.")) else [soup]
        css = selector.partition("@")[0].strip()
        found = [(scope, tag) for scope in inside for tag in (scope.select(css) if css else [scope])]
        first = ""
        if found and name.endswith("photos"):
            first = next(iter(_sources(found[0][1])), "")
        elif found:
            default = "href" if name == "selectors.link" else None
            first = read(found[0][0], selector, default) or ""
        result[name] = (len(found), first[:80])
    return result


def _listing_id(card: Tag, link: str | None, site: Site) -> str | None:
    text = read(card, site.selectors.id, default_attribute=None) if site.selectors.id else link
    if text and site.selectors.id_pattern:
        match = re.search(site.selectors.id_pattern, text)
        return match.group(1) if match else None
    if text and not site.selectors.id:
        # without an id the listing's own address identifies it; the query is where visits are tracked
        return urlsplit(text).path.strip("/") or None
    return text


def _merge(known: Listing, again: Listing) -> Listing:
    photos = tuple(dict.fromkeys(known.photos + again.photos))
    return replace(known, link=known.link or again.link, fields=known.fields | again.fields, photos=photos)


def _base_url(soup: BeautifulSoup, page_url: str) -> str:
    base = soup.find("base", href=True)
    return absolute(page_url, base["href"]) or page_url if base else page_url


def absolute(base: str, address: str) -> str | None:
    """Give an address of a page as a whole one without its fragment; None for one that is malformed."""
    try:
        return urldefrag(urljoin(base, address)).url
    except ValueError:
        return None


def _photos(scope: Tag, selector: str | None, base: str) -> Iterator[str]:
    seen = set()
    for tag in scope.select(selector) if selector else ():
        for source in _sources(tag):
            url = absolute(base, source.strip())
            if url and url not in seen:
                seen.add(url)
                yield url


def _sources(tag: Tag) -> list[str]:
    """Give the addresses that one element stands for: a picture's largest version, or all of a JSON-LD block."""
    if tag.name == "script":
        return _json_ld_images(tag.get_text())
    candidates = [tag]
    if picture := tag if tag.name == "picture" else tag.find_parent("picture"):
        sources = picture.find_all("source")
        # what an old decoder cannot read is no help when the same picture is there in another format
        plain = [source for source in sources if "avif" not in (source.get("type") or "")]
        candidates = [*(plain or sources), *picture.find_all("img")]
    choices = [
        choice
        for candidate in candidates
        for attribute in SRCSET_ATTRIBUTES
        if candidate.get(attribute)
        for choice in parse_srcset(candidate[attribute])
    ]
    if choices:
        return [max(choices, key=lambda choice: choice[1])[0]]
    for candidate in candidates:
        names = {"a": ("href",), "link": ("href",), "meta": ("content",)}.get(candidate.name, (*LAZY_ATTRIBUTES, "src"))
        for name in names:
            if _is_address(address := candidate.get(name)):
                return [address]
    style = f"{tag.get('style') or ''} {tag.get('data-style') or ''} {tag.get('data-background-image') or ''}"
    found = (match.group(2) for match in re.finditer(r"url\(\s*(['\"]?)(.*?)\1\s*\)", style))
    background = [address for address in found if _is_address(address)]
    if not background and _is_address(tag.get("data-background-image")):
        return [tag["data-background-image"]]
    return background[:1]


def parse_srcset(text: str) -> list[tuple[str, float]]:
    """Give (address, width in pixels or density) for each candidate of a srcset; data: URIs are left out.

    The order of steps is that of the HTML standard ("parse a srcset attribute"), which is why a comma inside an
    address, as content networks write it, does no harm.
    """
    choices, position = [], 0
    while match := re.compile(r"[\s,]*(\S+)").match(text, position):
        address, position = match.group(1), match.end()
        descriptor = ""
        if address.endswith(","):
            address = address.rstrip(",")
        else:
            descriptor = re.compile(r"[^,]*").match(text, position).group()
            position += len(descriptor)
        size = re.search(r"(\d*\.?\d+)[wx]\b", descriptor)
        if _is_address(address):
            choices.append((address, float(size.group(1)) if size else 1.0))
    return choices


def _json_ld_images(text: str) -> list[str]:
    try:
        content = json.loads(text)
    except ValueError:
        return []
    found: list[str] = []

    def walk(node, is_image: bool) -> None:
        if isinstance(node, str):
            if is_image and _is_address(node):
                found.append(node)
        elif isinstance(node, list):
            for part in node:
                walk(part, is_image)
        elif isinstance(node, dict):
            if is_image or node.get("@type") == "ImageObject":
                walk(node.get("contentUrl") or node.get("url"), True)
            else:
                for key, part in node.items():
                    walk(part, key in ("image", "photo"))

    walk(content, False)
    return found


def _is_address(text: str | None) -> bool:
    text = (text or "").strip().lower()
    return bool(text) and not text.startswith(("data:", "blob:", "about:", "javascript:"))
