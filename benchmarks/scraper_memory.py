"""Memory of the scraper and of its browser's processes over many pages, each of which keeps 20 MB in its script.

python -m benchmarks.scraper_memory [--pages 500]
"""

from __future__ import annotations

import argparse
import http.server
import os
import threading
from pathlib import Path

from benchmarks.machine import describe
from scraper.browser import Browser
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
    """Give the memory of one process that no other shares with it (MB); 0 when it ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1000


def group_megabytes(group: int) -> float:
    """Give the memory of all processes of a process group."""
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
    options = parser.parse_args()
    print(describe("selenium"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    content = {
        "contact": "test@example.org",
        "start": [{"url": f"http://127.0.0.1:{server.server_port}/{{page}}", "label": "swift"}],
        "selectors": {"listing": "article.listing", "id": "@data-id", "photos": "img"},
        "paging": {"kind": "numbered", "max_pages": options.pages},
        "politeness": {"delay": 0, "allow_private": ["127.0.0.1"]},
    }
    site = parse_site(content, Path("memory.toml"))
    ours, theirs = [], []
    with Browser(site) as browser:
        for page in browser.load(site.starts[0].url):
            assert 'class="listing"' in page.html
            ours.append(resident_megabytes("self"))
            theirs.append(group_megabytes(browser.process_group))
    server.shutdown()
    tenth = max(1, len(ours) // 10)
    for name, values in (("scraper", ours), ("browser", theirs)):
        print(
            f"{name}, {len(values)} pages: most in the first tenth {max(values[:tenth]):.0f} MB, in the last "
            f"{max(values[-tenth:]):.0f} MB, of all {max(values):.0f} MB"
        )


if __name__ == "__main__":
    main()
