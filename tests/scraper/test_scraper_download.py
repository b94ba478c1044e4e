"""What the downloader does with a server that misbehaves. The tables in scraper/FAULTS.md list the cases."""

import random
import re
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
from PIL import features

from scraper.closing import Stats, closing_table, exit_code
from scraper.crawl import Crawl
from scraper.download import verify_photo
from scraper.journal import Journal
from scraper.loading import LoadedPage
from scraper.politeness import ROBOTS_FORBID, Failed, Pacer, Refused
from scraper.site import Politeness, Request
from tests.scraper.misbehaving_site import MisbehavingSite, _Handler, jpeg, png_claiming
from tests.scraper.without_browser import Clock, OnePage, crawl_photos, downloader, table_rows


@pytest.mark.parametrize("row", table_rows("Faults of a photo"), ids=lambda row: row[0])
def test_photo_fault_ends_as_the_table_says(row, site, clock, tmp_path):
    path, _, asked, status, reason, code = row
    with MisbehavingSite("User-agent: *\nDisallow: /private/\nCrawl-delay: 9\n", host="127.0.0.2") as other:
        site.other = other.base_url
        # only the faults of time wait for real, each for one thing: on a busy machine a byte may come late
        patience = {"delay": {"timeout": 0.5}, "drip": {"total_timeout": 2.0}}.get(re.split(r"[-.]", path)[0], {})
        hosts = ["127.0.0.1", "127.0.0.2"]
        result, lines = crawl_photos(clock, site, tmp_path, f"/{path}", allow_private=hosts, **patience)
    line = lines[path]
    assert (line["status"], str(result)) == (status, code)
    assert re.search(reason, line["reason"] or "") if reason else line["reason"] is None
    assert site.counts[f"/{path}"] == int(asked)
    stored = [file for file in tmp_path.glob("??/*") if file.stem == line["sha256"]]
    assert len(stored) == (status == "fetched")
    assert not list(tmp_path.glob("**/*.part"))


def test_every_fault_of_the_site_is_in_the_table():
    helpers = {"robots", "card", "cards", "search", "detail", "login", "api_cards"}
    helpers |= {"send", "start", "stream", "redirect", "needs_cookie", "is_member", "reported", "expiring", "banned"}
    own = {
        name for name, value in vars(_Handler).items() if callable(value) and not name.startswith(("_", "do_", "log_"))
    }
    faults = {name.replace("_", "-") for name in own - helpers - {"handle", "loop_back"}}
    assert faults == {row[0].partition(".")[0] for row in table_rows("Faults of a photo")} - {"private/1"}


def test_original_bytes_are_kept_under_their_hash(site, clock, tmp_path):
    _, lines = crawl_photos(clock, site, tmp_path, "/photos/a.jpg")
    line = lines["photos/a.jpg"]
    content = (tmp_path / line["sha256"][:2] / f"{line['sha256']}.jpg").read_bytes()
    assert content == jpeg("photos/a.jpg")
    assert (line["bytes"], line["width"], line["height"], line["listing"]) == (len(content), 64, 48, "1")


def test_retry_after_in_seconds_is_waited_for(site, clock):
    fetcher = downloader(clock)
    fetcher.fetch(f"{site.base_url}/busy-seconds.jpg")
    assert 7 <= sum(clock.slept) < 8


def test_retry_after_as_a_date_is_waited_for(site, clock):
    downloader(clock).fetch(f"{site.base_url}/busy-date.jpg")
    assert 10 <= sum(clock.slept) < 12


def test_a_host_that_asks_for_a_day_is_left_alone(site, clock):
    fetcher = downloader(clock)
    for path in ("busy-for-a-day.jpg", "good.jpg"):
        with pytest.raises(Failed):
            fetcher.fetch(f"{site.base_url}/{path}")
    assert site.counts["/good.jpg"] == 0 and sum(clock.slept) == 0


def test_backoff_grows_and_the_host_recovers(site, clock):
    fetcher = downloader(clock)
    fetcher.fetch(f"{site.base_url}/error-burst.jpg")
    assert clock.slept == sorted(clock.slept) and len(clock.slept) == 3 and clock.slept[-1] >= 2 * clock.slept[0]
    strained = fetcher.pacer.delay(site.base_url)
    for _ in range(30):
        fetcher.pacer.answered(site.base_url, 0.01)
    assert strained > 1 and fetcher.pacer.delay(site.base_url) == 0


def test_requests_keep_their_distance_with_jitter():
    clock = Clock()
    pacer = Pacer(Politeness(delay=2.0, jitter=0.5), clock.sleep, clock, random.Random(1))
    for _ in range(20):
        pacer.wait("http://a.example/x")
    pacer.wait("http://b.example/x")
    assert len(clock.slept) == 19, "another host need not wait"
    assert all(2 <= pause <= 3 for pause in clock.slept) and len(set(clock.slept)) > 10


