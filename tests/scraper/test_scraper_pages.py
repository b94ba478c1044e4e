"""What is read from pages, and what a site file may say."""

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from scraper.pages import extract_detail, extract_listings, find_refusal, is_end_of_search
from scraper.pictures import parse_srcset
from scraper.site import SITES, SiteError, load_site, parse_site

DATA_URI = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
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


PICTURES = {
    "plain src": ('<img src="/a.jpg">', ["https://cars.example/a.jpg"]),
    "relative to the page": ('<img src="a.jpg">', ["https://cars.example/used/a.jpg"]),
    "other host, scheme left out": ('<img src="//cdn.example/a.jpg">', ["https://cdn.example/a.jpg"]),
    "data-src before a placeholder": (f'<img src="{DATA_URI}" data-src="/a.jpg">', ["https://cars.example/a.jpg"]),
    "data-src before a small src": ('<img src="/tiny.jpg" data-src="/a.jpg">', ["https://cars.example/a.jpg"]),
    "data-original": (f'<img src="{DATA_URI}" data-original="/a.jpg">', ["https://cars.example/a.jpg"]),
    "largest of srcset by width": (
        '<img src="/s.jpg" srcset="/s.jpg 320w, /l.jpg 1600w, /m.jpg 800w">',
        ["https://cars.example/l.jpg"],
    ),
    "largest of data-srcset by density": (
        f'<img src="{DATA_URI}" data-srcset="/1.jpg, /3.jpg 3x, /2.jpg 1.5x">',
        ["https://cars.example/3.jpg"],
    ),
    "picture with sources": (
        '<picture><source srcset="/l.webp 900w"><source srcset="/m.webp 400w"><img src="/s.jpg"></picture>',
        ["https://cars.example/l.webp"],
    ),
    "picture whose best source is AVIF": (
        '<picture><source type="image/avif" srcset="/a.avif 900w"><source srcset="/m.webp 400w"><img></picture>',
        ["https://cars.example/m.webp"],
    ),
    "CSS background": (
        "<div class='bg' style=\"background: url('/a.jpg') center\"></div>",
        ["https://cars.example/a.jpg"],
    ),
    "CSS background, lazy": ('<div class="bg" data-bg="/a.jpg"></div>', ["https://cars.example/a.jpg"]),
    "CSS background behind a data URI": (
        f'<div class="bg" style="background: url({DATA_URI}), url(/a.jpg)"></div>',
        ["https://cars.example/a.jpg"],
    ),
    "JSON-LD": (
        '<script type="application/ld+json">{"@type": "Car", "logo": "/no.png", '
        '"image": ["/a.jpg", {"@type": "ImageObject", "contentUrl": "/b.jpg"}]}</script>',
        ["https://cars.example/a.jpg", "https://cars.example/b.jpg"],
    ),
    "JSON-LD that is broken": ('<script type="application/ld+json">{"image": </script><img src="/a.jpg">',)
    + (["https://cars.example/a.jpg"],),
    "the same photo twice": ('<img src="/a.jpg"><img src="/a.jpg#zoom">', ["https://cars.example/a.jpg"]),
    "malformed addresses": (
        '<img src="http://[bad"><img srcset="/b.jpg 1.5.2x"><img src="/a.jpg">',
        ["https://cars.example/b.jpg", "https://cars.example/a.jpg"],
    ),
    "only a placeholder": (f'<img src="{DATA_URI}"><img src=""><img>', []),
}


@pytest.mark.parametrize("inner, expected", PICTURES.values(), ids=PICTURES)
def test_photo_addresses(inner, expected):
    assert list(photos_of(inner)) == expected


def test_srcset_with_commas_inside_addresses():
    text = f"https://c.example/w_200,h_100/a.jpg 200w, {DATA_URI} 1w,\n https://c.example/w_800,h_400/a.jpg 800w,"
    assert parse_srcset(text) == [
        ("https://c.example/w_200,h_100/a.jpg", 200.0),
        ("https://c.example/w_800,h_400/a.jpg", 800.0),
    ]


