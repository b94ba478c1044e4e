"""The command line: crawl a site, check a site file, read archived pages again."""

import argparse
import json
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from scraper.browser import Browser
from scraper.closing import DONE, EXIT_CODES, INTERRUPTED, NOTHING_FOUND, USAGE, CrawlStopped, Stats, closing_table
from scraper.crawl import Crawl
from scraper.download import Downloader
from scraper.journal import Journal
from scraper.reparse import reparse
from scraper.site import Site, SiteError, load_site
from scraper.site_check import check_site

NOTICE = """
First crawl of {name} ({hosts}). Before you go on:
  · Read the site's terms of use; some forbid automated collection, and robots.txt is not the whole of them.
  · Photos belong to whoever took them. Keep them to study; do not publish them.
  · People's faces and number plates are personal data; remove a photo when somebody asks.
You show yourself to the site as: {user_agent}
{notice}"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and arguments[0] in ("check", "reparse") else "crawl"
    options = _parser(command).parse_args(arguments[command != "crawl" :])
    try:
        site = load_site(options.site)
        if command != "reparse" and options.base_url:
            site = site.at(options.base_url)
        if command != "reparse" and options.start_url:
            site = site.starting_at(options.start_url, options.label, options.city)
        return {"crawl": _crawl, "check": _check, "reparse": _reparse}[command](site, options)
    except SiteError as error:
        return _say(USAGE, error)
    except CrawlStopped as stop:
        return _say(stop.exit_code, stop)
    except KeyboardInterrupt:
        return _say(INTERRUPTED, "interrupted")


def _say(code: int, text: object) -> int:
    print(f"scraper: {text}", file=sys.stderr)
    return code


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scraper" + ("" if command == "crawl" else f" {command}"),
        description={
            "crawl": "Collect the photos of a site's listings. Other commands: check SITE, reparse SITE.",
            "check": "Open the first page of a site and show what each selector of its site file finds.",
            "reparse": "Read the archived pages again, offline, after the site file was corrected.",
        }[command],
        epilog=EXIT_CODES,
    )
    parser.add_argument("site", help="a name in scraper/sites, or the path of a .toml file")
    if command != "check":
        parser.add_argument("--out", type=Path, default=Path("data/raw"), help="folder of all sites (default data/raw)")
        parser.add_argument("--json", action="store_true", help="print the closing figures as JSON on stdout")
    if command != "reparse":
        parser.add_argument("--start-url", help="start at this page instead of the site file's")
        parser.add_argument("--label", help="with --start-url: the class its listings claim, as swift")
        parser.add_argument("--city", help="with --start-url: the city of its listings")
        parser.add_argument("--base-url", help="scheme, host and port to use instead of the site file's")
        parser.add_argument("--headed", action="store_true", help="show the browser")
        parser.add_argument("--remote-url", help="a WebDriver endpoint (Selenium Grid) instead of a local browser")
    if command == "crawl":
        parser.add_argument(
            "--browsers", type=_positive, default=1, help="open pages with this many browsers at once (default 1)"
        )
        parser.add_argument("--limit", type=_positive, help="stop after this many photos were fetched")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _crawl(site: Site, options: argparse.Namespace) -> int:
    out = options.out / site.name
    with (
        Journal(out) as journal,
        closing(Downloader(site)) as downloader,
        closing(Progress()) as progress,
        ExitStack() as stack,
    ):
        if journal.is_new:
            hosts = ", ".join(sorted({start.url.split("/")[2] for start in site.starts}))
            text = NOTICE.format(name=site.name, hosts=hosts, user_agent=site.user_agent, notice=site.notice)
            print(text, file=sys.stderr)
        if site.paging.kind is None:
            print(f"no paging.kind in the site file of {site.name}: one page of each start is read", file=sys.stderr)
        browsers = [Browser(site, downloader, options.headed, options.remote_url) for _ in range(options.browsers)]
        crawl = Crawl(site, journal, list(map(stack.enter_context, browsers)), downloader, options.limit, progress.show)
        code, ended_by = crawl.finish()
    if ended_by:
        _say(code, ended_by)
    print(closing_table(crawl.stats, out), file=sys.stderr)
    if options.json:
        print(json.dumps(crawl.stats.as_dict(), ensure_ascii=False))
    return code


class Progress:
    """A bar on a terminal; in a log, plain lines at most every few seconds."""

    every = 5.0  # seconds

    def __init__(self):
        self._bar = tqdm(unit=" photos", file=sys.stderr, disable=not sys.stderr.isatty())
        self._next_line = 0.0

    def show(self, stats: Stats, text: str) -> None:
        if text:
            self._bar.write(text, file=sys.stderr)
        done = stats.known + stats.fetched + stats.refused.total() + stats.failed.total()
        if self._bar.disable:
            if time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + self.every
                print(f"{done} of {stats.found} photos, {stats.fetched} fetched", file=sys.stderr, flush=True)
            return
        self._bar.total = stats.found
        self._bar.update(done - self._bar.n)
        self._bar.set_postfix(listings=stats.listings, refused=stats.refused.total(), refresh=False)

    def close(self) -> None:
        self._bar.close()


def _check(site: Site, options: argparse.Namespace) -> int:
    downloader = Downloader(site)
    one_page = replace(site, paging=replace(site.paging, max_pages=1))
    with Browser(one_page, downloader, options.headed, options.remote_url) as browser:
        text, is_usable = check_site(one_page, browser)
    print(text)
    return DONE if is_usable else NOTHING_FOUND


def _reparse(site: Site, options: argparse.Namespace) -> int:
    with Journal(options.out / site.name) as journal:
        counts = reparse(site, journal)
    text = "{pages} pages read again: {listings} listings, {photos} photos; {corrected} lines corrected, {new} new ones"
    print(text.format(**counts), file=sys.stderr)
    if counts["new"]:
        print(f"fetch the new ones with: python -m scraper {site.source} --out {options.out}", file=sys.stderr)
    if options.json:
        print(json.dumps(counts))
    return DONE if counts["listings"] else NOTHING_FOUND