def test_a_slowing_host_is_asked_less_often():
    clock = Clock()
    pacer = Pacer(Politeness(delay=1.0, jitter=0.0), clock.sleep, clock)
    pacer.answered("http://a.example", 0.2)
    assert pacer.delay("http://a.example") == 1.0
    for _ in range(30):
        pacer.answered("http://a.example", 1.0)
    assert 4.5 < pacer.delay("http://a.example") <= 5.0
    for _ in range(30):
        pacer.answered("http://a.example", 60.0)
    assert pacer.delay("http://a.example") == 10.0


def test_never_faster_than_the_crawl_delay_of_robots_txt(clock):
    with MisbehavingSite("User-agent: *\nCrawl-delay: 4\n") as site:
        fetcher = downloader(clock)
        for number in range(3):
            fetcher.fetch(f"{site.base_url}/photos/{number}.jpg")
    assert len(clock.slept) == 3 and all(4 <= pause <= 6 for pause in clock.slept)


ROBOTS = {
    "missing": (404, "allowed"),
    "forbidden": (403, "allowed"),
    "too many requests": (429, "failed"),
    "server error": (503, "failed"),
    "not implemented": (501, "failed"),
    "unreachable": ("reset", "failed"),
    "allows": ("User-agent: *\nAllow: /\n", "allowed"),
    "forbids all": ("User-agent: *\nDisallow: /\n", "refused"),
    "forbids us by name": ("User-agent: carspotterscraper\nDisallow: /\n\nUser-agent: *\nAllow: /\n", "refused"),
    "forbids another": ("User-agent: otherbot\nDisallow: /\n", "allowed"),
    "longest rule wins": ("User-agent: *\nDisallow: /photos/\nAllow: /photos/a\n", "allowed"),
    "wild card": ("User-agent: *\nDisallow: /*.jpg$\n", "refused"),
    "byte order mark": ("\ufeffUser-agent: *\nDisallow: /\n", "refused"),
    "huge, rule in the first 500 KiB": ("User-agent: *\nDisallow: /photos/\n" + "#" * 1_000_000, "refused"),
    "huge, rule beyond": ("User-agent: *\n" + "# much ado\n" * 100_000 + "Disallow: /photos/\n", "allowed"),
    "HTML": ("<html>no such page</html>", "allowed"),
}


@pytest.mark.parametrize("robots, outcome", ROBOTS.values(), ids=ROBOTS)
def test_robots_txt_by_rfc_9309(robots, outcome, clock):
    with MisbehavingSite(robots) as site:
        fetcher = downloader(clock)
        for _ in range(2):
            if outcome == "allowed":
                fetcher.fetch(f"{site.base_url}/photos/a.jpg")
            else:
                with pytest.raises(Refused if outcome == "refused" else Failed, match="robots.txt"):
                    fetcher.fetch(f"{site.base_url}/photos/a.jpg")
        # asked once, or as often as a transient error is tried again; never for each photo
        assert site.counts["/robots.txt"] == (4 if robots in (429, 503, "reset") else 1)
        assert site.counts["/photos/a.jpg"] == (2 if outcome == "allowed" else 0)


def test_a_redirect_leads_to_the_other_hosts_robots_txt_and_pace(site, clock):
    with MisbehavingSite("User-agent: *\nDisallow: /private/\nCrawl-delay: 9\n", host="127.0.0.2") as other:
        site.other = other.base_url
        fetcher = downloader(clock, allow_private=["127.0.0.0/8"])
        assert fetcher.fetch(f"{site.base_url}/to-other-host.jpg").final_url == f"{other.base_url}/photos/other.jpg"
        with pytest.raises(Refused, match="robots.txt forbids it"):
            fetcher.fetch(f"{site.base_url}/to-other-private.jpg")
        assert other.log == ["/robots.txt", "/photos/other.jpg"] and max(clock.slept) >= 9


ADDRESSES = {
    "loopback": ("127.0.0.1", True),
    "loopback, other": ("127.8.8.8", True),
    "private": ("192.168.1.10", True),
    "cloud metadata": ("169.254.169.254", True),
    "IPv6 loopback": ("::1", True),
    "IPv6 that maps a private one": ("::ffff:10.0.0.1", True),
    "shared": ("100.64.0.1", True),
    "public": ("93.184.215.14", False),
}


@pytest.mark.parametrize("address, is_refused", ADDRESSES.values(), ids=ADDRESSES)
def test_private_addresses_are_refused_by_name_too(address, is_refused, clock, monkeypatch):
    found = (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80))
    monkeypatch.setattr("socket.getaddrinfo", lambda *host, type: [found])
    fetcher = downloader(clock, allow_private=[])
    if is_refused:
        with pytest.raises(Refused, match=re.escape(f"private address: {address}")):
            fetcher._check_address("http://photos.example/a.jpg")
    else:
        fetcher._check_address("http://photos.example/a.jpg")