def test_listing_fields_and_identity():
    html = """<base href="https://other.example/base/"><div class="card" data-id="7"><h2> मारुति
      स्विफ्ट  VXi</h2><b class="price" data-amount="450000">4.5 lakh</b><a class="more" href="car-7#top">x</a></div>"""
    (listing,) = extract_listings(html, URL, site())
    assert listing.id == "7"
    assert listing.link == "https://other.example/base/car-7"
    assert listing.fields == {"title": "मारुति स्विफ्ट VXi", "price": "450000"}


def test_a_card_shown_twice_is_one_listing():
    card = '<div class="card" data-id="7"><img src="/{}.jpg"></div>'
    (listing,) = extract_listings(card.format("a") + card.format("b"), URL, site())
    assert [photo[-5] for photo in listing.photos] == ["a", "b"]


def test_id_from_the_link_by_pattern_and_without_one():
    html = '<div class="card"><a class="more" href="/used/swift-vxi-98765?src=list">more</a></div>' * 2
    selectors = {"listing": ".card", "photos": "img", "link": "a.more"}
    (by_path,) = extract_listings(html, URL, site(selectors=selectors))
    assert by_path.id == "used/swift-vxi-98765"
    pattern = {"id": "a.more@href", "id_pattern": r"-(\d+)\?"}
    (by_pattern,) = extract_listings(html, URL, site(selectors=selectors | pattern))
    assert by_pattern.id == "98765"


def test_cards_without_any_identity_stay_apart():
    html = '<div class="card"><img src="/a.jpg"></div><div class="card"><img src="/b.jpg"></div>'
    listings = extract_listings(html, URL, site(selectors={"listing": ".card", "photos": "img"}))
    assert [(listing.id, len(listing.photos)) for listing in listings] == [(None, 1), (None, 1)]


def test_own_page_adds_photos_and_fields():
    detailed = site(detail={"photos": ".gallery img", "fields": {"year": ".year"}})
    (listing,) = extract_listings('<div class="card" data-id="7"><h2>Swift</h2></div>', URL, detailed)
    html = (
        '<b class="year">2019</b><div class="gallery"><img src="1.jpg"><img data-src="2.jpg"></div><img src="no.jpg">'
    )
    full = extract_detail(html, "https://cars.example/car/7", detailed, listing)
    assert full.fields == {"title": "Swift", "year": "2019"}
    assert full.photos == ("https://cars.example/car/1.jpg", "https://cars.example/car/2.jpg")


@pytest.mark.parametrize(
    "html, word",
    [
        ('<meta name="robots" content="index, NoAI">', "noai"),
        ('<meta name="CarspotterScraper" content="noimageindex">', "noimageindex"),
        ('<meta name="otherbot" content="noai">', None),
        ('<meta name="robots" content="nofollow">', None),
    ],
)
def test_refusal_in_the_page(html, word):
    assert find_refusal(html) == word


def test_one_start_entry_stands_for_many_cities():
    starts = site().starts
    assert [(start.city, start.url[-14:]) for start in starts] == [
        ("pune", "wift?city=pune"),
        ("new delhi", "city=new+delhi"),
    ]


def test_the_same_site_on_another_port():
    moved = site().at("http://127.0.0.1:9999")
    assert moved.starts[0].url == "http://127.0.0.1:9999/used/swift?city=pune"


def test_start_url_takes_its_label_from_the_entry_it_resembles():
    content = tomllib.loads(SITE_FILE)
    content["start"].append({"label": "wagonr", "url": "https://cars.example/used/wagonr"})
    both = parse_site(content, Path("cars.toml"))
    (start,) = both.starting_at("https://cars.example/used/wagonr?city=goa").starts
    assert (start.label, start.city) == ("wagonr", None)
    with pytest.raises(SiteError, match="swift, wagonr.*--label"):
        both.starting_at("https://cars.example/other")
    with pytest.raises(SiteError, match="'foo' is no address"):
        both.starting_at("foo", label="alto")
    assert both.starting_at("https://cars.example/other", label="alto").starts[0].label == "alto"


