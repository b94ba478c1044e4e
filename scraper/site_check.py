"""Tries a site file on one live page and shows what each selector finds."""

import difflib
import re
from collections.abc import Iterator, Sequence

import soupsieve
from bs4 import BeautifulSoup, Tag

from scraper.browser import Browser
from scraper.closing import NO_PAGES, advice
from scraper.loading import LoadedPage
from scraper.pages import (
    Listing,
    extract_detail,
    extract_listings,
    hints,
    is_challenge,
    is_empty_search,
    read,
    title_of,
)
from scraper.politeness import Failed, Refused
from scraper.site import Site, named_selectors, split_selector

IN_CARDS = ("selectors.id", "selectors.link", "selectors.photos", "fields.")  # where these are looked for
NOT_AT_FIRST = ("paging.end", "paging.empty")  # what a first page need not show
GONE = ("selectors.frame", "paging.click")  # what was clicked away, and a frame, whose page does not show it


def check_site(site: Site, browser: Browser) -> tuple[str, bool]:
    """Open the first page of the first start entry, and one listing's own page where the site has them.

    Returns what was found, in words, and whether a crawl with this site file would find photos.
    """
    start = site.starts[0].url
    example = own_page = None
    try:
        page = next(browser.load(start))
        listings = extract_listings(page.html, page.url, site)
        if listings:
            example = listings[0]
        if example and site.detail and example.link:
            own_page = browser.open(example.link)
            example = extract_detail(own_page.html, own_page.url, site, example)
    except (Refused, Failed) as error:
        return f"{start.replace('{page}', str(site.paging.first_page))}: not opened: {error}", False
    photos = list(dict.fromkeys(url for listing in listings for url in listing.photos))
    lines = [f"{page.url} ({page.stopped_by})", *_describe(page), *_table(page, site, photos, is_detail=False)]
    if site.paging.kind is None:
        lines.append("no paging.kind: a crawl reads this one page of each start")
    if page.more and site.paging.kind != "numbered":
        lines.append(f"{page.more!r} seems to lead on to further listings: name it under [paging]")
    if own_page:
        lines += ["", f"{own_page.url} (the first listing's own page)", *_describe(own_page)]
        lines += _table(own_page, site, example.photos, is_detail=True)
    if site.detail:
        lines += ["", f"{len(listings)} listings, their photos on their own pages"]
    else:
        lines += ["", f"{len(listings)} listings, {len(photos)} photos on this page"]
    lines += _summary(site, page, listings, example)
    if is_usable := bool(example and example.photos):
        return "\n".join(lines), is_usable
    return "\n".join([*lines, "a crawl would find nothing: correct the selectors marked with ✗"]), is_usable


def _describe(page: LoadedPage) -> Iterator[str]:
    """Yield lines on how the page was answered and what it calls itself."""
    yield f"  status {page.http_status or 'unknown'}, title {title_of(page.html)!r}"
    if is_challenge(page.html):
        yield "  this page turns robots away, or asks who is there"
    if page.odd:
        yield f"  {page.odd}"


def _summary(site: Site, page: LoadedPage, listings: list[Listing], example: Listing | None) -> Iterator[str]:
    """Yield lines on what is missing, and on the first listing."""
    if site.detail and (without := sum(not listing.link for listing in listings)):
        yield f"{without} {NO_PAGES}: {advice(NO_PAGES)}"
    if not site.detail and (bare := sum(not listing.photos for listing in listings)):
        yield f"{bare} listings have no photo"
    if merged := sum(listing.cards - 1 for listing in listings):
        yield f"{merged} cards were merged into another's listing: `id` does not tell them apart"
    if example:
        yield f"the first: id {example.id!r}, {len(example.photos)} photos"
        yield from map("  {}".format, example.photos[:3])
        yield from (f"  {name}: {value}" for name, value in example.fields.items())
    elif is_empty_search(page.html, site):
        yield "the page says itself that nothing was found; try another --start-url"
    else:
        yield from hints(page.html)


def _table(page: LoadedPage, site: Site, photos: Sequence[str], is_detail: bool) -> Iterator[str]:
    """Yield a line for each selector: elements found, photo addresses, and the first value.

    For one that finds nothing this is the nearest selector that would find something.
    """
    soup = BeautifulSoup(page.html, "html.parser")
    cards = soup.select(site.selectors.listing)
    selectors = {
        name: selector
        for name, selector in named_selectors(site).items()
        if name.startswith("detail.") == is_detail and not name.startswith(GONE)
    }
    width = max(map(len, selectors), default=0)
    for name, selector in selectors.items():
        scopes = cards if name.startswith(IN_CARDS) else [soup]
        css, attribute = split_selector(selector)
        found = [tag for scope in scopes for tag in (scope.select(css) if css else [scope])]
        default = "href" if name == "selectors.link" else None
        values = photos if name.endswith("photos") else (read(scope, selector, default) for scope in scopes)
        first = next(filter(None, values), "")
        mark = "✓" if found and (first or not name.endswith("photos")) else "–" if name in NOT_AT_FIRST else "✗"
        if not found and name not in NOT_AT_FIRST:
            first = nearest_selector(scopes, css)
        elif found and attribute and not first:
            first = f"no {attribute}; the first has {', '.join(found[0].attrs) or 'no attribute'}"
        count = f", {len(photos)} addresses" if name.endswith("photos") else ""
        yield f"  {mark} {name:<{width}}  {len(found):>4} × {selector!r}{count}  {first[:80]}".rstrip()


def nearest_selector(scopes: list[Tag], css: str) -> str:
    """Return what to write instead of a selector that finds nothing in `scopes`, or an empty text.

    Tried are: class names and ids that look alike, then the selector without one of its conditions or its beginning.
    """
    there = {f".{name}" for scope in scopes for tag in scope.find_all(True) for name in tag.get("class") or ()}
    there |= {f"#{tag['id']}" for scope in scopes for tag in scope.find_all(id=True)}
    pieces = re.findall(r"[.#][\w-]+|\[[^\]]*\]|:[\w-]+(?:\([^)]*\))?", css)
    trials = [css.replace(piece, near) for piece in pieces for near in difflib.get_close_matches(piece, there, 3, 0.5)]
    trials += [css.replace(piece, "", 1).strip(" >+~") for piece in (*pieces, *re.findall(r"^[a-z][\w-]*", css))]
    trials += [css.split(None, 1)[1].strip(" >+~")] if len(css.split()) > 1 else []
    for trial in filter(None, trials):
        try:
            count = sum(len(scope.select(trial)) for scope in scopes)
        except (soupsieve.SelectorSyntaxError, ValueError):  # a part of a selector need not be one
            continue
        if count:
            return f"nearest: {trial!r} finds {count}"
    return ""
