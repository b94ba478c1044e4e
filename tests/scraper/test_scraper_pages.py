"""What is read from pages, and what a site file may say."""

import json
import re
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup

from scraper.addresses import lasting
from scraper.cards import Cards
from scraper.loading import LoadedPage
from scraper.pages import (
    extract_detail,
    extract_listings,
    find_refusal,
    is_busy,
    is_challenge,
    is_end_of_search,
    lists_more_photos,
)
from scraper.pictures import parse_srcset
from scraper.settling import Settling
from scraper.site import SITES, SiteError, load_site, parse_site
from scraper.site_check import _describe, nearest_selector
from scraper.traffic import Traffic

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
    "picture whose best source is a JPEG XL": (
        '<picture><source type="image/jxl" srcset="/a.jxl 900w"><source srcset="/m.webp 400w"><img></picture>',
        ["https://cars.example/m.webp"],
    ),
    "JPEG XL by its name, and nothing else but a plain src": (
        '<picture><source srcset="/a.jxl"><img src="/a.jpg"></picture>',
        ["https://cars.example/a.jpg"],
    ),
    "JPEG XL and nothing else": ('<picture><source srcset="/a.jxl"></picture>', ["https://cars.example/a.jxl"]),
    "AVIF and JPEG of one size": (
        '<picture><source type="image/avif" srcset="/a.avif"><img src="/a.jpg"></picture>',
        ["https://cars.example/a.jpg"],
    ),
    "a source for telephones, as loading marks it": (
        '<picture><source data-scraper-other-screen media="(max-width: 600px)" srcset="/s.jpg 2000w"><source '
        'media="(min-width: 40em)" srcset="/l.jpg"><img src="/m.jpg"></picture>',
        ["https://cars.example/l.jpg"],
    ),
    "an attribute of a loader that nobody knows": (
        '<img src="/spinner.gif" data-ll-photo="/a.jpg">',
        ["https://cars.example/a.jpg"],
    ),
    "the full size beside a photo that is shown": (
        '<img src="/m.jpg" data-zoom-image="/l.jpg" data-thumb="/s.jpg" data-hover="/back.jpg">',
        ["https://cars.example/l.jpg"],
    ),
    "the full size beside a lazy one": (
        '<img src="/s.jpg" data-src="/m.jpg" data-zoom-image="/l.jpg" srcset="/s.jpg 300w">',
        ["https://cars.example/l.jpg"],
    ),
    "a small picture that is a link to the large one": (
        '<a href="/l.jpg"><img src="/s.jpg" srcset="/s.jpg 1x, /m.jpg 2x"></a>',
        ["https://cars.example/l.jpg"],
    ),
    "a small picture that is a link to a page with the file's name in its query": (
        '<a href="/zoom.php?pic=a.jpg"><img src="/a.jpg"></a>',
        ["https://cars.example/a.jpg"],
    ),
    "the full size as JSON in an attribute": (
        """<img src="/s.jpg" data-full='{"src": "/l.jpg", "width": 1600}'>""",
        ["https://cars.example/l.jpg"],
    ),
    "several sizes as JSON in an attribute": (
        """<img src="/m.jpg" data-full='{"s": "/s.jpg", "l": "/l.jpg"}'>""",
        ["https://cars.example/m.jpg"],
    ),
    "an address for a script to fill": (
        '<img src="/a.jpg" data-src="/a-{width}.jpg" data-lazy="/a-%7Bwidth%7D.jpg" srcset="/{{n}}.jpg 900w">',
        ["https://cars.example/a.jpg"],
    ),
    "a name in braces": ('<img src="/{3F25-04E0}.jpg">', ["https://cars.example/{3F25-04E0}.jpg"]),
    "a srcset under another name": (
        '<div class="bg" data-bgset="/s.jpg 480w, /l.jpg 960w" data-text="Swift 2.0 4x"></div>',
        ["https://cars.example/l.jpg"],
    ),
    "a srcset where an address belongs": (
        '<img data-src="s.jpg 300w, l.jpg 900w">',
        ["https://cars.example/used/l.jpg"],
    ),
    "CSS background with a drawing before the photo": (
        '<div class="bg" style="background: url(/frame.svg), url(/a.jpg)"></div>',
        ["https://cars.example/a.jpg"],
    ),
    "a picture that is a link to a page": ('<a href="/car/7"><img src="/a.jpg"></a>', ["https://cars.example/a.jpg"]),
    "another photo in an attribute": ('<img src="/front.jpg" data-hover="/b.jpg">', ["https://cars.example/front.jpg"]),
    "a picture from a style sheet, as loading notes it": (
        '<div class="bg" data-scraper-background=\'url("https://cars.example/a.jpg")\'></div>',
        ["https://cars.example/a.jpg"],
    ),
    "backslashes": (r'<img src="\up\1.jpg?a=b\c">', ["https://cars.example/up/1.jpg?a=b\\c"]),
    "JSON-LD with a raw line break, a comma too many and a semicolon": (
        '<script type="application/ld+json">//<![CDATA[\n{"@type": "Car", "description": "one\nowner", '
        '"image": ["/a.jpg",],};\n//]]></script>',
        ["https://cars.example/a.jpg"],
    ),
    "JSON-LD broken beyond reading": (
        '<script type="application/ld+json">{"name": "5" tyres", "image": ["/a.jpg", "/b.jpg"]}</script>',
        ["https://cars.example/a.jpg", "https://cars.example/b.jpg"],
    ),
    "JSON-LD with comments, and addresses as HTML writes them": (
        '<script type="application/ld+json">/* car */ [{"@context": "https://schema.org", // it\n'
        '"@graph": [[{"image": {"contentUrl": "/a.jpg?w=1&amp;h=2",},}]]}]</script>',
        ["https://cars.example/a.jpg?w=1&h=2"],
    ),
    "JSON-LD of a dealer, a car and others like it": (
        '<script type="application/ld+json">{"@graph": [{"@type": "AutoDealer", "image": "/shop.jpg"}, '
        '{"@type": ["Car"], "image": {"@list": ["/a.jpg", {"@id": "#b"}]}, "isSimilarTo": [{"image": "/other.jpg"}]}, '
        '{"@type": ["ImageObject"], "@id": "#b", "url": "/b.jpg", "thumbnail": {"image": "/t.jpg"}}]}</script>',
        ["https://cars.example/a.jpg", "https://cars.example/b.jpg"],
    ),
    "densities alone, and types that nobody knows first": (
        '<picture><source type="image/jxl" srcset="/9.jxl 4x"><img srcset="/1.jpg 1x, /2.jpg 2x"></picture>',
        ["https://cars.example/2.jpg"],
    ),
    "an attribute that nobody knows, without data-": (
        '<img lazy="/a.jpg" alt="x.jpg">',
        ["https://cars.example/a.jpg"],
    ),
    "attributes of a lazy loader that are no addresses, and one of a page": (
        '<img src="/a.jpg" data-lazy="true"><img src="/b.jpg" data-image="2"><img src="/c.jpg" data-url="/car/7">',
        [f"https://cars.example/{name}.jpg" for name in "abc"],
    ),
    "an attribute that nobody knows, no file": ('<img data-pic="/image/7">', ["https://cars.example/image/7"]),
    "JSON in an attribute that nobody knows": (
        """<img data-pics='{"big": "/a.jpg"}' src="data:,">""",
        ["https://cars.example/a.jpg"],
    ),
    "a script's mistake": ('<img src="/undefined"><img src="null">', []),
    "an object of JavaScript": (
        "<script>var car = {id: 7, sold: undefined, 'pics': ['/a.jpg', `/b.jpg`], note: \"it's 5' long\",}</script>",
        ["https://cars.example/a.jpg", "https://cars.example/b.jpg"],
    ),
    "lists of an old script": (
        "<script>p = new Array(); p[0] = '/a.jpg'; p[1]='/b.jpg'; q = new Array('/c.jpg'); q.push('/d.jpg')</script>",
        [f"https://cars.example/{name}.jpg" for name in "abdc"],
    ),
    "JSON in a text of JavaScript": (
        r"""<script>s = JSON.parse('{"t":"it\'s","pics":["\/a.jpg"]}'); t = JSON.parse("[\"\u002fb.jpg\"]")</script>""",
        ["https://cars.example/a.jpg", "https://cars.example/b.jpg"],
    ),
    "JSON of a script": (
        '<script>window.state = {"cars": [{"pic": "/a.jpg?w=9", "logo": "/no"}], "n": 1};</script>',
        ["https://cars.example/a.jpg?w=9"],
    ),
    "CSS background": (
        "<div class='bg' style=\"background: url('/a.jpg') center\"></div>",
        ["https://cars.example/a.jpg"],
    ),
    "CSS background with escapes, beside what the browser makes of it": (
        r"""<p class="bg" style="background: url('/it\'s.jpg')" data-scraper-background='url("/it&#39;s.jpg")'></p>""",
        ["https://cars.example/it's.jpg"],
    ),
    "CSS background for screens of several densities": (
        '<div class="bg" style="background-image: image-set(url(/1.jpg) 1x, url(/2.jpg) 2x)"></div>',
        ["https://cars.example/2.jpg"],
    ),
    "url() in an attribute": ('<div class="bg" data-bg="url(/a.jpg)"></div>', ["https://cars.example/a.jpg"]),
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


