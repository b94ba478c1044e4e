"""Small used-car sites made after public reports by people who collect photos: two or more of each kind of trouble.

Each is a function of the path below its own, the query and how often this was asked; it returns the HTML of a page,
or (status, headers, HTML). `SITES` says what a user writes for it, and what a crawl must bring.
"""

from __future__ import annotations

import email.utils
import json
import time
from dataclasses import dataclass

BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


@dataclass(frozen=True)
class Reported:
    """One site: the report it stands for, the site file below `contact`, and what must come of a crawl."""

    report: str
    url: str
    selectors: str
    photos: int  # that must be fetched
    listings: int  # with photos
    code: int = 0
    said: str = ""  # a regular expression for the output
    more: str = ""
    asked_by_page: int = 0  # requests of photos that the page itself makes


CARDS = 'listing = "div.car"\nid = "@data-id"\nphotos = "img"'
OWN_PAGES = 'listing = "div.car"\nlink = "a"\n[detail]\nphotos = '
NUMBERED = '[paging]\nkind = "numbered"\npatience = 2.0\nsettle = 0.4\n'
PATIENT = "[paging]\npatience = 6.0\nsettle = 0.4\n"
LIVELY = "[paging]\npatience = 3.0\nsettle = 0.6\n"
SITES = {
    # 1: what is missing is said
    "same-id": Reported("github.com/jpmckinney/pupa-ruby/issues/9", "", CARDS, 5, 1, 5, "4 cards merged"),
    "stand-in": Reported("github.com/GjjvdBurg/paper2remarkable/pull/74", "", CARDS, 1, 6, 5, "6 listings that share"),
    # 2: the HTTP status of a page counts
    "busy-until": Reported(
        "github.com/mloesch/sickle/pull/28", "?page={page}", CARDS, 15, 15, more=NUMBERED + 'empty = ".none"'
    ),
    "captcha": Reported(
        "github.com/freelawproject/juriscraper/issues/1377",
        *("?page={page}", CARDS, 5, 5, 1, "page titled 'Are you a robot\\?'", NUMBERED),
    ),
    "script-429": Reported(
        "github.com/datawhores/OF-Scraper/issues/62",
        *("", CARDS, 15, 15),
        more='[paging]\nkind = "scroll"\npatience = 2.0\nsettle = 0.4',
    ),
    "script-503": Reported("github.com/oxidecomputer/oxide.rs/issues/69", "?page={page}", CARDS, 15, 15, more=NUMBERED),
    # 3: a page is walked through
    "whole-in-view": Reported("github.com/ApoorvSaxena/lozad.js/issues/72", "", CARDS, 12, 12, more=LIVELY),
    "slides-in-cards": Reported("github.com/whcmark/angular-slick-carousel/issues/73", "", CARDS, 16, 4, more=LIVELY),
    "rows-at-rest": Reported("github.com/bvaughn/react-virtualized/issues/1059", "", CARDS, 40, 40, more=LIVELY),
    "rows-long-at-rest": Reported("the same, on a slow machine", "", CARDS, 40, 40, more=LIVELY),
    "rows-on-request": Reported("the same, with rows that are asked for", "", CARDS, 40, 40, more=PATIENT),
    "rows-by-worker": Reported(
        "the same, with rows of which nothing tells that they will come", "", CARDS, 40, 40, more=PATIENT
    ),
    "rows-by-late-worker": Reported("the same, some of them far too late", "", CARDS, 40, 40, more=PATIENT),
    "rows-every-other-time": Reported("the same, where every second step is missed", "", CARDS, 40, 40, more=LIVELY),
    "rows-missed-once": Reported(
        "the same, where some rows are missed the first time", "", CARDS, 40, 40, more=PATIENT
    ),
    "rows-recycled": Reported("the same, drawn into the same elements", "", CARDS, 40, 40, more=LIVELY),
    "carousel": Reported("github.com/dkern/jquery.lazy/issues/223", "", OWN_PAGES + '".slide img"', 16, 2, more=LIVELY),
    # 4: a page is taken when it has settled
    "gallery-by-script": Reported(
        "github.com/sananth12/ImageScraper/issues/99", "", OWN_PAGES + '"#gallery img"', 8, 2, more=LIVELY
    ),
    "blurred-first": Reported("github.com/lenymo/glennmccomb-com/issues/7", "", CARDS, 6, 6, more=LIVELY),
    # 5: something new, not more
    "next-by-script": Reported(
        "github.com/martinsbalodis/web-scraper-chrome-extension/issues/153",
        *("", CARDS, 12, 12),
        more='[paging]\nkind = "next"\nnext = "a.next"\npatience = 2.0\nsettle = 0.4',
    ),
    "page-in-fragment": Reported(
        "github.com/arquivo/pwa-technologies/issues/556", *("#{page}", CARDS, 12, 12), more=NUMBERED + 'empty = ".none"'
    ),
    # 6: which picture
    "json-in-attribute": Reported(
        "github.com/jermartin77/plusgallery/pull/38",
        *("", 'listing = "div.car"\nid = "@data-id"\nphotos = ".gallery@data-image-data"'),
        *(12, 4),
        more='photos_path = "albums.*.images.*.src"\n',
    ),
    "jpeg-xl": Reported("github.com/mdn/content/pull/45252", "", CARDS, 4, 4),
    "flight-data": Reported("github.com/DIYgod/RSSHub/issues/23140", "", OWN_PAGES + '"script"', 8, 2),
    "arrow": Reported(
        "github.com/kenwheeler/slick/issues/1049", "", OWN_PAGES + '"img"', 2, 2, 5, "lists more photos than detail"
    ),
    # 7: which listing, which photo
    "same-path": Reported(
        "github.com/adobe/spacecat-audit-worker/pull/2586",
        *("?page={page}", 'listing = "div.car"\nlink = "a"\nphotos = "img"', 3, 1, 5, "2 cards merged", NUMBERED),
    ),
    "session-in-address": Reported(
        "github.com/ArchiveTeam/wpull/issues/203",
        *("", OWN_PAGES.replace("[detail]", 'ignore_query = ["visit"]\n[detail]') + '"img"', 6, 6),
    ),
    "presigned": Reported("github.com/aws/aws-sdk-php/issues/1839", "", CARDS, 6, 6),
    # 9: what a user says in the site file
    "two-gates": Reported(
        "github.com/huginn/huginn/issues/3048",
        *("", CARDS, 6, 6),
        more=LIVELY + 'click = ["#cookies button", "#ageagree"]',
    ),
    "widget": Reported(
        "github.com/martinsbalodis/web-scraper-chrome-extension/issues/117",
        *("", CARDS + '\nframe = "iframe.stock"', 6, 6),
        more=LIVELY,
    ),
    "slotted": Reported("github.com/Epistates/MCPSafari/issues/57", "", CARDS, 4, 4, more=LIVELY),
    "offset": Reported(
        "github.com/fredericvergnaud/extractify/issues/10",
        *("?from={page}", CARDS, 12, 12),
        more=NUMBERED + 'first_page = 0\nstep = 5\nempty = ".none"',
    ),
}


