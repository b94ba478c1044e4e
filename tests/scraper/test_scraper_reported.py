"""All reported, lively and hard sites, crawled twice: every photo comes, or it is said what is missing."""

import json
import re
import shutil
from pathlib import Path

import pytest

from scraper.browser import CHROMIUM_NAMES
from scraper.cli import main
from tests.scraper.misbehaving_site import REPORTED, MisbehavingSite

SITES = {name: module.SITES[name] for name, module in REPORTED.items()}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(shutil.which, CHROMIUM_NAMES)) or not shutil.which("chromedriver"),
        reason="no chromium and chromedriver on PATH; `make setup` installs them",
    ),
]


def write_site_file(folder: Path, base_url: str, name: str) -> Path:
    site = SITES[name]
    path = folder / "reported.toml"
    path.write_text(
        f'contact = "test@example.org"\n[[start]]\nlabel = "swift"\nurl = "{base_url}/reported/{name}{site.url}"\n'
        f"[selectors]\n{site.selectors}\n{site.more}\n{'' if '[politeness]' in site.more else '[politeness]'}\n"
        'delay = 0\npage_timeout = 120\nallow_private = ["127.0.0.1"]\n'
    )
    return path


@pytest.mark.parametrize("name", SITES)
def test_a_reported_site_gives_all_its_photos_or_says_what_is_missing(name, tmp_path, capsys):
    expected = SITES[name]
    with MisbehavingSite() as site:
        file = write_site_file(tmp_path, site.base_url, name)
        for run in range(2):
            site.log.clear()
            code = main([str(file), "--out", str(tmp_path / "raw"), "--json"])
            output = capsys.readouterr()
            lines = (tmp_path / "raw" / "reported" / "journal.jsonl").read_text().splitlines()
            fetched = [line for line in map(json.loads, lines) if line["status"] == "fetched"]
            urls, listings = {line["url"] for line in fetched}, {line["listing"] for line in fetched}
            assert (len(urls), len(listings), code) == (expected.photos, expected.listings, expected.code), output.err
            assert re.search(expected.said, output.err), output.err
            asked = [path for path in site.log if path.startswith("/photos/")]
            assert len(asked) == (0 if run else expected.photos) + expected.asked_by_page