MALFORMED = ["http://a.example:99999/a.jpg", "http://a.example:port/a.jpg", "http://[bad/a.jpg"]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org/a.jpg", "data:image/png,x", "http:///a.jpg", *MALFORMED]
)
def test_only_http(url, clock):
    with pytest.raises(Refused, match="not http|not a usable address"):
        downloader(clock).fetch(url)


def test_cookies_of_the_browser_reach_the_photo_host(site, clock):
    fetcher = downloader(clock)
    with pytest.raises(Refused, match="status 403"):
        fetcher.fetch(f"{site.base_url}/needs-cookie.jpg")
    fetcher.use_cookies([{"name": "visited", "value": "1", "domain": "127.0.0.1", "path": "/"}])
    assert fetcher.fetch(f"{site.base_url}/needs-cookie.jpg").width == 64


def test_we_say_who_we_are_and_where_we_come_from(site, clock):
    downloader(clock).fetch(f"{site.base_url}/good.jpg", referer="http://example.org/page")
    sent = site.headers[-1]
    assert "CarspotterScraper" in sent["User-Agent"] and "test@example.org" in sent["User-Agent"]
    assert sent["Referer"] == "http://example.org/page" and sent["Accept-Encoding"] == "identity"


def test_noai_may_be_overridden_by_the_site_file(site, clock):
    assert downloader(clock, respect_noai=False).fetch(f"{site.base_url}/noai.jpg").extension == "jpg"


