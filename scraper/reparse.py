"""Reads the archived pages again, offline: what a corrected site file finds in pages that may be gone by now."""

from scraper.journal import Journal, read_archived_page
from scraper.pages import Listing, extract_detail, extract_listings
from scraper.photos import RESULT_KEYS, names_of
from scraper.site import Site

NOT_FETCHED = {
    "status": "failed",
    "reason": "found by reparse, not fetched yet",
    **dict.fromkeys(("sha256", "bytes", "width", "height")),
}


def reparse(site: Site, journal: Journal) -> dict[str, int]:
    """Extract listings from every archived page of the folder and bring the journal up to date.

    A photo whose listing reads differently now gets a new line with the old result; a photo never seen before gets
    a line as failed, which the next crawl tries to fetch. Where a page was archived several times the newest counts.
    Nothing is asked of the site. Returns counts of pages, listings, photos, corrected and new.
    """
    counts = dict.fromkeys(("pages", "listings", "photos", "corrected", "new", "unchanged"), 0)
    loaded = [page for page in journal.read_pages() if page["status"] == "loaded"][::-1]
    counts["pages"] = len(loaded)
    by_link: dict[str, Listing] = {}
    done: set[tuple] = set()
    # a listing's own page adds to what the search page says of it, so search pages come first
    for page in sorted(loaded, key=lambda page: page["listing_link"] is not None):
        html = read_archived_page(journal.folder / "pages" / page["archive"])
        if page["listing_link"] is None:
            listings = extract_listings(html, page["url"], site)
            by_link = {listing.link: listing for listing in listings if listing.link} | by_link
        elif site.detail and page["listing_link"] in by_link:
            listings = [extract_detail(html, page["url"], site, by_link[page["listing_link"]])]
            name, label = site.name_of(page["listing_link"]), page["start"]["label"]
            collected = journal.collected.get((name, label))
            if collected and collected.get("read_by") != site.reading:
                line = {"url": name, "status": "collected", "label": label}
                journal.append_page(line | collected | {"read_by": site.reading})
        else:
            continue
        for listing in listings:
            key = (listing.id or listing.link, page["start"]["label"], page["listing_link"])
            if key in done and key[0] is not None:
                continue
            done.add(key)
            counts["listings"] += page["listing_link"] is None
            if site.detail and listing.link and page["listing_link"] is None:
                continue  # its photos come from its own page
            for address, name in names_of(listing, site, journal).items():
                counts["photos"] += 1
                counts[_update(journal, page, address, name, listing)] += 1
    del counts["unchanged"]
    return counts


def _update(journal: Journal, page: dict, address: str, url: str, listing: Listing) -> str:
    start = page["start"]
    about = {"url": url, "page_url": page["url"], "listing": listing.id, "label": start["label"], "city": start["city"]}
    about |= listing.fields
    if url not in journal.outcomes:
        journal.append(about | NOT_FETCHED | ({"asked": address} if address != url else {}))
        return "new"
    line = journal.line_of(url, listing.id, start["label"]) or {}
    if all(line.get(key) == value for key, value in about.items() if key != "page_url"):
        return "unchanged"
    journal.append(about | {key: value for key, value in journal.newest_line(url).items() if key in RESULT_KEYS})
    return "corrected"
