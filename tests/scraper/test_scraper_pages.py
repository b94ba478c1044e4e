"""What is read from pages: listings, links, refusals, the end of a search."""

import json
import re
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
from scraper.site_check import _describe, nearest_selector
from scraper.traffic import Traffic
from tests.scraper.misbehaving_site import DATA_URI
from tests.scraper.reading import URL, site

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
