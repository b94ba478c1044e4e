"""Another used-car site, plain as in the nineties: numbered pages, galleries on the cars' own pages, no JavaScript.

It sells in Hyderabad, where phones, light and places are others than in the first site's cities: the shifted photos.
"""

import html
import json
import re
from http import HTTPStatus
from urllib.parse import quote

from .site import MODEL_NAMES, PAGE, Answer, Listing, SampleSite, rupees

CARS_A_PAGE = 6
FULL_WIDTH, SMALL_WIDTH = 1600, 320  # pixels, as the pages' srcset says

_STYLE = """
*{box-sizing:border-box}
body{margin:0;font:16px/1.5 Georgia,'Liberation Serif',serif;color:#2a2420;background:#faf6ef}
a{color:#8a2f1d}.top{border-bottom:3px solid #8a2f1d;background:#fff}
.top div,main,.foot{max-width:960px;margin:0 auto;padding:14px 20px}
.top div{display:flex;flex-wrap:wrap;align-items:baseline;gap:6px 24px}
.brand{font-size:26px;font-weight:700;text-decoration:none}.brand em{color:#2a2420;font-weight:400}
h1{font-size:27px;line-height:1.2;margin:12px 0 4px}.note{color:#75685c;margin:0 0 16px}
.cars{list-style:none;margin:0;padding:0}
.car-card{display:flex;gap:20px;background:#fff;border:1px solid #e4dacb;margin:0 0 14px}
.car-card picture{flex:0 0 260px}.car-card img{display:block;width:260px;height:185px;object-fit:cover}
.about{padding:12px 16px 12px 0}.about h3{margin:0;font-size:19px}.about p{margin:3px 0}
.ask{font-size:21px;font-weight:700}.pages{display:flex;gap:8px;justify-content:center;margin:24px 0}
.pages a,.pages b{padding:5px 13px;border:1px solid #d8cbb8;background:#fff;text-decoration:none}
.pages b{background:#8a2f1d;color:#fff}
.slides{display:grid;grid-template-columns:repeat(2,1fr);gap:8px}
.slides img{display:block;width:100%;aspect-ratio:4/3;object-fit:cover}
.slides picture:first-child{grid-column:1/-1}.slides picture:first-child img{aspect-ratio:16/10}
.facts{display:grid;grid-template-columns:130px 1fr;gap:6px 14px;background:#fff;border:1px solid #e4dacb;
padding:14px 18px;margin:14px 0}.facts dt{color:#75685c}.facts dd{margin:0}
.ring{display:inline-block;background:#8a2f1d;color:#fff;padding:10px 26px;text-decoration:none}
.cookie{background:#2a2420;color:#faf6ef;text-align:center;padding:9px;margin:0;font-size:14px}
.models{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:14px}
.models a{background:#fff;border:1px solid #e4dacb;text-decoration:none;padding-bottom:10px}
.models img,.models i{display:block;width:100%;height:150px;object-fit:cover;background:#eadfce}
.models b,.models span{display:block;padding:6px 12px 0;color:#2a2420}.foot{color:#75685c;font-size:14px}
@media(max-width:560px){.car-card{flex-direction:column;gap:0}.car-card picture{flex:none}
.car-card img{width:100%;height:210px}.about{padding:10px 14px 14px}.slides{grid-template-columns:1fr}}
"""


