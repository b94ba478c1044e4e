"""Kills the scraper by SIGKILL at random moments and counts what is lost, doubled or fetched again. Nothing may be.

    python -m benchmarks.scraper_kills --kills 200

No browser: the page is handed in loaded, so that nearly all kills hit the downloading and the writing. A third of
the kills come at a random time after the start, the others a moment after a random photo was asked for.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from scraper.crawl import Crawl
from scraper.download import Downloader
from scraper.journal import Journal
from scraper.loading import LoadedPage
from scraper.site import parse_site
from tests.scraper.misbehaving_site import MisbehavingSite

ROOT = Path(__file__).parent.parent
PHOTOS = 60


class OnePage:
    """Stands in for the browser: one page with all photos, already loaded."""

    def __init__(self, base_url: str):
        cards = "".join(
            f'<article data-id="{n}"><img src="{base_url}/photos/{n}.jpg"></article>' for n in range(PHOTOS)
        )
        self.page = LoadedPage(f"{base_url}/search", cards, "single page", [])

    def load(self, url: str, max_listings: int | None = None):
        yield self.page


def crawl(folder: Path, base_url: str) -> None:
    """One whole crawl of the local site into `folder`; what the killed process runs."""
    content = {
        "contact": "test@example.org",
        "start": [{"url": f"{base_url}/search", "label": "swift"}],
        "selectors": {"listing": "article", "id": "@data-id", "photos": "img"},
        "politeness": {"delay": 0, "allow_private": ["127.0.0.1"]},
    }
    site = parse_site(content, Path("kills.toml"))
    with Journal(folder) as journal:
        Crawl(site, journal, [OnePage(base_url)], Downloader(site)).run()


def kill_run(kills: int, seed: int, show: bool = False) -> dict[str, int]:
    """Crawl, kill and start again until `kills` kills are done; each finished folder is checked against the truth.

    Return counts: kills, folders finished, photos lost, lines doubled, half files left, and the most photos that one
    kill made us fetch again.
    """
    rng = random.Random(seed)
    result = dict.fromkeys(("kills", "folders", "lost", "doubled", "half_files", "most_fetched_again"), 0)
    while result["kills"] < kills:
        with tempfile.TemporaryDirectory() as temporary, MisbehavingSite() as site:
            folder = Path(temporary) / "kills"
            killed = True
            while killed:
                known = set(site.photo_requests())
                count = len(site.photo_requests())
                killed = result["kills"] < kills and _crawl_and_kill(folder, site, rng)
                if not killed:
                    _start(folder, site).wait()
                result["kills"] += killed
                again = sum(path in known for path in site.photo_requests()[count:])
                result["most_fetched_again"] = max(result["most_fetched_again"], again)
                if show and killed:
                    print(f"{result['kills']} kills, {result['folders']} folders finished", file=sys.stderr, flush=True)
            lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
            hashes = {line["sha256"] for line in lines}
            stored = {path.stem for path in folder.glob("??/*") if path.parent.name != "pages"}
            result["folders"] += 1
            result["lost"] += PHOTOS - len(hashes & stored)
            result["doubled"] += len(lines) - PHOTOS + len(stored - hashes)
            result["half_files"] += len(list(folder.glob("**/*.part")))
    return result


def _start(folder: Path, site: MisbehavingSite) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scraper_kills", "--child", str(folder), site.base_url], cwd=ROOT
    )


def _crawl_and_kill(folder: Path, site: MisbehavingSite, rng: random.Random) -> bool:
    """Start a crawl and kill it; tell whether the kill came before its end."""
    if rng.random() < 2 / 3:
        moment = threading.Event()
        target = len(site.photo_requests()) + rng.randrange(1, 12)
        site.on_request = lambda path: len(site.photo_requests()) >= target and moment.set()
        process = _start(folder, site)
        while process.poll() is None and not moment.wait(0.05):
            pass
        wait = rng.uniform(0, 0.02)
    else:
        process = _start(folder, site)
        wait = rng.uniform(0, 3)
    try:
        process.wait(timeout=wait)
    except subprocess.TimeoutExpired:
        process.kill()
    site.on_request = lambda path: None
    return process.wait() == -signal.SIGKILL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        crawl(Path(options.child[0]), options.child[1])
        return 0
    result = kill_run(options.kills, options.seed, show=True)
    print("\n" + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.items()))
    return int(any(result[key] for key in ("lost", "doubled", "half_files")) or result["most_fetched_again"] > 1)


if __name__ == "__main__":
    sys.exit(main())