def page(name: str, path: str, query: dict[str, str], count: int) -> str | tuple[int, dict[str, str], str]:
    """Return what the site `name` answers."""
    return globals()[name.replace("-", "_")](path, query, count)


def card(number: int, inner: str, id_: object = None) -> str:
    return f'<div class=car data-id="{number if id_ is None else id_}"><h2>Swift {number}</h2>{inner}</div>'


def photo(name: object) -> str:
    return f'<img src="/photos/{name}.jpg">'


def numbered(query: dict[str, str], pages: int = 3) -> str:
    number = int(query["page"])
    if number > pages:
        return "<p class=none>no cars</p>"
    return "".join(card(n, photo(n)) for n in range(5 * number - 5, 5 * number))


def same_id(path: str, query: dict, count: int) -> str:
    """Every card has the same id, a template's."""
    return "".join(card(n, photo(n), "item") for n in range(5))


def stand_in(path: str, query: dict, count: int) -> str:
    """The real addresses are nowhere: the same picture is shown for every car."""
    return "".join(card(n, '<img src="/photos/car-outline.jpg">') for n in range(6))


def busy_until(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """From the second page on a 503 at first, with a Retry-After that is a date."""
    if query["page"] != "1" and count == 1:
        date = email.utils.formatdate(time.time() + 2, usegmt=True)
        return 503, {"Retry-After": date}, "<title>Busy</title><h1>Please come back later</h1>"
    return numbered(query)


def captcha(path: str, query: dict, count: int) -> str:
    """The second page of a search asks who is there, with status 200."""
    if query["page"] == "2":
        return "<title>Are you a robot?</title><p>Please type the letters: <input>"
    return numbered(query)


def script_429(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """The script of an endless list is told to wait, once; it asks again when the page is scrolled again."""
    if path == "cards-2" and count == 1:
        return 429, {"Retry-After": "1"}, "slow down"
    first = numbered({"page": str(int(path[6:] or 0) + 1)})
    return (
        first
        if path
        else f"""<main>{first}</main><style>.car {{height: 400px}}</style><script>
    let next = 1, busy = false;
    async function more() {{
      if (busy || next > 2) return;
      busy = true;
      const answer = await fetch("/reported/script-429/cards-" + next);
      if (answer.ok) {{
        next++;
        document.querySelector("main").insertAdjacentHTML("beforeend", await answer.text());
      }}
      busy = false;
    }}
    addEventListener("scroll", () => {{ if (innerHeight + scrollY > document.body.scrollHeight - 50) more(); }});
    </script>"""
    )


def script_503(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """The cards of each page come by a script, whose request for the second page fails at first."""
    if path:
        return (503, {}, "out of order") if path == "cards-2" and count == 1 else numbered({"page": path[6:]})
    return f"""<main></main><script>
    fetch("/reported/script-503/cards-{query["page"]}").then(async answer => {{
      if (answer.ok) document.querySelector("main").innerHTML = await answer.text();
    }});
    </script>"""


def whole_in_view(path: str, query: dict, count: int) -> str:
    """A picture gets its address when all of it is in view."""
    cards = "".join(card(n, f'<img src="{BLANK}" width=600 height=480>') for n in range(12))
    return f"""{cards}<script>
    const pictures = [...document.querySelectorAll("img")];
    const seen = new IntersectionObserver(entries => entries.forEach(entry => {{
      if (entry.intersectionRatio === 1) entry.target.src = `/photos/${{pictures.indexOf(entry.target)}}.jpg`;
    }}), {{threshold: 1}});
    pictures.forEach(picture => seen.observe(picture));
    </script>"""


def slides_in_cards(path: str, query: dict, count: int) -> str:
    """Each card is a strip of slides, of which the first is in view; the others have no address before they are."""
    slides = f"<div class=strip>{f'<img src={BLANK} width=500 height=300>' * 4}</div>"
    cards = "".join(card(n, slides) for n in range(4))
    return f"""<style>.strip {{display: flex; overflow-x: auto; width: 510px}} img {{flex: 0 0 500px}}</style>
    {cards}<script>
    const pictures = [...document.querySelectorAll("img")];
    const seen = new IntersectionObserver(entries => entries.forEach(entry => {{
      if (entry.isIntersecting) entry.target.src = `/photos/${{pictures.indexOf(entry.target)}}.jpg`;
    }}));
    pictures.forEach(picture => seen.observe(picture));
    </script>"""


WHEN_AT_REST = "clearTimeout(timer); timer = setTimeout(draw, 150);"


def rows_at_rest(path: str, query: dict, count: int, on_scroll: str = WHEN_AT_REST) -> str:
    """Rows in a box of their own; only those in view are there, and those come when scrolling has ceased."""
    return """<style>#box {height: 600px; overflow-y: auto} #rows {position: relative; height: 6000px}
    .car {position: absolute; height: 150px}</style><div id=box><div id=rows></div></div><script>
    let timer, steps = 0;
    function draw() {
      const first = Math.floor(box.scrollTop / 150), last = Math.min(40, first + 5);
      rows.innerHTML = "";
      for (let n = first; n < last; n++) rows.insertAdjacentHTML("beforeend",
        `<div class=car data-id="${n}" style="top: ${150 * n}px"><h2>Car ${n}</h2><img src="/photos/${n}.jpg"></div>`);
    }
    box.addEventListener("scroll", () => { ON_SCROLL });
    draw();
    </script>""".replace("ON_SCROLL", on_scroll)


def rows_long_at_rest(path: str, query: dict, count: int) -> str:
    """The rows come later than most pages need to draw."""
    return rows_at_rest(path, query, count, WHEN_AT_REST.replace("150", "600"))


def rows_on_request(path: str, query: dict, count: int) -> str:
    """Each time scrolling has ceased, a script asks for the rows, and has them well over a second later."""
    if path:
        time.sleep(1.5)
        return ""
    ask = '() => fetch("/reported/rows-on-request/rows").then(draw)'
    return rows_at_rest(path, query, count, WHEN_AT_REST.replace("draw", ask))


def rows_by_worker(path: str, query: dict, count: int, milliseconds: str = "1000", draw: str = "draw()") -> str:
    """All but the first rows come a second after scrolling has ceased, from a worker."""
    wait = f"clearTimeout(timer); timer = setTimeout(postMessage, {milliseconds}, 0);"
    worker = f"let timer, top = 0; onmessage = event => {{ top = Math.max(top, event.data); {wait} }};"
    make = f"""window.worker ??= new Worker("data:text/javascript," + encodeURIComponent("{worker}"));"""
    later = f"{make} worker.onmessage = () => {{ {draw} }}; worker.postMessage(box.scrollTop);"
    return rows_at_rest(path, query, count, later)


def rows_by_late_worker(path: str, query: dict, count: int) -> str:
    """Some in the middle come only after the scraper has lost its patience, until what is below them was seen."""
    return rows_by_worker(path, query, count, "top > 2000 && top < 3500 ? 20000 : 1000")


def rows_every_other_time(path: str, query: dict, count: int) -> str:
    """The rows are drawn at every second step, as by a list that has no time for each."""
    return rows_at_rest(path, query, count, "if (++steps % 2 === 0) draw();")


def rows_missed_once(path: str, query: dict, count: int) -> str:
    """Some rows show only once the end of the list was seen, as those that a busy machine drew too late before."""
    draw = "draw(); if (box.scrollTop > 5300) steps = 1; if (!steps) for (const n of [11, 12, 25, 33]) rows"
    return rows_by_worker(path, query, count, draw=f"""{draw}.querySelector(`[data-id="${{n}}"]`)?.remove();""")


def rows_recycled(path: str, query: dict, count: int) -> str:
    """The rows are drawn into the same elements; the first time, some still show their neighbour's car."""
    recycle = """
      if (box.scrollTop > 5300) steps = 1;
      const first = Math.min(35, Math.floor(box.scrollTop / 150));
      [...rows.children].forEach((row, i) => {
        const n = first + i - (!steps && [11, 12, 25, 33].includes(first + i));
        row.style.top = `${150 * (first + i)}px`;
        row.dataset.id = n;
        row.innerHTML = `<h2>Car ${n}</h2><img src="/photos/${n}.jpg">`;
      });"""
    return rows_at_rest(path, query, count, recycle)


def carousel(path: str, query: dict, count: int) -> str:
    """A strip of slides on a listing's own page; a slide gets its picture when it is scrolled into view."""
    if not path:
        return "".join(card(n, f'<a href="/reported/carousel/car-{n}">more</a>') for n in range(2))
    return """<style>#strip {display: flex; overflow-x: auto; width: 600px} .slide {flex: 0 0 500px; height: 300px}
    .slide img {width: 500px; height: 300px}</style><div id=strip></div><script>
    const car = location.pathname.split("-").pop(), addresses = new WeakMap();
    const seen = new IntersectionObserver(entries => entries.forEach(entry => {
      if (entry.isIntersecting) setTimeout(() => { entry.target.src = addresses.get(entry.target); }, 100); }));
    for (let k = 0; k < 8; k++) {
      strip.insertAdjacentHTML("beforeend", `<div class=slide><img src="BLANK"></div>`);
      const img = strip.lastElementChild.firstElementChild;
      addresses.set(img, `/photos/${car}-${k}.jpg`);
      seen.observe(img);
    }
    </script>""".replace("BLANK", BLANK)


def gallery_by_script(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """One picture is there at once; the others come with an answer that takes longer than a page needs to be calm."""
    if not path:
        return "".join(card(n, f'<a href="/reported/gallery-by-script/car-{n}">more</a>') for n in range(2))
    if path.startswith("data-"):
        time.sleep(1.5)
        return 200, {"Content-Type": "application/json"}, json.dumps([f"/photos/{path[5:]}-{k}.jpg" for k in (1, 2, 3)])
    number = path[4:]
    return f"""<div id=gallery>{photo(f"{number}-0")}</div><script>
    fetch("/reported/gallery-by-script/data-{number}").then(answer => answer.json()).then(found => found.forEach(
      address => gallery.insertAdjacentHTML("beforeend", `<img src="${{address}}">`)));
    </script>"""


def blurred_first(path: str, query: dict, count: int) -> str:
    """Each card shows a tiny picture of its own until a script puts the real one in its place."""
    cards = "".join(card(n, f'<img src="/photos/tiny-{n}.jpg">') for n in range(6))
    return f"""{cards}<script>
    document.querySelectorAll(".car img").forEach((img, n) =>
      setTimeout(() => {{ img.outerHTML = `<img src="/photos/full-${{n}}.jpg">`; }}, 200 + 60 * n));
    </script>"""


def next_by_script(path: str, query: dict, count: int) -> str:
    """The link to the next page leads to "#"; a script puts other cards in the place of these."""
    return """<main></main><a class=next href="#">Next</a><script>
    let page = 0;
    function draw() {
      const cards = [0, 1, 2, 3].map(n => 4 * page + n).map(n =>
        `<div class=car data-id="${n}"><h2>Swift ${n}</h2><img src="/photos/${n}.jpg"></div>`);
      document.querySelector("main").innerHTML = cards.join("");
      if (page === 2) document.querySelector(".next").remove();
    }
    document.querySelector(".next").onclick = event => { event.preventDefault(); page++; setTimeout(draw, 250); };
    draw();
    </script>"""


def page_in_fragment(path: str, query: dict, count: int) -> str:
    """The number of the page is all there is in the fragment; a script reads it when it changes."""
    return """<main></main><script>
    function draw() {
      const page = Number(location.hash.slice(1)) - 1, main = document.querySelector("main");
      main.innerHTML = page > 2 ? "<p class=none>no cars</p>" : [0, 1, 2, 3].map(n => 4 * page + n).map(n =>
        `<div class=car data-id="${n}"><h2>Swift ${n}</h2><img src="/photos/${n}.jpg"></div>`).join("");
    }
    addEventListener("hashchange", () => setTimeout(draw, 300));
    draw();
    </script>"""


def json_in_attribute(path: str, query: dict, count: int) -> str:
    """The gallery is JSON in an attribute, thumbnails beside the pictures."""

    def album(n: int) -> str:
        images = [{"src": f"/photos/{n}-{k}.jpg", "th": f"/photos/th-{n}-{k}.jpg"} for k in range(3)]
        return json.dumps({"albums": [{"title": f"Swift {n}", "images": images}]}).replace('"', "&quot;")

    return "".join(card(n, f'<div class=gallery data-image-data="{album(n)}"></div>') for n in range(4))


def jpeg_xl(path: str, query: dict, count: int) -> str:
    """The first source of each picture is a JPEG XL, the largest, which nothing here decodes."""
    sources = '<source type="image/jxl" srcset="/photos/{0}.jxl 1600w"><source srcset="/photos/{0}.jpg 800w">'
    return "".join(card(n, f'<picture>{sources.format(n)}<img src="/photos/s-{n}.jpg"></picture>') for n in range(4))


def flight_data(path: str, query: dict, count: int) -> str:
    """A listing's own page has its photos in JSON, in a text, in an array that a script pushes."""
    if not path:
        return "".join(card(n, f'<a href="/reported/flight-data/car-{n}">more</a>') for n in range(2))
    images = [{"url": f"/photos/{path}-{k}.jpg", "width": 1600} for k in range(4)]
    flight = "3:" + json.dumps(["$", "div", None, {"gallery": {"images": images}}]) + "\n"
    return f"<h1>Swift</h1><script>self.__next_f = []; self.__next_f.push({json.dumps([1, flight])})</script>"


def arrow(path: str, query: dict, count: int) -> str:
    """The gallery shows one picture; the others are in a script's data, for an arrow to show."""
    if not path:
        return "".join(card(n, f'<a href="/reported/arrow/car-{n}">more</a>') for n in range(2))
    images = [{"order": k, "url": f"/photos/{path}-{k}.jpg"} for k in range(4)]
    return f"<h1>Swift</h1>{photo(path + '-0')}<button>›</button><script>const slides = {json.dumps(images)};</script>"


def same_path(path: str, query: dict, count: int) -> str:
    """One card a page, whose address differs in a parameter alone, on a path that looks as if it were one car's."""
    number = int(query["page"])
    link = f'<a href="/reported/same-path/swift-2015?v={number}">more</a>'
    return card(number, link + photo(number)) if number < 4 else "<p>no cars</p>"


def session_in_address(path: str, query: dict, count: int) -> str:
    """Every link carries a session of this visit, in parameters known and unknown."""
    if path:
        return photo(query["ad"])
    session = f"sid=s{count}&visit=v{time.time():.3f}"
    link = '<a href="/reported/session-in-address/show.php?ad={}&{}">more</a>'
    return "".join(card(n, link.format(n, session)) for n in range(6))


def presigned(path: str, query: dict, count: int) -> str:
    """Each visit gets addresses with a signature of its own."""
    signed = "X-Amz-Date={0}&X-Amz-Expires=60&X-Amz-Signature=s{0}"
    visit = signed.format(time.time())
    return "".join(card(n, f'<img src="/photos/{n}.jpg?size=large&{visit}">') for n in range(6))


def two_gates(path: str, query: dict, count: int) -> str:
    """Nothing is there before two dialogs, of which the second comes a moment after the first, are clicked away."""
    return """<div id=cookies>We value your privacy <button>Accept</button></div><main></main><script>
    document.querySelector("#cookies button").onclick = () => setTimeout(() => {
      document.querySelector("#cookies").outerHTML = "<a href='javascript:void(0)'><button id=ageagree>I agree</a>";
      ageagree.onclick = () => { ageagree.remove(); for (let n = 0; n < 6; n++)
        document.querySelector("main").innerHTML += `<div class=car data-id=${n}><img src="/photos/${n}.jpg"></div>`; };
    }, 200);
    </script>"""


def widget(path: str, query: dict, count: int) -> str:
    """The listings are in a frame that a script adds, beside another."""
    if path == "stock":
        return "".join(card(n, photo(n)) for n in range(6))
    return """<iframe srcdoc="<p>advertisement"></iframe><div id=here></div><script>
    setTimeout(() => { here.innerHTML = "<iframe class=stock src=/reported/widget/stock>"; }, 300);
    </script>"""


def slotted(path: str, query: dict, count: int) -> str:
    """Cards are in the shadow root of a list, their pictures in another one inside each."""
    return """<car-list></car-list><script>
    const root = document.querySelector("car-list").attachShadow({mode: "open"});
    for (let n = 0; n < 4; n++) {
      root.innerHTML += `<div class=car data-id=${n}><h2>Swift ${n}</h2><car-photo></car-photo></div>`;
    }
    root.querySelectorAll("car-photo").forEach((host, n) => {
      host.attachShadow({mode: "open"}).innerHTML = `<img src="/photos/${n}.jpg">`; });
    </script>"""


def offset(path: str, query: dict, count: int) -> str:
    """Pages are counted in cars: 0, 5, 10."""
    first = int(query["from"])
    return "".join(card(n, photo(n)) for n in range(first, min(first + 5, 12))) or "<p class=none>no cars</p>"
