"""Which pictures of a card are taken, and at which address."""

import json

import pytest

from scraper.pages import extract_listings
from tests.scraper.misbehaving_site import DATA_URI
from tests.scraper.reading import URL, photos_of, site

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
