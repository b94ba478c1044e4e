"""Memory of the scraper and of its browser's processes over many pages, each of which keeps 20 MB in its script.

    python -m benchmarks.scraper_memory [--pages 500] [--restart-every 50]

A browser collects what earlier pages kept when it likes to, so that its memory goes up and down from page to page.
Growth of ours, as by a process left behind, would show from one browser's life to the next.
"""

from __future__ import annotations

import argparse
import http.server
import os
import statistics
import threading
from pathlib import Path

from benchmarks.machine import describe
from scraper.browser import Browser
from scraper.download import Downloader
from scraper.site import parse_site

PAGE = """<!doctype html><article class="listing" data-id="{page}"><img src="/{page}.jpg"></article>
<script>window.kept = new Array(2.5e6).fill(Math.random());</script>"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = PAGE.format(page=self.path.strip("/")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def resident_megabytes(process: str | int) -> float:
    """Return the memory of one process that no other shares with it (MB); 0 when it ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1000


def group_megabytes(group: int) -> float:
    """Return the memory of all processes of a process group."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                total += resident_megabytes(folder.name)
        except ProcessLookupError:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--restart-every", type=int, default=50)
    options = parser.parse_args()
    print(describe("selenium"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    content = {
        "contact": "test@example.org",
        "start": [{"url": f"http://127.0.0.1:{server.server_port}/{{page}}", "label": "swift"}],
        "selectors": {"listing": "article.listing", "id": "@data-id", "photos": "img"},
        "paging": {"kind": "numbered", "max_pages": options.pages, "settle": 0.1},
        "politeness": {
            "delay": 0,
            "allow_private": ["127.0.0.1"],
            "restart_browser_every": options.restart_every,
        },
    }
    site = parse_site(content, Path("memory.toml"))
    ours: list[float] = []
    lives: dict[int, list[float]] = {}  # process group of a browser -> its memory at each page
    with Browser(site, Downloader(site)) as browser:
        for page in browser.load(site.starts[0].url):
            assert 'class="listing"' in page.html
            ours.append(resident_megabytes("self"))
            lives.setdefault(browser.guard.pid, []).append(group_megabytes(browser.guard.pid))
        left = sum(group_megabytes(group) for group in lives if group != browser.guard.pid)
    server.shutdown()
    print(f"scraper, {len(ours)} pages: {ours[0]:.0f} MB at the first, {ours[-1]:.0f} MB at the last")
    print(f"ended browsers still hold {left:.0f} MB")
    for name, figure in (("median", statistics.median), ("most", max)):
        print(f"browser, {name} of each life: {', '.join(f'{figure(life):.0f}' for life in lives.values())} MB")


if __name__ == "__main__":
    main()
