"""The second sample site: numbered pages, galleries on the cars' own pages, a cookie, closed photos, nothing else."""

import http.client
import json
import re

import pytest
from protego import Protego

from carspotter_sample.second_site import CARS_A_PAGE, SecondSite
from tests.scraper.misbehaving_site import jpeg

CARS = 2 * CARS_A_PAGE + 1


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("second") / "photos"
    (folder / "swift").mkdir(parents=True)
    rows = ["file,listing,claim,city,year,price,kilometres"]
    for number in range(CARS):
        for shot in range(4):
            name = f"swift/{number:03}__{shot:02}.jpg"
            (folder / name).write_bytes(jpeg(name))
            rows.append(f"{name},{number:03},swift,hyderabad,{2010 + number},{435_000 + number},{10_000 + number}")
    (folder / "listings.csv").write_text("\n".join(rows))
    (folder / "truth.csv").write_text("file,duplicate_of\nswift/000__00.jpg,\n")
    with SecondSite(folder, crawl_delay=0.5) as running:
        yield running


def get(site: SecondSite, path: str, cookie: str = "") -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(*site._server.server_address[:2], timeout=10)
    connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
    answer = connection.getresponse()
    text = answer.read().decode("latin-1")
    connection.close()
    return answer.status, text, answer.headers


def test_the_numbered_pages_together_list_every_car_once(site):
    pages = [get(site, f"/hyderabad/swift/page/{number}")[1] for number in (1, 2, 3)]
    ids = [found for page in pages for found in re.findall(r'id="car-(\w+)"', page)]
    assert sorted(ids) == sorted(listing.id for listing in site.listings) and len(ids) == CARS
    assert ['rel="next"' in page for page in pages] == [True, True, False]


def test_after_the_last_page_the_site_says_that_there_are_no_cars(site):
    status, text, _ = get(site, "/hyderabad/swift/page/4")
    assert status == 200 and 'class="no-cars"' in text and 'id="car-' not in text


def test_a_cars_page_tells_the_same_in_its_gallery_and_to_machines(site):
    listing = site.listings[5]
    text = get(site, f"/car/swift-{listing.id}")[1]
    about = json.loads(re.search(r'<script type="application/ld\+json">(.*?)</script>', text)[1])
    assert (about["vehicleModelDate"], about["offers"]["price"]) == (listing.year, listing.price)
    assert all(f"{path} 1600w" in text for path, _ in listing.photos)
    assert set(about["image"]) == {path for path, _ in listing.photos}


def test_robots_txt_closes_both_sizes_of_the_owners_photos(site):
    rules = Protego.parse(get(site, "/robots.txt")[1])
    owners = [path for path in site.files if path.startswith(site.private)]
    assert owners and rules.crawl_delay("*") == 0.5
    for path in site.files:
        for address in (path, site.small_path(path)):
            assert get(site, address)[0] == 200
            assert rules.can_fetch(address, "*") == (path not in owners), address
    assert not rules.can_fetch("/enquiry/003", "*")


def test_the_cookies_notice_is_shown_to_new_visitors_alone(site):
    _, first, headers = get(site, "/")
    assert 'class="cookie"' in first
    cookie = headers["Set-Cookie"].split(";")[0]
    assert 'class="cookie"' not in get(site, "/hyderabad/swift/page/1", cookie)[1]
    assert get(site, next(iter(site.files)))[2]["Set-Cookie"] is None


@pytest.mark.parametrize(
    "path",
    ["/truth.csv", "/media/full/truth.csv", "/media/full/../truth.csv", "/media/full/%2e%2e/truth.csv", "/listings.csv",
     "/hyderabad/swift/page/0", "/hyderabad/swift/page/x", "/pune/swift/page/1", "/hyderabad/trabant/page/1",
     "/car/swift-999", "/car/wagonr-000", "/car/swift-../truth.csv", "/used/swift", "/enquiry/000"],
)  # fmt: skip
def test_nothing_but_photos_and_pages_is_served(site, path):
    status, text, _ = get(site, path)
    assert status == 404 and "duplicate_of" not in text
