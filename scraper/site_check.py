"""Tries a site file on one live page and shows what each selector finds."""

from __future__ import annotations

from dataclasses import dataclass

from scraper.browser import Browser, PageFailed
from scraper.pages import count_matches, extract_detail, extract_listings, is_empty_search
from scraper.politeness import Failed, Refused
from scraper.site import Site, named_selectors


@dataclass(frozen=True)
class Report:
    """What `check_site` found, and whether a crawl with this site file would give photos."""

    text: str
    is_usable: bool


def check_site(site: Site, browser: Browser) -> Report:
    """Open the first page of the first start entry, and one listing's own page where the site has them."""
    start = site.starts[0].url
    url = start.replace("{page}", str(site.paging.first_page))
    try:
        page = next(browser.load(start))
        listings = extract_listings(page.html, page.url, site)
        listing_names = tuple(name for name in named_selectors(site) if not name.startswith("detail."))
        lines = [f"{page.url} ({page.stopped_by})", *_table(page.html, site, listing_names)]
        example = listings[0] if listings else None
        if example and site.detail and example.link:
            own_page = browser.open(example.link)
            example = extract_detail(own_page.html, own_page.url, site, example)
            detail_names = tuple(name for name in named_selectors(site) if name.startswith("detail."))
            lines += ["", f"{own_page.url} (the first listing's own page)", *_table(own_page.html, site, detail_names)]
    except (Refused, Failed, PageFailed) as error:
        return Report(f"{url}: not opened: {error}", False)
    photos = f"{sum(len(listing.photos) for listing in listings)} photos on this page"
    if site.detail:
        photos = "their photos on their own pages"
    lines += ["", f"{len(listings)} listings, {photos}"]
    if example:
        lines += [
            f"the first: id {example.id!r}, {len(example.photos)} photos",
            *map("  {}".format, example.photos[:3]),
        ]
        lines += [f"  {name}: {value}" for name, value in example.fields.items()]
    elif is_empty_search(page.html, site):
        lines.append("the page says itself that nothing was found; try another --start-url")
    if not (usable := bool(example and example.photos)):
        lines.append("a crawl would give nothing: mend the selectors marked with ✗")
    return Report("\n".join(lines), usable)


def _table(html: str, site: Site, names: tuple[str, ...]) -> list[str]:
    matches = count_matches(html, site, names)
    selectors = named_selectors(site)
    width = max(map(len, names), default=0)
    return [
        f"  {'✓' if count else '✗'} {name:<{width}}  {count:>4} × {selectors[name]!r}  {first}".rstrip()
        for name, (count, first) in matches.items()
    ]
