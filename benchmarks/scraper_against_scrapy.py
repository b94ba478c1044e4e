"""Photos and CPU time of our downloader against Scrapy's images pipeline, on the same static page, no delay asked.

    pip install scrapy
    python -m benchmarks.scraper_against_scrapy

Both obey robots.txt and decode each photo. Ours keeps the original bytes, synced to the disk, with a journal line
each, one photo after the other; Scrapy re-encodes to JPEG and fetches eight at once. Both run in a process of their
own, alternating; the server is a third process.
"""

from __future__ import annotations

import argparse
import http.server
import io
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import describe
from scraper.crawl import Crawl
from scraper.download import Downloader
from scraper.journal import Journal
from scraper.loading import LoadedPage
from scraper.site import parse_site

ROOT = Path(__file__).parent.parent
PHOTOS = 300


def write_site(folder: Path) -> None:
    """Write a page and its photos, 800 × 600 with camera-like noise, some 100 kB each."""
    rng = np.random.default_rng(0)
    base = np.linspace(40, 200, 800 * 600 * 3).reshape(600, 800, 3)
    for number in range(PHOTOS):
        pixels = (base + rng.normal(0, 8, base.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
        (folder / f"{number}.jpg").write_bytes(buffer.getvalue())
    cards = "".join(f'<article data-id="{number}"><img src="/{number}.jpg"></article>' for number in range(PHOTOS))
    (folder / "index.html").write_text(f"<!doctype html>{cards}")
    (folder / "robots.txt").write_text("User-agent: *\nDisallow: /private/\n")


def serve(folder: Path) -> None:
    """Serve `folder` on a free port, print the port, and end with the input."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as web servers have it

        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128  # with the default, 5, some of Scrapy's eight connections are never accepted

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


def run_ours(base_url: str, out: Path) -> float:
    """Return the seconds of our crawl, page handed in as the browser would."""
    content = {
        "contact": "test@example.org",
        "start": [{"url": f"{base_url}/index.html", "label": "swift"}],
        "selectors": {"listing": "article", "id": "@data-id", "photos": "img"},
        "politeness": {"delay": 0, "allow_private": ["127.0.0.1"]},
    }
    site = parse_site(content, Path("benchmark.toml"))
    cards = "".join(f'<article data-id="{number}"><img src="/{number}.jpg"></article>' for number in range(PHOTOS))

    class OnePage:
        def load(self, url: str, max_listings: int | None = None):
            yield LoadedPage(url, cards, "single page", [])

    started = time.perf_counter()
    with Journal(out) as journal:
        stats = Crawl(site, journal, [OnePage()], Downloader(site)).run()
    assert stats.fetched == PHOTOS, stats
    return time.perf_counter() - started


def run_scrapy(base_url: str, out: Path) -> float:
    """Return the seconds of a Scrapy crawl with its images pipeline, all settings at their defaults but the delay."""
    import scrapy  # noqa: PLC0415 (an optional tool, needed here alone)
    from scrapy.crawler import CrawlerProcess  # noqa: PLC0415

    class Cars(scrapy.Spider):
        name = "cars"
        start_urls = [f"{base_url}/index.html"]

        def parse(self, response):
            for address in response.css("article img::attr(src)").getall():
                yield {"image_urls": [response.urljoin(address)]}

    settings = {
        "ITEM_PIPELINES": {"scrapy.pipelines.images.ImagesPipeline": 1},
        "IMAGES_STORE": str(out),
        "ROBOTSTXT_OBEY": True,
        "DOWNLOAD_DELAY": 0,
        "LOG_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
    }
    process = CrawlerProcess(settings)
    process.crawl(Cars)
    started = time.perf_counter()
    process.start()
    assert len(list(out.glob("full/*"))) == PHOTOS
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, *rest = options.child
        if kind == "serve":
            serve(Path(rest[0]))
        else:
            before = time.process_time()
            print({"ours": run_ours, "scrapy": run_scrapy}[kind](rest[0], Path(rest[1])), time.process_time() - before)
        return 0
    print(describe("requests", "pillow", "scrapy"))
    command = [sys.executable, "-m", "benchmarks.scraper_against_scrapy", "--child"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "site"
        folder.mkdir()
        write_site(folder)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        server = subprocess.Popen([*command, "serve", str(folder)], cwd=ROOT, **pipes)
        base_url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        rates: dict[str, list[float]] = {"ours": [], "scrapy": []}
        for repeat in range(options.repeats):
            for kind, found in rates.items():
                out = Path(temporary) / f"{kind}{repeat}"
                child = subprocess.run([*command, kind, base_url, str(out)], cwd=ROOT, check=True, capture_output=True)
                seconds, cpu_seconds = map(float, child.stdout.split())
                found.append(PHOTOS / seconds)
                print(
                    f"{kind}: {found[-1]:.1f} photos/s, {1000 * cpu_seconds / PHOTOS:.1f} ms of CPU a photo", flush=True
                )
        server.communicate()
    # other work on the machine can only slow a run down
    print(f"ours {max(rates['ours']) / max(rates['scrapy']):.2f} × Scrapy (the fastest of {options.repeats} each)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