class SecondSite(SampleSite):
    """The second site as a context manager, used as `SampleSite` is."""

    name, usual_port = "hyderabad", 8001
    public, private, small = "/media/full/", "/media/full/owners/", "/media/small/"
    closed = ("/media/full/owners/", "/media/small/owners/", "/enquiry/")
    cookie = "notice=seen; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax"

    @staticmethod
    def title_of(listing: Listing) -> str:
        return f"{listing.year} {SampleSite.title_of(listing)}"

    @staticmethod
    def link_of(listing: Listing) -> str:
        return f"/car/{listing.model}-{quote(listing.id)}"

    def respond(self, path: str, query: dict[str, str], cookie: str) -> Answer | None:
        greet = "notice=seen" not in cookie
        if path == "/":
            return HTTPStatus.OK, PAGE, self._home(greet).encode()
        if found := re.fullmatch(r"/([a-z]+)/([a-z]+)/page/([1-9]\d{0,3})", path):
            city, model, number = found[1], found[2], int(found[3])
            if model in MODEL_NAMES and city in {one.city for one in self.listings}:
                return HTTPStatus.OK, PAGE, self._numbered(city, model, number, greet).encode()
        if found := re.fullmatch(r"/car/([a-z]+)-(\w+)", path):
            for listing in self.listings:
                if (listing.model, listing.id) == found.groups():
                    return HTTPStatus.OK, PAGE, self._car(listing, greet).encode()
        return None

    def _home(self, greet: bool) -> str:
        tiles = []
        for city in sorted({one.city for one in self.listings}):
            for model, name in MODEL_NAMES.items():
                found = self.found(model, city)
                about = f"{self.cover(found, '<i></i>')}<b>{name}</b><span>{len(found)} in {city.title()}</span>"
                tiles.append(f'<a href="/{city}/{model}/page/1">{about}</a>')
        title = "Second-hand cars in the Deccan"
        return _page(title, greet, f'<h1>{title}</h1><div class="models">{"".join(tiles)}</div>')

    def _numbered(self, city: str, model: str, number: int, greet: bool) -> str:
        found = self.found(model, city)
        shown = found[(number - 1) * CARS_A_PAGE : number * CARS_A_PAGE]
        last = max(-(-len(found) // CARS_A_PAGE), 1)
        title = f"Second-hand {MODEL_NAMES[model]} in {city.title()}"
        if not shown:
            body = f'<p class="no-cars">There are no cars here. <a href="/{city}/{model}/page/1">First page</a></p>'
            return _page(title, greet, f"<h1>{title}</h1>{body}")
        links = [
            f"<b>{page}</b>" if page == number else f'<a href="/{city}/{model}/page/{page}">{page}</a>'
            for page in range(1, last + 1)
        ]
        if number < last:
            links.append(f'<a rel="next" href="/{city}/{model}/page/{number + 1}">Next</a>')
        cards = "".join(map(self._card, shown))
        body = (
            f'<h1>{title}</h1><p class="note">{len(found)} cars, page {number} of {last}</p>'
            f'<ul class="cars">{cards}</ul><div class="pages">{"".join(links)}</div>'
        )
        return _page(title, greet, body)

    def _card(self, listing: Listing) -> str:
        cover = self.open_paths([listing])[0]  # the first photo of a listing is never private
        name = html.escape(self.title_of(listing))
        return (
            f'<li class="car-card" id="car-{html.escape(listing.id)}"><picture><img loading="lazy" '
            f'src="{quote(self.small_path(cover))}" alt="{name}"></picture><div class="about">'
            f'<h3><a class="car-link" href="{self.link_of(listing)}">{name}</a></h3>'
            f'<p class="ask">{rupees(listing.price)}</p>'
            f"<p>Built {listing.year}, driven {listing.kilometres:,} km</p>"
            f"<p>{listing.city.title()}, {len(listing.photos)} pictures</p></div></li>"
        )

    def _car(self, listing: Listing, greet: bool) -> str:
        name = html.escape(self.title_of(listing))
        slides = "".join(
            f'<picture class="slide"><source sizes="(max-width:560px) 100vw, 460px" '
            f'srcset="{quote(self.small_path(path))} {SMALL_WIDTH}w, {quote(path)} {FULL_WIDTH}w">'
            f'<img loading="lazy" src="{quote(self.small_path(path))}" alt="{name}, picture {number}"></picture>'
            for number, (path, _) in enumerate(listing.photos, 1)
        )
        about = {
            "@context": "https://schema.org",
            "@type": "Car",
            "name": name,
            "brand": "Maruti Suzuki",
            "model": listing.model,
            "vehicleModelDate": listing.year,
            "mileageFromOdometer": {"@type": "QuantitativeValue", "value": listing.kilometres, "unitCode": "KMT"},
            "offers": {"@type": "Offer", "price": listing.price, "priceCurrency": "INR"},
            "image": self.open_paths([listing]),
        }
        # a script's text ends at the first "</", whatever JSON thinks of it
        block = json.dumps(about).replace("<", "\\u003c")
        facts = {"Price": rupees(listing.price), "Model": MODEL_NAMES[listing.model], "Year": listing.year}
        facts |= {"Driven": f"{listing.kilometres:,} km", "City": listing.city.title()}
        rows = "".join(f'<dt>{k}</dt><dd class="{k.lower()}">{html.escape(v)}</dd>' for k, v in facts.items())
        body = (
            f'<script type="application/ld+json">{block}</script><h1 class="car-name">{name}</h1>'
            f'<dl class="facts">{rows}</dl><div class="slides">{slides}</div>'
            f'<p><a class="ring" href="/enquiry/{quote(listing.id)}">Ask the owner</a></p>'
            f'<p><a href="/{listing.city}/{listing.model}/page/1">All cars of this model</a></p>'
        )
        return _page(name, greet, body)


def _page(title: str, greet: bool, body: str) -> str:
    """Return a whole page; `greet` shows the cookie's notice, once to each visitor."""
    notice = '<p class="cookie">One cookie remembers that you have read this line.</p>' if greet else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{title} · Deccan Motors</title><style>{_STYLE}</style></head><body>{notice}"
        '<header class="top"><div><a class="brand" href="/">Deccan <em>Motors</em></a>'
        '<a href="/hyderabad/swift/page/1">Swift</a><a href="/hyderabad/wagonr/page/1">WagonR</a></div></header>'
        f'<main>{body}</main><div class="foot">Deccan Motors is a sample site with drawn cars. '
        "No car, owner or number plate on it is real.</div></body></html>"
    )
