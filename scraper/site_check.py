"""Tries a site file on one live page and shows what each selector finds."""

from __future__ import annotations

from dataclasses import dataclass

from scraper.browser import Browser
from scraper.closing import NO_ADDRESS
from scraper.loading import LoadedPage
from scraper.pages import (
    Listing,
    count_matches,
    extract_detail,
    extract_listings,
    hints,
    is_challenge,
    is_empty_search,
    title_of,
)
from scraper.politeness import Failed, Refused
from scraper.site import Site, named_selectors


@dataclass(frozen=True)
class Report:
    """What `check_site` found, and whether a crawl with this site file would find photos."""

    text: str
    is_usable: bool


def check_site(site: Site, browser: Browser) -> Report:
    """Open the first page of the first start entry, and one listing's own page where the site has them."""
    start = site.starts[0].url
    url = start.replace("{page}", str(site.paging.first_page))
    own_page = None
    try:
        page = next(browser.load(start))
        listings = extract_listings(page.html, page.url, site)
        example = listings[0] if listings else None
        if example and site.detail and example.link:
            own_page = browser.open(example.link)
            example = extract_detail(own_page.html, own_page.url, site, example)
    except (Refused, Failed) as error:
        return Report(f"{url}: not opened: {error}", False)
    # what was clicked away is gone, and a frame's page does not show its frame
    names = [name for name in named_selectors(site) if not name.startswith(("selectors.frame", "paging.click"))]
    lines = [
        f"{page.url} ({page.stopped_by})",
        *_describe(page),
        *_table(page, site, [name for name in names if not name.startswith("detail.")]),
    ]
    if site.paging.kind is None:
        lines.append("no paging.kind: a crawl reads this one page of each start")
    if page.more and site.paging.kind != "numbered":
        lines.append(f"{page.more!r} seems to lead on to further listings: name it under [paging]")
    if own_page:
        lines += ["", f"{own_page.url} (the first listing's own page)", *_describe(own_page)]
        lines += _table(own_page, site, [name for name in names if name.startswith("detail.")])
    lines += ["", *_summary(site, page, listings, example)]
    if not (usable := bool(example and example.photos)):
        lines.append("a crawl would find nothing: correct the selectors marked with ✗")
    return Report("\n".join(lines), usable)


def _describe(page: LoadedPage) -> list[str]:
    """Return lines on how the page was answered and what it calls itself."""
    lines = [f"  status {page.http_status or 'unknown'}, title {title_of(page.html)!r}"]
    lines += ["  this page turns robots away, or asks who is there"] if is_challenge(page.html) else []
    return lines + ([f"  {page.odd}"] if page.odd else [])


def _summary(site: Site, page: LoadedPage, listings: list[Listing], example: Listing | None) -> list[str]:
    photos = {url for listing in listings for url in listing.photos}
    lines = [f"{len(listings)} listings, {len(photos)} photos on this page"]
    if site.detail:
        lines = [f"{len(listings)} listings, their photos on their own pages"]
        if without := sum(not listing.link for listing in listings):
            lines.append(f"{without} cards lead to no page of their own: {NO_ADDRESS}")
    elif bare := sum(not listing.photos for listing in listings):
        lines.append(f"{bare} listings have no photo")
    if merged := sum(listing.cards - 1 for listing in listings):
        lines.append(f"{merged} cards were merged into another's listing: `id` does not tell them apart")
    if example:
        lines += [
            f"the first: id {example.id!r}, {len(example.photos)} photos",
            *map("  {}".format, example.photos[:3]),
        ]
        lines += [f"  {name}: {value}" for name, value in example.fields.items()]
    elif is_empty_search(page.html, site):
        lines.append("the page says itself that nothing was found; try another --start-url")
    else:
        lines += hints(page.html)
    return lines


def _table(page: LoadedPage, site: Site, names: list[str]) -> list[str]:
    selectors, width = named_selectors(site), max(map(len, names), default=0)
    lines = []
    for name, (count, addresses, first) in count_matches(page.html, page.url, site, names).items():
        is_found = count and (addresses or not name.endswith("photos"))
        mark = "✓" if is_found else "–" if name in ("paging.end", "paging.empty") else "✗"
        found = f"{count:>4} × {selectors[name]!r}" + (f", {addresses} addresses" if name.endswith("photos") else "")
        lines.append(f"  {mark} {name:<{width}}  {found}  {first}".rstrip())
    return lines
