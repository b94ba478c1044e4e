"""Sites of a reviewer: on each the scraper lost photos or took wrong ones and did not say so; see `reported_sites`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from tests.scraper.lively_sites import BUTTON
from tests.scraper.reported_sites import CARDS, LIVELY, NUMBERED, OWN_PAGES, PATIENT, Reported, card, numbered, photo

SITES = {
    "scroll-then-button": Reported("a button that comes after some scrolling", "", CARDS, 20, 20, more=BUTTON),
    "streamed": Reported("cards that an EventSource brings, with pauses", "", CARDS, 15, 15, more=PATIENT),
    "by-socket": Reported("photos that a WebSocket brings late", "", OWN_PAGES + '"#gallery img"', 8, 2, more=LIVELY),
    "delayed-scripts": Reported(
        "scripts that wait for a visitor's first movement (WP Rocket)", "", CARDS, 12, 12, more=LIVELY
    ),
    "slideshow": Reported("one picture that changes", "", OWN_PAGES + '"#slide"', 4, 1, more=LIVELY),
    "renamed": Reported("a script that changes the page's address", "", CARDS, 6, 6, more=LIVELY),
    "more-by-link": Reported("a link to further cars in another folder", "", CARDS, 6, 6, more=BUTTON),
    "recommended": Reported(
        "other cars past the end of a search",
        *("?page={page}", CARDS, 15, 15, 0, "page=4: paging.empty shows.* 5 listings left out"),
        more=NUMBERED + 'max_pages = 6\nempty = ".none"',
    ),
    "always-none": Reported(
        "a marker of an empty search that always shows",
        *("?page={page}", CARDS, 5, 5, 5, "page=2: paging.empty shows.* 5 listings left out"),
        more=NUMBERED + 'empty = "h2"',
    ),
    "misspelt-frame": Reported(
        "a frame that is not there",
        *("", CARDS + '\nframe = "iframe.stok"', 0, 0, 1, "selectors.frame = 'iframe.stok' finds no frame", LIVELY),
    ),
    "misspelt-click": Reported(
        "a dialog that is not clicked away",
        *("", CARDS, 0, 0, 1, "paging.click = '#acept' found nothing so far", LIVELY + 'click = ["#acept"]'),
    ),
    "needless-click": Reported(
        "a dialog that no page has",
        *("", CARDS, 5, 5, 0, "paging.click = '#accept' found nothing anywhere", LIVELY + 'click = ["#accept"]'),
    ),
    "numbers-alone": Reported(
        "links to further pages that are numbers and no more", *("", CARDS, 5, 5, 5, "leads on: '2'", LIVELY)
    ),
    "from-nought": Reported(
        "pages that count from 0, where the site file says nothing of it",
        *("?page={page}", CARDS, 10, 10, 5, "first page of a search leads back: 'Previous'", NUMBERED),
    ),
    "button-then-link": Reported(
        "a button for more, in whose place there is a link in the end", "", CARDS, 15, 15, 5, "leads on: 'Next'", BUTTON
    ),
    "from-one": Reported(
        "a first page with a link to one before, where the site file says which is the first",
        *("?page={page}", CARDS, 10, 10, 0, "", NUMBERED + "\nfirst_page = 1"),
    ),
    "button-stays": Reported("a button for more that says something else in the end", "", CARDS, 10, 10, more=BUTTON),
    "watched": Reported(
        "cards without an id that say how many people look at them",
        *("", 'listing = "div.car"\nphotos = "img"', 5, 1),
        more='[paging]\nkind = "scroll"\npatience = 2.0\nsettle = 0.4',
    ),
    "gallery-in-a-frame": Reported(
        "photos on a page in a frame of a listing's own page",
        *("", OWN_PAGES.replace("photos = ", 'frame = "iframe.photos"\nphotos = ') + '"img"', 6, 2),
        more=LIVELY,
    ),
    "gallery-in-a-frame-unsaid": Reported(
        "the same, where the site file says nothing of the frame",
        *("", OWN_PAGES + '"#gallery img"', 0, 0, 1, r"A frame \(.*set frame = 'iframe' under \[detail\]", LIVELY),
    ),
    "said-in-a-header": Reported("X-Robots-Tag of a page", "", CARDS, 0, 0, 5, "refused: the page says noai"),
    "cookie-for-photos": Reported("a cookie whose path is that of the photos", "", CARDS, 5, 5),
}


def page(name: str, path: str, query: dict[str, str], count: int) -> str | tuple[int, dict[str, str], str | Iterator]:
    """Return what the site `name` answers; an iterator in the place of the HTML gives its pieces as they come."""
    return globals()[name.replace("-", "_")](path, query, count)


def five_cards(first: int) -> str:
    return "".join(card(n, photo(n)) for n in range(first, first + 5))


def scroll_then_button(path: str, query: dict, count: int) -> str:
    """Below a long text more cards come once; only then is there a button for the others."""
    cards = json.dumps([five_cards(n) for n in (0, 5, 10, 15)])
    return f"""<main></main><button id=more hidden>more</button><p style="height: 3000px">Why buy a Swift?</p><script>
    const cards = {cards}, main = document.querySelector("main");
    const load = () => {{ main.innerHTML += cards.shift(); more.hidden = cards.length % 3 === 0; }};
    load();
    addEventListener("scroll", () => {{ if (cards.length === 3 && scrollY > 1000) load(); }});
    more.onclick = () => setTimeout(load, 200);
    </script>"""


def streamed(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], Iterator]:
    """Dealers' cards come in one answer that goes on, five at a time."""
    if path:
        return 200, {"Content-Type": "text/event-stream"}, dealers()
    return """<main></main><script>
    const source = new EventSource("/reported/streamed/dealers");
    source.onmessage = event => document.querySelector("main").insertAdjacentHTML("beforeend", event.data);
    source.addEventListener("done", () => source.close());
    </script>"""