MISTAKES = {
    "misspelt key": ({"selektors": {}}, "unknown key 'selektors'.*did you mean 'selectors'"),
    "unknown key in a table": ({"paging": {"kind": "scroll", "ende": "#x"}}, "unknown key 'ende' in paging.*'end'"),
    "missing selector": ({"selectors": {"listing": ".card"}}, "selectors needs 'photos'"),
    "broken selector": ({"selectors": {"listing": ".card[", "photos": "img"}}, r"selectors.listing = '.card\['"),
    "no start": ({"start": []}, r"no \[\[start\]\]"),
    "no contact": ({"contact": "me"}, "contact must be"),
    "paging kind": ({"paging": {"kind": "infinite"}}, "paging kind 'infinite' is none of"),
    "paging without its selector": ({"paging": {"kind": "button"}}, "needs the selector 'button'"),
    "number without {page}": ({"paging": {"kind": "numbered"}}, "needs {page}"),
    "label": (
        {"start": [{"label": "Maruti Swift", "url": "https://x.example"}]},
        "'Maruti Swift' becomes a class name",
    ),
    "start without brackets": ({"start": {"label": "swift", "url": "https://x.example"}}, r"write \[\[start\]\]"),
    "cities that are one word": (
        {"start": [{"label": "swift", "url": "https://x.example/{city}", "cities": "pune"}]},
        "cities is 'pune'; write a list",
    ),
    "delay as text": ({"politeness": {"delay": "2"}}, "delay in politeness is '2'; it must be a number"),
    "no delay at all": ({"politeness": {"delay": -5}}, "cannot be negative"),
    "network as text": ({"politeness": {"allow_private": "127.0.0.1"}}, "allow_private in politeness is '127.0.0.1'"),
    "scheme": ({"start": [{"label": "swift", "url": "file:///x"}]}, "neither http nor https"),
    "field of the journal": ({"fields": {"sha256": "b"}}, "sha256 belong to the journal"),
    "detail without link": (
        {"detail": {"photos": "img"}, "selectors": {"listing": ".card", "photos": "img"}},
        "needs the selector 'link'",
    ),
    "id pattern": (
        {"selectors": {"listing": ".card", "photos": "img", "id_pattern": "[0-9]+"}},
        "needs exactly one group",
    ),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_site_file_are_named(changes, message):
    with pytest.raises(SiteError, match=f"cars.toml: ?.*{message}|cars.toml has {message}"):
        site(**changes)


def test_unknown_site_names_the_known_ones():
    with pytest.raises(SiteError, match="known sites are .*sample"):
        load_site("smaple")


def test_the_readmes_site_file_is_one():
    text = (SITES.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    content = tomllib.loads("\n".join(map(textwrap.dedent, blocks)))
    read = parse_site(content, Path("mysite.toml"))
    assert [start.city for start in read.starts] == ["hyderabad", "pune"] and read.paging.kind == "scroll"
    assert read.detail.fields == {"year": ".year"} and re.search(read.selectors.id_pattern, "car-77").group(1) == "77"


@pytest.mark.parametrize("path", SITES.glob("*.toml"), ids=lambda path: path.stem)
def test_every_site_file_is_sound(path):
    assert load_site(path.stem).name == path.stem


CHROME = "<header><a>Cars</a><a>Log in</a></header><footer><a>About</a></footer>"
CARS = '<div class="{}" data-id="7"><h2>Swift</h2><p>4.35 lakh</p><img src="/7.jpg"></div>' * 6
FIRST_PAGE = CHROME + CARS.format(*["card"] * 6)
ENDS = {
    "the marker is there": (CHROME + "<p id=none>", "#none", FIRST_PAGE, True),
    "the marker is not there": (CHROME, "#none", FIRST_PAGE, False),
    "no marker, a page without cars": (CHROME + "<p>Try <a>Alto</a>", None, FIRST_PAGE, True),
    "no marker, a page with cars of another layout": (CHROME + CARS.format(*["ad"] * 6), None, FIRST_PAGE, False),
    "a first page": (CHROME, None, None, False),
    "a first page with the marker": (CHROME + "<p id=none>", "#none", None, True),
}


@pytest.mark.parametrize("html, empty, first, is_end", ENDS.values(), ids=ENDS)
def test_the_end_of_a_search_is_told_from_a_changed_layout(html, empty, first, is_end):
    paging = {"paging": {"kind": "next", "next": "a"} | ({"empty": empty} if empty else {})}
    assert is_end_of_search(html, first, site(**paging)) == is_end