ATTRIBUTES = {
    "address": ("img@data-x", '<img data-x="/a.jpg" src="/no.jpg">', ["a.jpg"]),
    "of the card itself": ("@data-id", "", ["7"]),
    "srcset": ("img@data-x", '<img data-x="/s.jpg 300w, /l.jpg 900w">', ["l.jpg"]),
    "JSON": ("b@data-x", '<b data-x=\'["/a.jpg", "/b.jpg"]\'>', ["a.jpg", "b.jpg"]),
    "list": ("b@data-x", '<b data-x="/a.jpg|/b.jpg">', ["a.jpg", "b.jpg"]),
    "a comma in an address": ("b@data-x", '<b data-x="/w_4,h_3/a.jpg">', ["a.jpg"]),
    "missing": ("img@data-y", '<img src="/a.jpg">', []),
    "an @ inside the selector": ('img[alt="me@home"]', '<img alt="me@home" src="/a.jpg">', ["a.jpg"]),
}


@pytest.mark.parametrize("photos, inner, expected", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_photos_may_name_an_attribute(photos, inner, expected):
    read = site(selectors={"listing": ".card", "id": "@data-id", "photos": photos})
    (listing,) = extract_listings(f'<div class="card" data-id="7">{inner}</div>', URL, read)
    assert [photo.rpartition("/")[2] for photo in listing.photos] == expected


PATHS = {
    "props.car.images.*.url": ["a.jpg", "b.jpg"],
    "props.car.images.url": ["a.jpg", "b.jpg"],
    "props.car.images[1].url": ["b.jpg"],
    "$['props'].car.images[*].url": ["a.jpg", "b.jpg"],
    "$..url": ["a.jpg", "b.jpg"],
    "props.nothing": [],
}


@pytest.mark.parametrize("path", PATHS)
def test_photos_by_a_path_in_json(path):
    images = [{"url": "/a.jpg", "thumb": "/t.jpg"}, {"url": "/b.jpg"}]
    html = (
        f"<div class=card data-id=7><script id=data>{json.dumps({'props': {'car': {'images': images}}})}</script></div>"
    )
    read = site(selectors={"listing": ".card", "id": "@data-id", "photos": "#data", "photos_path": path})
    assert [photo.rpartition("/")[2] for photo in extract_listings(html, URL, read)[0].photos] == PATHS[path]


def test_a_picture_that_stands_in_without_an_address_is_no_photo():
    card = f'<div class="card" data-id="{{0}}"><img src="{DATA_URI}"><noscript><img src="/{{0}}.jpg"></noscript></div>'
    assert [len(one.photos) for one in extract_listings("".join(map(card.format, "123")), URL, site())] == [1, 1, 1]


def test_thumbnails_are_replaced_by_what_the_site_file_says():
    read = site(
        selectors={"listing": ".card", "photos": "img", "replace": {r"_s(\d+)\.jpg": r"_l\1.jpg", "/t/": "/f/"}}
    )
    (listing,) = extract_listings('<div class="card"><img src="/t/7_s2.jpg"></div>', URL, read)
    assert listing.photos == ("https://cars.example/f/7_l2.jpg",)


def test_a_picture_that_three_cards_show_gives_way_to_another_attribute():
    card = '<div class="card" data-id="{0}"><img src="/car.png" data-pic="/{0}.jpg"></div>'
    listings = extract_listings("".join(map(card.format, "123")), URL, site())
    assert [listing.photos[0][-5] for listing in listings] == ["1", "2", "3"]
    listings = extract_listings("".join(map(card.format, "12")), URL, site())
    assert {listing.photos[0][-7:] for listing in listings} == {"car.png"}


LINKS = {
    "by path": (["/car/a-1", "/car/b-2"], ["car/a-1", "car/b-2"]),
    "tracking does not count": (["/car/a-1?src=list&utm_x=1", "/car/b-2?pos=2"], ["car/a-1", "car/b-2"]),
    "a script's query": (["/view.php?id=1&ref=x", "/view.php?id=2"], ["view.php?id=1", "view.php?id=2"]),
    "a script's query, one card": (["/view.php?id=1"], ["view.php?id=1"]),
    "a script's query named as elsewhere the way there": (["/v.php?ref=A7&src=l", "/v.php?ref=B8&src=l"],)
    + (["v.php?ref=A7", "v.php?ref=B8"],),
    "one path, other places to come from": (["/c/2015?from=1", "/c/2015?from=2"], ["c/2015?from=1", "c/2015?from=2"]),
    "a slug without a number": (["/swift?ad=1"], ["swift?ad=1"]),
    "one path, other queries": (["/c/2015?ad=1&x=9", "/c/2015?ad=2&x=9"], ["c/2015?ad=1", "c/2015?ad=2"]),
    "one path, one link, a parameter named as an id is": (["/c/2015?ad=1&x=9"], ["c/2015?ad=1"]),
    "routes": (["#/car/1", "#/car/2"], ["used/swift#/car/1", "used/swift#/car/2"]),
    "anchors of another page": (["/car/1#photos", "/car/2#top"], ["car/1", "car/2"]),
    "another host": (["https://dealer.example/1", "/1"], ["dealer.example/1", "1"]),
    "no page": (["#", "javascript:open(1)"], [None, None]),
    "signed": (["/car/1?Expires=5&Signature=x"], ["car/1"]),
}


@pytest.mark.parametrize("links, ids", LINKS.values(), ids=LINKS)
def test_what_a_link_says_of_its_listing(links, ids):
    card = '<div class="card"><a class="more" href="{}">car {}</a></div>'
    cards = "".join(card.format(link, number) for number, link in enumerate(links))
    read = site(selectors={"listing": ".card", "photos": "img", "link": "a.more"})
    assert [listing.id for listing in extract_listings(cards, "https://cars.example/used/swift", read)] == ids


def test_the_same_car_in_two_places_of_a_page_is_one_listing():
    card = '<div class="card"><a class="more" href="/v.php?id=7&pos={0}">Swift</a></div>'
    read = site(selectors={"listing": ".card", "photos": "img", "link": "a.more"})
    (listing,) = extract_listings(card.format(1) + card.format(9), URL, read)
    assert (listing.id, listing.cards) == ("v.php?id=7", 1)


LEADS = {
    "an address in onclick": "<h2 onclick=\"location.href='/car/7'\">Swift</h2>",
    "the card's own onclick": "<h2>Swift</h2>",
    "where a click led": '<h2 data-scraper-destination="/car/7">Swift</h2>',
}


@pytest.mark.parametrize("inner", LEADS.values(), ids=LEADS)
def test_where_a_card_without_a_link_leads(inner):
    read = site(selectors={"listing": ".card", "photos": "img", "link": "h2"})
    card = f"""<div class="card" onclick="open('/car/7', 'w=1')">{inner}</div>"""
    (listing,) = extract_listings(card, URL, read)
    assert listing.link == "https://cars.example/car/7"


def test_pictures_without_an_address_are_counted():
    inner = f'<img src="/a.jpg"><img><img src="{DATA_URI}"><img><noscript><img src="/b.jpg"></noscript>'
    icon = '<img src="data:image/svg+xml,x">'
    (listing,) = extract_listings(f'<div class="card" data-id="7">{inner}{icon}</div>', URL, site())
    assert (len(listing.photos), listing.bare) == (2, 2)


IN_SCRIPTS = {
    "objects": ('[{"u": "/1.jpg"}, {"u": "/2.jpg"}]', ["/1.jpg"], True),
    "addresses": ('["/1.jpg", "/2.jpg"]', ["/1.jpg"], True),
    "addresses that the page shows all": ('["/1.jpg", "/2.jpg"]', ["/1.jpg", "/2.jpg"], False),
    "addresses of another car": ('["/3.jpg", "/4.jpg"]', ["/1.jpg"], False),
    "one photo by its width": ('["/1-320.jpg", "/1-1280.jpg"]', ["/1-1280.jpg"], False),
    "one photo by the shape of its frame": ('["/1x1/7.jpg", "/16x9/7.jpg"]', ["/16x9/7.jpg"], False),
    "one photo by a letter or word": (
        '["/7_s.jpg", "/7_xl.jpg"], ["/thumb/7.jpg", "/full/7.jpg"]',
        ["/7_s.jpg"],
        False,
    ),
    "one photo and what it shows": ('["/1-320.jpg", "/1-1280.jpg", "the front"]', ["/1-1280.jpg"], False),
    "sizes of one photo in a query": ('["/7.jpg?w=300", "/7.jpg?w=900"]', ["/7.jpg?w=300"], False),
    "addresses and other texts": ('["/1.jpg", "red", "2019"]', ["/1.jpg"], False),
}


@pytest.mark.parametrize("text, shown, is_more", IN_SCRIPTS.values(), ids=IN_SCRIPTS)
def test_a_script_that_lists_more_photos_than_the_page_shows(text, shown, is_more):
    photos = [f"https://cars.example{address}" for address in shown]
    assert lists_more_photos(f"<script>var pics = [{text}], now = 0</script>", URL, photos) == is_more
    assert lists_more_photos(f"<script>pics = {text}</script>", URL, photos) == is_more


def test_cards_that_become_one_listing_are_counted():
    card = '<div class="card" data-id="{}"><a class="more" href="/car/{}?pos={}">x</a></div>'
    same = extract_listings(card.format(7, 7, 1) + card.format(7, 7, 2), URL, site())
    merged = extract_listings(card.format(7, 7, 1) + card.format(7, 8, 1), URL, site())
    assert [listing.cards for listing in same + merged] == [1, 2]
    dealer = '<div class="card"><a class="more" href="/dealer">{}</a><img src="/wait.gif"></div>'
    read = site(selectors={"listing": ".card", "photos": "img", "link": "a.more"})
    (cars,) = extract_listings("".join(map(dealer.format, ("3,450 €", "2,990 €", "3,450 €, our tip"))), URL, read)
    assert cars.cards == 2, "one link, two cars"


VISITS = {
    "/a.jpg?w=9&Expires=1&Signature=x&Key-Pair-Id=k": "/a.jpg?w=9",
    "/a.jpg?X-Amz-Date=1&X-Amz-Signature=x": "/a.jpg",
    "/a.jpg?sv=1&se=2&sig=x": "/a.jpg",
    "/a.jpg?se=2&id=7": "/a.jpg?se=2&id=7",
    "/a.jpg?w=9&token=x&exp=1": "/a.jpg?w=9",
    "/photo?token=x": "/photo?token=x",
    "/photo/7?token=x&expires=9": "/photo/7",
    "/photo/7?md5=x&expires=9": "/photo/7",
    "/photo/7?md5=x": "/photo/7?md5=x",
    "/s/0123456789abcdef0123/1764422222/7.jpg": "/s/7.jpg",
    "/c/1764422222/0123456789abcdef0123/7.jpg": "/c/7.jpg",
    "/c/exp=1764422222~hmac=01ab/7.jpg": "/c/7.jpg",
    "/photos/1764422222/7.jpg": "/photos/1764422222/7.jpg",
    "https://pictures-cdn7.example.com/1764422222/7.jpg": "https://pictures-cdn7.example.com/1764422222/7.jpg",
    "/a.jpg?stamp=12&id=7": "/a.jpg?id=7",
    "/a.jpg?w=9&t=1764422222": "/a.jpg?w=9",
    "/a.jpg?_=1764422222": "/a.jpg",
    "/photo?id=7&t=1": "/photo?id=7&t=1",
    "/photo;jsessionid=A1.x?id=7": "/photo?id=7",
    "/photo.php?id=7&PHPSESSID=a1": "/photo.php?id=7",
}


@pytest.mark.parametrize("address", VISITS)
def test_what_changes_from_visit_to_visit_does_not_count(address):
    assert lasting(address, ["Stamp"]) == VISITS[address]


CHALLENGES = {
    "<title>Just a moment...</title>": True,
    "<h1>Access denied</h1><script>" + "x" * 5000 + "</script>": True,
    "<title>Pardon Our Interruption</title>": True,
    "<p>Please wait</p><script src='https://geo.captcha-delivery.com/c.js'></script>": True,
    "<p>No cars found": False,
    "<p>No cars found. Ask our chat bot</p><script src='https://www.google.com/recaptcha/api.js'></script>": False,
    "<p>Captcha" + " long text" * 400: False,
}


@pytest.mark.parametrize(
    "html", CHALLENGES, ids=["waiting room", "denied", "polite", "by a service", "empty", "a form", "long"]
)
def test_pages_that_turn_robots_away(html):
    assert is_challenge(html) == CHALLENGES[html]
    paging = {"paging": {"kind": "next", "next": "a"}}
    assert not (CHALLENGES[html] and is_end_of_search(html, FIRST_PAGE, site(**paging)))


@pytest.mark.parametrize("html", ["<p>Too many requests", "<title>503</title>", "<h1>Bad gateway</h1>"])
def test_pages_that_ask_to_come_later(html):
    assert is_busy(html) and not is_busy("<p>No cars found. 503 others near you")


NEAREST = {
    ".crad": "'.card' finds 2",
    "article.card": "'.card' finds 2",
    "main .card": "'.card' finds 2",
    "div.card[data-no]": "'div.card' finds 2",
    ".nothing-alike": "",
}


@pytest.mark.parametrize("css", NEAREST)
def test_the_nearest_selector_that_finds_something(css):
    soup = BeautifulSoup('<div class="card" id="c1"></div><div class="card"></div>', "html.parser")
    assert nearest_selector([soup], css).removeprefix("nearest: ") == NEAREST[css]


CHECKED = {
    "found": ({"id": "@data-id"}, "✓ selectors.id .* 7$"),
    "an attribute that is not there": (
        {"id": "@data-ids"},
        "✗ selectors.id .* no data-ids; the first has class, data-id",
    ),
    "a pattern that does not fit": (
        {"id": "@data-id", "id_pattern": "-(.)"},
        "✗ selectors.id .* id_pattern finds nothing",
    ),
    "a link that a script makes": ({"link": "b"}, "✓ selectors.link"),
}


@pytest.mark.parametrize("selectors, line", CHECKED.values(), ids=CHECKED)
def test_check_marks_a_selector_that_gives_no_value(selectors, line):
    page = LoadedPage(URL, '<div class="card" data-id="7"><b>Swift</b><img src="/a.jpg"></div>', "", [])
    read = site(selectors={"listing": ".card", "photos": "img"} | selectors)
    assert re.search(line, "\n".join(_describe(page, read, ["/a.jpg"], is_detail=False)), re.MULTILINE)


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


def test_cards_for_browsers_without_scripts_do_not_count_beside_others():
    card = '<div class="card" data-id="7"><img src="/{}.jpg"></div>'
    for html, shown in ((card.format("a"), "a"), ("", "b")):
        (listing,) = extract_listings(f"{html}<noscript>{card.format('b')}</noscript>", URL, site())
        assert listing.photos == (f"https://cars.example/{shown}.jpg",) and listing.cards == 1


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


def test_a_card_whose_clock_ticks_stays_the_same_card():
    cards = Cards(site(selectors={"listing": ".card", "photos": "img"}), False)
    card = '<div class="card"><h2>Swift 2015, 4 km away</h2>ends in 1:02:{}, seen {} min ago</div>'
    for now in ((59, 3), ("07", 4)):
        cards.take({"token": "page", "serials": [0], "inView": [0], "changed": [(0, card.format(*now))], "base": ""})
    (key,) = cards.keys
    assert key.startswith("Swift 2015, 4 km away")


def test_a_card_that_counts_something_else_becomes_no_further_card():
    cards = Cards(site(selectors={"listing": ".card", "photos": "img"}), False)
    card = '<div class="card"><h2>Swift</h2><img src="/a.jpg">seen by {} people</div>'
    for now in range(9):
        cards.take({"token": "page", "serials": [0], "inView": [0], "changed": [(0, card.format(now))], "base": ""})
        cards.keep()
    assert len(cards.keys) == 3 and cards.lost_html() == ""
    html = card.format(9).replace("/a.jpg", "/b.jpg")
    cards.take({"token": "page", "serials": [0], "inView": [0], "changed": [(0, html)], "base": ""})
    assert len(cards.keys) == 4 and "/a.jpg" in cards.lost_html(), "the element shows another car"


def test_an_element_that_shows_another_car_waits_for_its_photo():
    cards = Cards(site(), False)

    def look(car: int, photo: int) -> bool:
        html = f'<div class="card" data-id="{car}"><img src="/{photo}.jpg"></div>'
        cards.take({"token": "page", "serials": [0], "inView": [0], "changed": [(0, html)], "base": ""})
        is_missing = cards.is_something_missing()
        cards.keep()
        return is_missing

    assert [look(*now) for now in ((1, 1), (2, 1), (2, 2), (3, 2))] == [False, True, False, True]
    kept = extract_listings(cards.lost_html(), URL, site())
    assert [(one.id, one.photos[0][-5]) for one in kept] == [("1", "1"), ("2", "2")]
    assert cards.has_lost() and cards.count() == 2


def test_a_card_that_comes_just_before_a_move_is_not_lost():
    card = (0, '<div class="card" data-id="7"><img src="/a.jpg"></div>')
    nothing = {"token": "page", "serials": [], "inView": [], "changed": [], "base": "", "moved": "further"}
    answers = iter([nothing | {"serials": [0], "inView": [0], "changed": [card]}, nothing])
    driver = SimpleNamespace(execute_script=lambda *_: next(answers))
    page = Settling(SimpleNamespace(driver=driver, site=site(), traffic=None, downloader=None), URL, None, False)
    page.survey("on")
    page.survey()
    assert page.cards.has_lost() and "/a.jpg" in page.cards.lost_html()


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
    "a key of another table": (
        {"selectors": {"listing": ".card", "photos": "img", "next": "a"}},
        r"unknown key 'next' in selectors; write it under \[paging\]",
    ),
    "an id below the fields": (
        {"selectors": {"listing": ".card", "photos": "img"}, "fields": {"title": "h2", "id": "@data-id"}},
        r"id stands under \[fields\]: write it above, under \[selectors\]",
    ),
    "XPath": (
        {"selectors": {"listing": "//div[@class='car']", "photos": "img"}},
        "selectors.listing = .*write CSS, as div.car, instead of XPath",
    ),
    "missing selector": ({"selectors": {"listing": ".card"}}, "selectors needs 'photos'"),
    "broken selector": ({"selectors": {"listing": ".card[", "photos": "img"}}, r"selectors.listing = '.card\['"),
    "no start": ({"start": []}, r"no \[\[start\]\]"),
    "no contact": ({"contact": "me"}, "contact must be"),
    "paging kind": ({"paging": {"kind": "infinite"}}, "paging kind 'infinite' is not known; known are"),
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
    "no delay at all": ({"politeness": {"delay": -5}}, "delay in politeness is -5; it must be at least 0"),
    "no page at all": ({"paging": {"max_pages": 0}}, "max_pages in paging is 0; it must be at least 1"),
    "no time": ({"politeness": {"timeout": 0}}, "timeout in politeness is 0; it must be at least 0.01"),
    "text instead of a table": ({"detail": ".gallery img"}, r"detail is '.gallery img'; .* write \[detail\]"),
    "a double table": ({"selectors": [{"listing": ".card"}]}, r"selectors is \[.*write \[selectors\]"),
    "starts that are texts": ({"start": ["https://x.example"]}, r"starts are a list of tables; write \[\[start\]\]"),
    "a selector of Scrapy": (
        {"selectors": {"listing": ".card", "photos": "img::attr(src)"}},
        r"selector selectors.photos = 'img::attr\(src\)': Pseudo-element .* written as img@src",
    ),
    "a selector of jQuery": (
        {"paging": {"click": ["a:contains('x')"]}},
        "paging.click .*no browser knows ':contains'",
    ),
    "another selector of jQuery": (
        {"selectors": {"listing": ".card", "photos": "img[alt!=logo]"}},
        "selector selectors.photos .*no browser knows '!='",
    ),
    "a name instead of a network": (
        {"politeness": {"allow_private": ["localhost"]}},
        "allow_private: 'localhost' does",
    ),
    "a city that nobody names": (
        {"start": [{"label": "swift", "url": "https://x.example/{city}"}]},
        "{city} is left in the start url .*cities",
    ),
    "a number that nobody counts": (
        {"start": [{"label": "swift", "url": "https://x.example/{page}"}]},
        "{page} is left in the start url .*'numbered'",
    ),
    "a contact that no header can hold": ({"contact": "łukasz@x.example"}, "contact cannot be sent"),
    "a header of two lines": ({"request": {"headers": {"X-Shop": "a\nb"}}}, "X-Shop cannot be sent"),
    "a certificate that is none": ({"request": {"ca_file": __file__}}, "ca_file .* holds no certificate"),
    "network as text": ({"politeness": {"allow_private": "127.0.0.1"}}, "allow_private in politeness is '127.0.0.1'"),
    "scheme": ({"start": [{"label": "swift", "url": "file:///x"}]}, "neither http nor https"),
    "field of the journal": ({"fields": {"sha256": "b"}}, "sha256 belong to the journal"),
    "detail without link": (
        {"detail": {"photos": "img"}, "selectors": {"listing": ".card", "photos": "img"}},
        "needs the selector 'link'",
    ),
    "text where a list belongs": (
        {"paging": {"click": "#accept"}},
        "click in paging is '#accept'; it must be a list of text",
    ),
    "a number among texts": ({"paging": {"click": [1]}}, "click in paging is"),
    "replace that is no expression": (
        {"selectors": {"listing": ".card", "photos": "img", "replace": {"(": "x"}}},
        r"'\(' in \[selectors\] is no regular expression",
    ),
    "a certificate that is not there": ({"request": {"ca_file": "none.pem"}}, "ca_file 'none.pem' is not there"),
    "id pattern": (
        {"selectors": {"listing": ".card", "photos": "img", "id_pattern": "[0-9]+"}},
        "needs exactly one group",
    ),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_site_file_are_named(changes, message):
    with pytest.raises(SiteError, match=f"cars.toml: ?.*{message}|cars.toml has {message}"):
        site(**changes)


def test_selectors_of_fields_may_be_what_only_we_understand():
    by_text = {
        "fields": {"year": "dt:-soup-contains('Year') + dd"},
        "paging": {"end": ".md\\:contains, [href*='a!=b']"},
    }
    html = '<div class="card" data-id="7"><dl><dt>Year<dd>2019</dl></div>'.replace("<dd>", "</dt><dd>")
    assert extract_listings(html, URL, site(**by_text))[0].fields == {"year": "2019"}


def test_a_site_file_by_notepad_is_read(tmp_path):
    (tmp_path / "cars.toml").write_text(SITE_FILE, encoding="utf-8-sig")
    assert load_site(str(tmp_path / "cars.toml")).contact == "test@example.org"


@pytest.mark.parametrize(
    "content, message",
    [
        (SITE_FILE.replace('".card"', "“.card”").encode(), "text stands in plain quotes"),
        (b"\xff\xfe", "save it as UTF-8"),
    ],
)
def test_a_site_file_that_is_no_toml_is_named(content, message, tmp_path):
    (tmp_path / "cars.toml").write_bytes(content)
    with pytest.raises(SiteError, match=f"cars.toml is not TOML: .*{message}"):
        load_site(str(tmp_path / "cars.toml"))


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


@pytest.mark.parametrize(("host", "is_waited_for"), [("live.cars.example", True), ("chat.example", False)])
def test_only_a_stream_of_the_pages_own_site_is_on_its_way(host, is_waited_for):
    events = [{"method": "Network.webSocketCreated", "params": {"requestId": "1", "url": f"wss://{host}/socket"}}]

    class Driver:
        def execute(self, *_):
            return {"value": [{"message": json.dumps({"message": events.pop()})} for _ in events[:]]}

    traffic = Traffic(Driver())
    assert traffic.are_pending("https://www.cars.example/used") == is_waited_for
    events.append({"method": "Network.webSocketClosed", "params": {"requestId": "1"}})
    assert not traffic.are_pending("https://www.cars.example/used")