def dealers() -> Iterator[str]:
    for first in (0, 5, 10):
        yield f"data: {five_cards(first)}\n\n"
        time.sleep(3)
    yield "event: done\ndata: all\n\n"


def by_socket(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], Iterator]:
    """A listing's own page shows one photo; the others come by a socket that stays open."""
    if not path:
        return "".join(card(n, f'<a href="/reported/by-socket/car-{n}">more</a>') for n in range(2))
    if path.startswith("socket-"):
        return 200, {}, message("".join(photo(f"{path[7:]}-{k}") for k in (1, 2, 3)))
    return f"""<div id=gallery>{photo(f"{path}-0")}</div><script>
    const socket = new WebSocket(`ws://${{location.host}}/reported/by-socket/socket-{path}`);
    socket.onmessage = event => gallery.insertAdjacentHTML("beforeend", event.data);
    </script>"""


def message(text: str) -> Iterator[str]:
    time.sleep(2)
    yield text
    time.sleep(60)


def delayed_scripts(path: str, query: dict, count: int) -> str:
    """The script that shows more begins when the mouse moves for the first time."""
    more = json.dumps("".join(card(n, photo(n)) for n in range(6, 12)))
    return f"""<main>{"".join(card(n, photo(n)) for n in range(6))}</main><script>
    addEventListener("mousemove", () => document.querySelector("main").insertAdjacentHTML("beforeend", {more}),
      {{once: true}});
    </script>"""


def slideshow(path: str, query: dict, count: int) -> str:
    """A listing's own page shows its photos one after the other in one element, round and round."""
    if not path:
        return card(0, '<a href="/reported/slideshow/car-0">more</a>')
    return f"""<img id=slide src="/photos/{path}-0.jpg"><script>
    let shown = 0;
    setInterval(() => {{ slide.src = `/photos/{path}-${{++shown % 4}}.jpg`; }}, 1800);
    </script>"""


def renamed(path: str, query: dict, count: int) -> str:
    """The page gives itself another address; what it showed before is where it was, what it shows later is not."""
    early, later = ("".join(card(n, f'<img src="../photos/{n % 3}.jpg">') for n in range(k, k + 3)) for k in (0, 3))
    return f"""<main>{early}</main><script>
    setTimeout(() => {{
      history.replaceState(null, "", "/photos/of/swift/");
      document.querySelector("main").insertAdjacentHTML("beforeend", {json.dumps(later)});
      document.querySelector("img").src = "../../9.jpg";
    }}, 300);
    </script>"""


def more_by_link(path: str, query: dict, count: int) -> str:
    """What looks like a button leads to a page in another folder, with the next cars."""
    first = 3 if path else 0
    up = "../" * (path.count("/") + 2)
    cards = "".join(card(n, f'<img src="{up}photos/{n}.jpg">') for n in range(first, first + 3))
    return cards + ("" if path else "<a id=more href=more-by-link/more/2>more</a>")


def recommended(path: str, query: dict, count: int) -> str:
    """Past its end a search says so, and shows cars that one may also like, others each time."""
    number = int(query["page"])
    return numbered(query) + (five_cards(100 * number) if number > 3 else "")


