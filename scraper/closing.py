"""The closing table of a crawl: what was found, what may be missing and what to try, and the exit code."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from scraper.politeness import ROBOTS_FORBID

DONE, NOTHING_FOUND, USAGE, STOPPED, FAILED_FOR_NOW, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

EXIT_CODES = """exit codes: 0 all that the pages show is here · 1 a page gave no listings or could not be opened ·
2 usage or site file · 3 stopped by the disk, the browser or a site that no longer answers (run again: goes on) ·
4 some photos failed for now (run again: tries them again) · 5 came to its end, but something may be missing: the
closing table says what, and what to try · 130 Ctrl-C (run again: goes on)"""

# What to try, by the beginning of what may be missing.
ADVICE = {
    "listings without photos": "look at one of them: `photos` may not find what it shows, or it loads later (settle)",
    "cards that lead": "`link` may name what leads on when it is clicked; where a click shows the car in the list's "
    "place, its page has no address: leave [detail] out and take what the cards show, with `photos` under [selectors]",
    "pages read with other settings": "the site file changed since: `reparse` reads them again, and asks nothing",
    "pictures without an address": "they load later (settle, patience), or are no photos: make `photos` more exact, as "
    "img:not(.icon)",
    "listings that share": "it stands in for their photos, perhaps; name the attribute that holds the real address: "
    "photos = 'img@data-…'",
    "cards merged": "give `id` (and id_pattern) what tells listings apart",
    "failed for now": "run the same command again",
    "pages not opened": "run again; pages.jsonl says why, page by page",
    "refused: robots.txt": "the site does not want them fetched; ask its owner",
    "refused: the page says": "the site keeps them out of data sets; if its owner lets you: respect_noai = false",
    "refused: X-Robots-Tag": "the site keeps them out of data sets; if its owner lets you: respect_noai = false",
    "refused: too many bytes": "raise max_bytes under [politeness]",
    "refused: too many pixels": "raise max_pixels under [politeness]",
    "refused: too small": "icons, as a rule; lower min_width under [politeness] to have them",
    "refused: private address": "if the site is your own: allow_private = ['address'] under [politeness]",
    "refused: cannot be decoded": "open one in your own browser; another format may need a decoder: see the journal",
    "refused: not a photo": "open one in your own browser: a log-in page, or an address that is not a photo's",
    "refused: status 401": "they want a log-in: cookies or headers under [request]",
    "refused: status 403": "they want what your own browser sends (cookies or headers under [request]), or were good "
    "for a time only (name what changes in them with ignore_query)",
    "refused: status 404": "look at one address in the journal: `photos` or `replace` may make a wrong one",
    "refused: ": "see the journal",
    "pages: stopped at": "raise max_pages or max_listings under [paging]",
    "pages: still changing": "raise page_timeout under [politeness]",
    "pages: cards kept coming": "the list may have no end: give `end`, or more exact selectors",
    "pages: a script's request": "run again, slower: raise delay under [politeness]",
    "pages: the last page": "to further listings, perhaps: name it under [paging]; is this all: kind = 'none'",
    "pages: the first page": "it is not the first, perhaps: first_page = 0 under [paging], else 1",
    "pages: the second page": "{page} may be in the wrong place of the address; is there one page only: max_pages = 1",
    "pages: status 404": "are they the search's own, click to get there: kind = 'button' under [paging]",
    "pages: status 410": "are they the search's own, click to get there: kind = 'button' under [paging]",
    "pages: a button on": "name it with click = ['…'] under [paging]",
    "pages: a script on": "read them there: photos = 'script' under [detail], with photos_path where that is too much",
    "pages: ": "look at one of them in the archive",
}
MOST_WARNINGS = 10


class CrawlStopped(Exception):
    """The crawl ended early because going on would not help; the text says why and what to do. Nothing is lost."""

    exit_code = STOPPED


@dataclass
class Stats:
    """What a crawl did. Counts; `bytes` of photos, `seconds` of wall clock."""

    pages: int = 0
    listings: int = 0
    found: int = 0  # photo URLs seen on pages, each once
    fetched: int = 0
    known: int = 0  # had their outcome from an earlier run
    refused: Counter = field(default_factory=Counter)  # reason -> photos
    known_refused: Counter = field(default_factory=Counter)  # the same from earlier runs
    failed: Counter = field(default_factory=Counter)
    pages_lost: Counter = field(default_factory=Counter)
    odd_pages: Counter = field(default_factory=Counter)  # what may be missing -> pages
    without_photos: int = 0  # listings
    without_address: int = 0  # listings, where [detail] wants the page of each
    without_id: int = 0  # listings, where the site file says what tells them apart
    read_otherwise: int = 0  # pages that were collected before, with other settings
    bare: int = 0  # pictures without an address, beside others of their listing
    merged: int = 0  # cards that became a listing together with another card
    shared: Counter = field(default_factory=Counter)  # address -> listings, where several show the same
    warnings: list[str] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict:
        return vars(self) | {"photos_per_second": round(self.fetched / self.seconds, 2) if self.seconds else 0.0}


Report = Callable[[Stats, str], None]  # hears of each photo and page, in words where there is something to say


def kind_of(error: Exception | str) -> str:
    """Return what a reason has in common with others of its kind: the part before the colon."""
    return str(error).partition(":")[0]


def gaps(stats: Stats) -> dict[str, int]:
    """Return what may be missing, with its number; empty where everything that the pages show is here.

    Photos that robots.txt forbids, that were forgotten on request, or that are smaller than the site file wants them,
    are no gap while there are others.
    """
    refused = stats.refused + stats.known_refused
    if stats.fetched + stats.known > stats.known_refused.total():
        refused -= Counter({reason: refused[reason] for reason in (ROBOTS_FORBID, "forgotten", "too small")})
    shared, sharing = next(iter(stats.shared.items()), ("", 0))
    counts = {
        "listings without photos": stats.without_photos,
        "cards that lead to no page of their own": stats.without_address,
        "pictures without an address": stats.bare,
        "pages read with other settings": stats.read_otherwise,
        f"listings that share the photo address {shared}": sharing,
        "cards merged into another's listing": stats.merged,
        **{f"pages: {reason}": count for reason, count in stats.odd_pages.items()},
        **{f"refused: {reason}": count for reason, count in refused.most_common()},
        "failed for now": stats.failed.total(),
        "pages not opened": stats.pages_lost.total(),
    }
    return {what: count for what, count in counts.items() if count}


def gaps_with_advice(stats: Stats) -> list[str]:
    """Return for each gap a line that says what to try."""
    return [
        f"{count:,} {what}: {next(text for beginning, text in ADVICE.items() if what.startswith(beginning))}"
        for what, count in gaps(stats).items()
    ]


def exit_code(stats: Stats) -> int:
    """Return the exit code of a crawl that came to its end."""
    if stats.pages_lost:
        return NOTHING_FOUND
    if stats.failed:
        return FAILED_FOR_NOW
    return INCOMPLETE if gaps(stats) else DONE


def closing_table(stats: Stats, folder: object) -> str:
    """Return the text that ends a crawl: counts, what became of photos and why, and what may be missing."""

    def rows_of(words: str, reasons: Counter) -> list[tuple[str, int]]:
        return [(f"{words}: {reason}", count) for reason, count in reasons.most_common()]

    rows = [("pages", stats.pages), ("listings", stats.listings), ("photos found", stats.found)]
    rows += [("  known from earlier runs", stats.known), *rows_of("    of these refused", stats.known_refused)]
    rows += [("  fetched", stats.fetched), *rows_of("  refused", stats.refused)]
    rows += rows_of("  failed for now", stats.failed) + rows_of("pages not opened", stats.pages_lost)
    rate = stats.fetched / stats.seconds if stats.seconds else 0.0
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {count:>8,}" for name, count in rows]
    lines.append(f"{stats.bytes / 1e6:,.1f} MB in {stats.seconds:,.0f} s, {rate:.1f} photos/s, in {folder}")
    lines += [f"warning: {text}" for text in stats.warnings[:MOST_WARNINGS]]
    if len(stats.warnings) > MOST_WARNINGS:
        lines.append(f"and {len(stats.warnings) - MOST_WARNINGS:,} more warnings")
    if stats.without_id:
        lines.append(
            f"warning: {stats.without_id:,} listings without an id: `id` (or id_pattern) finds nothing in them"
        )
    if missing := gaps_with_advice(stats):
        lines += ["something may be missing:", *map("  {}".format, missing)]
    return "\n".join(lines)
