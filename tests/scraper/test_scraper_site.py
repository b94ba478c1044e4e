"""What a site file may say, and how mistakes in it are named."""

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from scraper.pages import extract_listings
from scraper.site import SITES, SiteError, load_site, parse_site
from tests.scraper.reading import SITE_FILE, URL, site


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