def always_none(path: str, query: dict, count: int) -> str:
    """What the site file takes for the marker of an empty search is on every page."""
    return numbered(query)


def gallery_in_a_frame(path: str, query: dict, count: int) -> str:
    """A listing's own page holds its gallery in a frame, with addresses of its own; one photo comes late."""
    if not path:
        return "".join(card(n, f'<a href="/reported/gallery-in-a-frame/car-{n}">more</a>') for n in range(2))
    if car := path.partition("gallery/")[2]:
        return f"""<base href="/photos/"><main><img src="{car}-0.jpg"><img src="{car}-1.jpg"></main><script>
        setTimeout(() => document.querySelector("main").innerHTML += "<img src={car}-2.jpg>", 400);
        </script>"""
    return f'<h1>Swift</h1><iframe class=photos src="/reported/gallery-in-a-frame/gallery/{path}"></iframe>'


def gallery_in_a_frame_unsaid(path: str, query: dict, count: int) -> str:
    if not path:
        return "".join(card(n, f'<a href="/reported/gallery-in-a-frame-unsaid/car-{n}">more</a>') for n in range(3))
    return f'<h1>Swift</h1><iframe src="/reported/gallery-in-a-frame/gallery/{path}"></iframe>'


def misspelt_frame(path: str, query: dict, count: int) -> str:
    """The listings are in a frame, whose selector in the site file finds nothing."""
    if path:
        return "".join(card(n, photo(n)) for n in range(6))
    return "<h1>Our stock</h1><iframe class=stock src=/reported/misspelt-frame/stock></iframe>"


def misspelt_click(path: str, query: dict, count: int) -> str:
    """The page shows nothing until a dialog is answered; the site file names the wrong button."""
    cards = json.dumps(five_cards(0))
    return f"""<button id=accept>Accept</button><main></main><script>
    accept.onclick = () => {{ document.querySelector("main").innerHTML = {cards}; }};
    </script>"""


def needless_click(path: str, query: dict, count: int) -> str:
    return five_cards(0)


def numbers_alone(path: str, query: dict, count: int) -> str:
    """The number of this page is no link, those of the others are, and no word says more."""
    return five_cards(0) + '<p class=pager><b>1</b> <a href="?page=2">2</a> <a href="?page=3">3</a>'


def from_nought(path: str, query: dict, count: int) -> str:
    """The first of three pages has the number 0."""
    number = int(query["page"])
    more = f'<a href="?page={number + 1}">Next</a>' if number < 2 else ""
    return five_cards(5 * number) + f'<a href="?page={number - 1}">Previous</a>' + more if number < 3 else "<p>no cars"


def button_then_link(path: str, query: dict, count: int) -> str:
    """A button brings cards twice; then a link to a page of its own has the others."""
    cards = json.dumps([five_cards(5), five_cards(10)])
    return f"""<main>{five_cards(0)}</main><button id=more>more</button><script>
    const cards = {cards};
    more.onclick = () => {{
      document.querySelector("main").innerHTML += cards.shift();
      if (!cards.length) more.outerHTML = "<a href='?page=2'>Next</a>";
    }};
    </script>"""


from_one = from_nought


def button_stays(path: str, query: dict, count: int) -> str:
    """The button stays when there are no more cards, and counts those that are left."""
    return f"""<main>{five_cards(0)}</main><button id=more>Show more</button><script>
    let cards = {json.dumps(five_cards(5))};
    more.onclick = () => {{
      document.querySelector("main").innerHTML += cards;
      cards = "";
      more.textContent = "Show more (0 left)";
    }};
    </script>"""


def watched(path: str, query: dict, count: int) -> str:
    """A number in each card changes again and again."""
    return f"""{five_cards(0)}<script>
    let people = 10;
    setInterval(() => document.querySelectorAll("h2").forEach(
      title => {{ title.textContent = `Swift, ${{people++}} people watch it`; }}), 150);
    </script>"""


def said_in_a_header(path: str, query: dict, count: int) -> tuple[int, dict[str, str], str]:
    return 200, {"X-Robots-Tag": "noai, noimageai"}, five_cards(0)


def cookie_for_photos(path: str, query: dict, count: int) -> tuple[int, dict[str, str], str]:
    """The page sets a cookie that is not sent with pages."""
    cards = "".join(card(n, photo(f"visitors-{n}")) for n in range(5))
    return 200, {"Set-Cookie": "visited=1; Path=/photos"}, cards
