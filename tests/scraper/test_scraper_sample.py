"""The scraper on the two sample sites, with a real browser: exactly the photos that robots.txt allows."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from carspotter_sample.second_site import CARS_A_PAGE, SecondSite
from carspotter_sample.site import MODEL_NAMES, SampleSite
from scraper.browser import CHROMIUM_NAMES
from scraper.journal import Journal
from scraper.pages import is_end_of_search
from scraper.site import load_site
from tests.scraper.misbehaving_site import jpeg
from tests.scraper.test_scraper_crawl import assert_no_browser_left, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(shutil.which, CHROMIUM_NAMES)) or not shutil.which("chromedriver"),
        reason="no chromium and chromedriver on PATH; `make setup` installs them",
    ),
]
MODELS = ("swift", "wagonr")


@pytest.fixture
def photos(tmp_path):
    """A folder as `sample photos` writes it, with plain colours in place of drawn cars."""
    folder = tmp_path / "photos"
    rows = ["file,listing,claim,city,year,price,kilometres"]
    for number in range(40):
        model, city = (*MODELS, "alto", "swift")[number % 4], ("hyderabad", "pune")[number // 4 % 2]
        (folder / model).mkdir(parents=True, exist_ok=True)
        for shot in range(3):
            name = f"{model}/L{number:03}__{shot:02}.jpg"
            (folder / name).write_bytes(jpeg(name))
            rows.append(f"{name},L{number:03},{model},{city},{2010 + number % 12},{300_000 + number},{10_000 + number}")
    (folder / "listings.csv").write_text("\n".join(rows))
    return folder


def scrape(site: SampleSite, out: Path, name: str = "sample") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "scraper", name, "--base-url", site.base_url, "--out", str(out)],
        cwd=Path(__file__).parent.parent.parent,
        env=os.environ | {"TMPDIR": str(out.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )


def requested_photos(site: SampleSite) -> list[str]:
    return [path for _, path, _ in list(site.requests) if path.startswith(("/photos/", "/thumbs/"))]


def test_sample_site_gives_exactly_the_allowed_photos_despite_a_kill(photos, short_path):
    with SampleSite(photos) as site:
        allowed = site.allowed_photos(MODELS)
        killed = scrape(site, short_path / "raw")
        assert wait_until(lambda: len(requested_photos(site)) >= len(allowed) // 2 or killed.poll() is not None)
        killed.kill()
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert_no_browser_left(short_path)
        again = scrape(site, short_path / "raw")
        _, text = again.communicate(timeout=300)
        assert again.returncode == 0, text
        asked = requested_photos(site)
    stored = {path.stem for path in (short_path / "raw" / "sample").glob("??/*")}
    assert stored == allowed and len(allowed) > 20
    assert len(asked) - len(set(asked)) <= 1, "more than one photo was fetched a second time"
    assert not [path for path in asked if "private" in path or "thumbs" in path]
    with Journal(short_path / "raw" / "sample") as journal:
        lines = [journal.newest_line(url) for url in journal.outcomes]
    assert {line["sha256"] for line in lines if line["status"] == "fetched"} == allowed
    refused = [line for line in lines if line["status"] == "refused"]
    assert {line["reason"] for line in refused} == {"robots.txt forbids it"}
    assert {line["label"] for line in lines} == set(MODELS)
    by_id = {listing.id: listing for listing in site.listings}
    for line in lines:
        listing = by_id[line["listing"]]
        assert (line["label"], line["city"].lower(), line["year"]) == (listing.model, listing.city, listing.year)


def write_photos(folder: Path, models: list[str]) -> None:
    """Write the photos of listings 0, 1, … of these models, one each, and three of every seventh from the third on."""
    rows = ["file,listing,claim,city,year,price,kilometres"]
    for number, model in enumerate(models):
        (folder / model).mkdir(parents=True, exist_ok=True)
        for shot in range(3 if number % 7 == 3 else 1):
            name = f"{model}/{number:03}__{shot:02}.jpg"
            (folder / name).write_bytes(jpeg(name))
            rows.append(f"{name},{number:03},{model},hyderabad,{2010 + number},{435_000 + number},{10_000 + number}")
    (folder / "listings.csv").write_text("\n".join(rows))


@pytest.mark.parametrize("empty", [".no-cars", None])
def test_second_site_ends_without_alarm_and_a_changed_layout_raises_one(empty, tmp_path):
    write_photos(tmp_path, ["swift"] * (CARS_A_PAGE * 2 + 1))
    definition = load_site("hyderabad")
    definition = replace(definition, paging=replace(definition.paging, empty=empty))
    with SecondSite(tmp_path) as site:
        address = f"{site.base_url}/hyderabad/swift/page"
        first, second, past, far = (requests.get(f"{address}/{page}", timeout=30).text for page in (1, 2, 4, 99))
    assert is_end_of_search(past, first, definition) and is_end_of_search(far, first, definition)
    assert not is_end_of_search(second.replace("car-card", "auto"), first, definition)


def test_second_site_gives_exactly_the_allowed_photos_with_what_its_pages_say(short_path):
    folder = short_path / "photos"
    # eight Swifts fill more than a page; the seventh-and-so-on listings keep photos for their owners
    write_photos(folder, ["swift"] * (CARS_A_PAGE + 2) + ["wagonr", "alto"] * 2)
    with SecondSite(folder, crawl_delay=0.01) as site:
        allowed = site.allowed_photos(MODELS)
        crawl = scrape(site, short_path / "raw", "hyderabad")
        _, text = crawl.communicate(timeout=300)
        assert crawl.returncode == 0, text
        asked = [path for _, path, _ in list(site.requests)]
    stored = {path.stem for path in (short_path / "raw" / "hyderabad").glob("??/*")}
    assert stored == allowed and len(allowed) > CARS_A_PAGE
    assert not [path for path in asked if "/media/full/owners/" in path or "truth" in path]
    with Journal(short_path / "raw" / "hyderabad") as journal:
        lines = [journal.newest_line(url) for url in journal.outcomes]
    assert {line["sha256"] for line in lines if line["status"] == "fetched"} == allowed
    assert {line["reason"] for line in lines if line["status"] == "refused"} == {"robots.txt forbids it"}
    by_id = {listing.id: listing for listing in site.listings}
    for line in lines:
        listing = by_id[line["listing"]]
        name = MODEL_NAMES[listing.model]
        assert (line["label"], line["model"], line["title"]) == (
            listing.model,
            name,
            f"{listing.year} Maruti Suzuki {name}",
        )
        assert (line["year"], line["city"]) == (listing.year, "Hyderabad")
        assert line["price"].startswith("₹ 4,35,") and int(re.sub(r"\D", "", line["price"])) == listing.price
