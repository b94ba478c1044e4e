"""Tries a site file on one live page and shows what each selector finds."""

import difflib
import re
from collections.abc import Iterator, Sequence

import soupsieve
from bs4 import BeautifulSoup, Tag

from scraper import pages
from scraper.browser import Browser
from scraper.closing import Stats, gaps_with_advice
from scraper.loading import LoadedPage
from scraper.politeness import Failed, Refused
from scraper.site import Site, named_selectors, split_selector

IN_CARDS = ("selectors.id", "selectors.link", "selectors.photos", "fields.")  # where these are looked for
NOT_AT_FIRST = ("paging.end", "paging.empty")  # what a first page need not show
# what was clicked away, and a frame, whose page does not show it
GONE = ("selectors.frame", "detail.frame", "paging.click")


def check_site(site: Site, browser: Browser) -> tuple[str, bool]:
    """Open the first page of the first start entry, and one listing's own page where the site has them.

    Returns what was found, in words, and whether a crawl with this site file would find photos.
    """
    start = site.starts[0].url
    own_page = None
    try:
        page = next(browser.load(start))
        listings = pages.extract_listings(page.html, page.url, site)
        example = listings[0] if listings else None
        if example and site.detail and example.link:
            own_page = browser.open(example.link)
            example = pages.extract_detail(own_page.html, own_page.url, site, example)
    except (Refused, Failed) as error:
        return f"{start.replace('{page}', str(site.paging.first))}: not opened: {error}", False
    photos = list(dict.fromkeys(url for listing in listings for url in listing.photos))
    lines = [f"{page.url} ({page.stopped_by})", *_describe(page, site, photos, is_detail=False)]
    if site.paging.kind is None:
        lines.append("no paging.kind: a crawl reads this one page of each start")
    if page.more and site.paging.kind != "numbered":
        lines.append(f"{page.more!r} seems to lead on to further listings: name it under [paging]")
    if own_page:
        lines += ["", f"{own_page.url} (the first listing's own page)"]
        lines += _describe(own_page, site, example.photos, is_detail=True)
    where = "their photos on their own pages" if site.detail else f"{len(photos)} photos on this page"
    lines += ["", f"{len(listings)} listings, {where}"]
    missing = Stats(merged=sum(listing.cards - 1 for listing in listings))
    if site.detail:
        missing.without_address = sum(not listing.link for listing in listings)
    else:
        missing.without_photos = sum(not listing.photos for listing in listings)
    lines += gaps_with_advice(missing)
    if example:
        values = [*example.photos[:3], *(f"{name}: {value}" for name, value in example.fields.items())]
        lines += [f"the first: id {example.id!r}, {len(example.photos)} photos", *map("  {}".format, values)]
    elif pages.is_empty_search(page.html, site):
        lines.append("the page says itself that nothing was found; try another --start-url")
    else:
        lines += pages.hints(page.html)
    is_usable = bool(example and example.photos)
    if own_page and not is_usable:
        lines += pages.hints(own_page.html, "detail")
    lines += [] if is_usable else ["a crawl would find nothing: correct the selectors marked with ✗"]
    return "\n".join(lines), is_usable


def _describe(page: LoadedPage, site: Site, photos: Sequence[str], is_detail: bool) -> Iterator[str]:
    """Yield how a page was answered, and a line for each selector: elements found, addresses, and the first value.

    For one that finds nothing this is the nearest selector that would find something.
    """
    yield f"  status {page.http_status or 'unknown'}, title {pages.title_of(page.html)!r}"
    if pages.is_challenge(page.html):
        yield "  this page turns robots away, or asks who is there"
    if page.odd:
        yield f"  {page.odd}"
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
        is_photos = name.endswith("photos")
        default = "href" if name == "selectors.link" else None
        values = photos if is_photos else (pages.read(scope, selector, default) for scope in scopes)
        if is_id := name == "selectors.id":  # as id_pattern leaves it
            values = (pages.named_id(scope, None, None, site) for scope in scopes)
        first = next(filter(None, values), "")
        needs_value = is_photos or is_id or attribute
        mark = "✓" if found and (first or not needs_value) else "–" if name in NOT_AT_FIRST else "✗"
        if not found and name not in NOT_AT_FIRST:
            first = nearest_selector(scopes, css)
        elif found and is_id and not first and pages.read(scopes[0], selector):
            first = f"id_pattern finds nothing in {pages.read(scopes[0], selector)!r}"
        elif found and attribute and not first:
            first = f"no {attribute}; the first has {', '.join(found[0].attrs) or 'no attribute'}"
        count = f", {len(photos)} addresses" if is_photos else ""
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
