"""A site file, and what is read with it."""

import tomllib
from pathlib import Path

from scraper.pages import extract_listings
from scraper.site import parse_site

URL = "https://cars.example/used/swift?city=pune"
SITE_FILE = """
contact = "test@example.org"
[[start]]
label = "swift"
cities = ["pune", "new delhi"]
url = "https://cars.example/used/swift?city={city}"
[selectors]
listing = ".card"
id = "@data-id"
link = "a.more"
photos = "img, picture, .bg, script"
[fields]
title = "h2"
price = ".price@data-amount"
"""


def site(**changes):
    return parse_site(tomllib.loads(SITE_FILE) | changes, Path("cars.toml"))


def photos_of(inner: str) -> tuple[str, ...]:
    (listing,) = extract_listings(f'<div class="card" data-id="7">{inner}</div>', URL, site())
    return listing.photos