SETTINGS = {
    "max_bytes": ("/good.jpg", {"max_bytes": 500}, "too many bytes"),
    "max_pixels": ("/good.jpg", {"max_pixels": 500}, "too many pixels"),
    "min_width": ("/good.jpg", {"min_width": 500}, "too small"),
    "respect_noai": ("/noai.jpg", {}, "X-Robots-Tag"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_refusal_is_judged_again_when_its_setting_changes(name, site, clock, tmp_path):
    photo, strict, reason = SETTINGS[name]
    for _ in range(2):  # the second time it is neither asked for nor said again
        code, lines = crawl_photos(clock, site, tmp_path, photo, **strict)
        assert code == 5 and lines[photo[1:]]["reason"].startswith(reason)
    assert site.counts[photo] == 1 and len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1
    code, lines = crawl_photos(clock, site, tmp_path, photo, respect_noai=False)
    assert code == 0 and lines[photo[1:]]["status"] == "fetched"


@pytest.mark.parametrize("photo", ["/forbidden.jpg", "/html.jpg"])
def test_photos_behind_a_login_are_had_with_the_cookie(photo, site, clock, tmp_path):
    for cookies, code, asked in (({}, 5, 1), ({}, 5, 1), ({"member": "1"}, 0, 2)):
        assert crawl_photos(clock, site, tmp_path, photo, request={"cookies": cookies})[0] == code
        assert site.counts[photo] == asked


def test_photos_that_robots_txt_forbade_are_had_once_it_allows_them(site, clock, tmp_path):
    for _ in range(2):
        assert crawl_photos(clock, site, tmp_path, "/private/1.jpg", "/good.jpg")[0] == 0
    assert site.counts["/private/1.jpg"] == 0
    site.robots = "User-agent: *\nAllow: /\n"
    assert crawl_photos(clock, site, tmp_path, "/private/1.jpg")[1]["private/1.jpg"]["status"] == "fetched"


class Renewing(OnePage):
    """A page whose address of a photo is good for a time only; opened again, it has a new one."""

    def __init__(self, url: str, renewed: str, first: str = "/expiring.jpg?Expires=1"):
        super().__init__(url, first)
        self.again, self.opened = OnePage(url, renewed).page, 0

    def open(self, url: str, is_detail: bool = True, hurry: bool = False) -> LoadedPage:
        self.opened += 1
        return self.again


@pytest.mark.parametrize("renewed, code", [("2", 0), ("1&n=2", 4)])
def test_an_expired_address_is_taken_anew_from_its_page(renewed, code, site, clock, tmp_path):
    browser = Renewing(f"{site.base_url}/search", f"/expiring.jpg?Expires={renewed}".replace("&n=2", ""))
    fetcher = downloader(clock, site.base_url)
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [browser], fetcher).run()
        (url,) = journal.outcomes
        assert url == f"{site.base_url}/expiring.jpg"
        assert journal.outcomes[url].status == ("failed" if code else "fetched")
    assert (exit_code(stats), browser.opened) == (code, 3 if code else 1)


@pytest.mark.parametrize("renewed, status", [("/photos/1.jpg", "fetched"), ("/gone.jpg", "refused")])
def test_an_address_that_does_not_look_signed_is_renewed_by_its_place(renewed, status, site, clock, tmp_path):
    browser = Renewing(f"{site.base_url}/search", renewed, "/gone.jpg")
    fetcher = downloader(clock, site.base_url)
    with Journal(tmp_path) as journal:
        stats = Crawl(fetcher.site, journal, [browser], fetcher).run()
        assert {url: known.status for url, known in journal.outcomes.items()} == {site.base_url + renewed: status}
    assert (exit_code(stats), browser.opened, stats.found) == (0 if status == "fetched" else 5, 1, 1)


def test_what_is_missing_decides_the_exit_code():
    assert exit_code(Stats(fetched=3)) == exit_code(Stats(fetched=3, refused=Counter({ROBOTS_FORBID: 2}))) == 0
    assert exit_code(Stats(fetched=3, refused=Counter({"too small": 2}))) == 0
    assert exit_code(Stats(refused=Counter({ROBOTS_FORBID: 2}))) == 5, "robots.txt left nothing at all"
    for missing in ({"without_photos": 1}, {"merged": 2}, {"shared": Counter({"/a": 3})}, {"odd_pages": Counter("x")}):
        assert exit_code(Stats(fetched=3, **missing)) == 5
    assert exit_code(Stats(fetched=3, known=1, known_refused=Counter({"status 404": 1}))) == 5
    assert exit_code(Stats(merged=1, failed=Counter("x"))) == 4
    assert exit_code(Stats(failed=Counter("x"), pages_lost=Counter("x"))) == 1
    assert "2 cards merged" in closing_table(Stats(fetched=3, merged=2), "raw")


def test_it_is_said_at_once_that_nothing_answers_on_this_machine(clock):
    fetcher = downloader(clock, attempts=1)
    fetcher.site = replace(fetcher.site, serve="serve it")
    with pytest.raises(Failed, match="nothing answers at 127.0.0.1:9: start it with: serve it"):
        fetcher.check("http://127.0.0.1:9/a.jpg")
    assert not clock.slept


def test_an_https_address_of_a_host_without_https_is_said_at_once(site, clock):
    with pytest.raises(Failed, match="127.0.0.1:.* does not speak https: write http://"):
        downloader(clock).fetch(f"https://127.0.0.1:{site.port}/good.jpg")
    assert not clock.slept


@pytest.fixture
def certificate(tmp_path):
    """The paths of a key and of a certificate that nobody signed."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    files = [tmp_path / "key.pem", tmp_path / "cert.pem"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files[0], "-out", files[1]]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_a_certificate_that_is_not_trusted_is_said_at_once(certificate, clock):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    with MisbehavingSite() as site:
        site._server.socket = context.wrap_socket(site._server.socket, server_side=True)
        url = f"https://127.0.0.1:{site.port}/good.jpg"
        fetcher = downloader(clock)
        with pytest.raises(Failed, match="certificate of 127.0.0.1:.* not trusted: self-signed certificate; .*ca_file"):
            fetcher.fetch(url)
        assert not clock.slept and not site.log
        with pytest.raises(Failed, match=r"connection broken: does the host want https://\?"):
            fetcher.fetch(url.replace("https", "http"))
        for request in (Request(ca_file=str(certificate[1])), Request(verify=False)):
            fetcher = downloader(clock)
            fetcher.site = replace(fetcher.site, request=request)
            assert fetcher.fetch(url).width == 64


ANSWERS = {
    "text": {"kind": "text/plain"},
    "a script that forgot the header": {"kind": "text/html"},
    "part of it, which is all": {"status": 206},
    "a proxy in between": {"status": 203},
}


@pytest.mark.parametrize("options", ANSWERS.values(), ids=ANSWERS)
def test_what_can_be_decoded_is_a_photo_whatever_is_said_of_it(options, site, clock, monkeypatch):
    monkeypatch.setattr(_Handler, "good", lambda self, _: self.send(jpeg("good"), **options))
    assert downloader(clock).fetch(f"{site.base_url}/good.jpg").extension == "jpg"


@pytest.mark.parametrize("kind, extension", [("BMP", "bmp"), ("AVIF", "avif"), ("GIF", "gif")])
def test_other_formats_are_kept(kind, extension):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    assert verify_photo(jpeg("a", kind=kind), 50_000_000)[0] == extension


def test_verification_reads_sizes_before_pixels():
    assert verify_photo(jpeg("a", (40, 30), "CMYK"), 1200) == ("jpg", 40, 30)
    assert verify_photo(jpeg("a", (40, 30), kind="WEBP"), 1200) == ("webp", 40, 30)
    with pytest.raises(Refused, match="too many pixels: 60000×60000"):
        verify_photo(png_claiming(60_000, 60_000), 50_000_000)
    with pytest.raises(Refused, match="cannot be decoded"):
        verify_photo(b"%PDF-1.7" + jpeg("a"), 50_000_000)
