"""Sites on which the scraper lost photos without saying so, made after public reports; see `reported_sites`."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter

from tests.scraper.lively_sites import BUTTON
from tests.scraper.reported_sites import BLANK, CARDS, LIVELY, NUMBERED, OWN_PAGES, Reported, card, numbered, photo

NEXT = '[paging]\nkind = "next"\nnext = "a.next"\npatience = 2.0\nsettle = 0.4\n'
SITES = {
    # 1: what is missing is said
    "other-button": Reported(
        "github.com/martinsbalodis/web-scraper-chrome-extension/issues/244",
        *("", CARDS, 5, 5, 5, "leads on: 'Load more cars'", BUTTON.replace("#more", "#load-more")),
    ),
    "unread-next": Reported(
        "github.com/apify-projects/store-google-search-scraper/pull/13",
        *("?page=1", CARDS, 5, 5, 5, "leads on: 'Next'", LIVELY),
    ),
    "broken-third": Reported(
        "github.com/apify-projects/store-google-search-scraper/pull/13",
        *("?page={page}", CARDS, 10, 10, 5, "leads on: 'Next ›'", NUMBERED),
    ),
    "other-parameter": Reported(
        "github.com/fredericvergnaud/extractify/issues/10",
        *("?seite={page}", CARDS, 5, 5, 5, "shows the same listings as the first", NUMBERED),
    ),
    "bare-slides": Reported(
        "github.com/kenwheeler/slick/issues/1049",
        *("", OWN_PAGES + '".gallery img"', 4, 2, 5, "4 pictures without an address", LIVELY),
    ),
    "opened-in-place": Reported(
        "github.com/martinsbalodis/web-scraper-chrome-extension/issues/205",
        *("", OWN_PAGES.replace('"a"', '"h2"') + '"img"', 0, 0, 5, "6 cards that lead to no page of their own", LIVELY),
    ),
    # 2: what a page says of itself counts, whatever its status
    "too-many": Reported("github.com/unclecode/crawl4ai/issues/246", "?page={page}", CARDS, 15, 15, more=NUMBERED),
    "bad-gateway": Reported(
        "github.com/oxidecomputer/oxide.rs/issues/69", "?page={page}", CARDS, 15, 15, more=NUMBERED + 'empty = ".none"'
    ),
    "sold": Reported(
        "github.com/mwpenny/kijiji-scraper/pull/15", "", OWN_PAGES + '"img"', 4, 4, 1, "not the listing's own page"
    ),
    "deep-404": Reported("github.com/apify/crawlee/issues/405", "", CARDS, 5, 5, 5, "404, but it shows listings", NEXT),
    # 3: a page is walked through
    "placeholders": Reported("github.com/onefinestay/react-lazy-render/issues/9", "", CARDS, 40, 40, more=LIVELY),
    "arrives-above": Reported("github.com/metafizzy/infinite-scroll/issues/810", "", CARDS, 20, 20, more=LIVELY),
    "click-for-address": Reported(
        "github.com/martinsbalodis/web-scraper-chrome-extension/issues/200",
        *("", OWN_PAGES.replace('"a"', '"h2"') + '"img"', 6, 6),
        more=LIVELY,
    ),
    # 4: a page is taken when it has settled
    "one-by-one": Reported(
        "github.com/puppeteer/puppeteer/issues/662", "", OWN_PAGES + '"#gallery img"', 10, 2, more=LIVELY
    ),
    "late-cards": Reported("github.com/puppeteer/puppeteer/issues/7435", "", CARDS, 10, 10, more=LIVELY),
    "hidden-marks": Reported(
        "github.com/grafana/k6-docs/issues/2089", *("", CARDS, 6, 6), more=LIVELY + 'empty = ".none"\nend = "#end"'
    ),
    # 5: something new, not more
    "hashbang": Reported("github.com/arquivo/pwa-technologies/issues/556", "", CARDS, 12, 12, more=NEXT),
    "windowed": Reported(
        "github.com/bvaughn/react-virtualized/issues/1059",
        *("", CARDS, 30, 30),
        more='[paging]\nkind = "scroll"\npatience = 3.0\nsettle = 0.4',
    ),
    # 6: which picture
    "in-memory": Reported("github.com/eight04/image-picka/issues/335", "", CARDS, 6, 6, more=LIVELY, asked_by_page=6),
    "before": Reported(
        "github.com/tuupola/lazyload/issues/366", "", CARDS.replace('"img"', '".pic"'), 6, 6, more=LIVELY
    ),
    # 7: which listing, which photo
    "by-reference": Reported("github.com/topmonks/hlidac-shopu/issues/985", "", OWN_PAGES + '"img"', 10, 10),
    "by-key": Reported("github.com/topmonks/hlidac-shopu/issues/985", "", CARDS, 6, 6),
    "signed-path": Reported("github.com/spacebarchat/server/issues/1280", "", CARDS, 6, 6),
    "expiring-path": Reported(
        "github.com/Glitchy-Sheep/boosty-downloader/pull/150",
        *("", CARDS.replace("photos =", 'ignore_path = ["/s/[^/]+"]\nphotos ='), 12, 12),
    ),
    # 9: what a user says in the site file
    "late-handler": Reported(
        "github.com/microsoft/playwright/issues/27759", "", CARDS, 6, 6, more=LIVELY + 'click = ["#agree"]'
    ),
    "closed-root": Reported("github.com/SeleniumHQ/selenium/issues/14796", "", CARDS, 6, 6, more=LIVELY),
    "closed-root-in-html": Reported(
        "github.com/SeleniumHQ/selenium/issues/15665", "", CARDS, 0, 0, 1, "closed shadow root", LIVELY
    ),
}


def page(name: str, path: str, query: dict[str, str], count: int) -> str | tuple[int, dict[str, str], str]:
    """Return what the site `name` answers."""
    return globals()[name.replace("-", "_")](path, query, count)


def links(name: str, cars: int) -> str:
    """Return cards that lead to own pages of the site `name`."""
    return "".join(card(n, f'<a href="/reported/{name}/car-{n}">more</a>') for n in range(cars))


def six_cards() -> str:
    """Return six cards as a text of JavaScript."""
    return json.dumps("".join(card(n, photo(n)) for n in range(6)))


def other_button(path: str, query: dict, count: int) -> str:
    """The button has another name than the site file says."""
    return numbered({"page": "1"}) + "<button id=more>Load more cars</button>"


def unread_next(path: str, query: dict, count: int) -> str:
    """There are further pages, and the site file says nothing of them."""
    return numbered(query) + '<a rel=next href="?page=2">Next</a>'


def broken_third(path: str, query: dict, count: int) -> str:
    """The second page leads on, but from the third page on none shows a listing."""
    number = int(query["page"])
    return numbered(query) + f'<a class=next href="?page={number + 1}">Next ›</a>' if number < 3 else "<p>Sorry"


def other_parameter(path: str, query: dict, count: int) -> str:
    """The number of the page is in a parameter that the site does not know."""
    return numbered({"page": "1"})


def bare_slides(path: str, query: dict, count: int) -> str:
    """Two of the four pictures of a gallery never get an address."""
    if not path:
        return links("bare-slides", 2)
    return f"<div class=gallery>{photo(path + '-0')}{photo(path + '-1')}<img src={BLANK}><img></div><script></script>"


def too_many(path: str, query: dict, count: int) -> str:
    """The second page says with status 200 that there were too many requests, the first time."""
    if query["page"] == "2" and count == 1:
        return "<title>Cars</title><p>You are being rate limited. Please try again in a few seconds."
    return numbered(query)


def bad_gateway(path: str, query: dict, count: int) -> str:
    """A cache gives an error page of the server behind it with status 200, once."""
    return "<title>502 Bad Gateway</title>" if query["page"] == "2" and count == 1 else numbered(query)


def sold(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """The page of a car that was sold leads back to the search, which has pictures, too."""
    if path == "car-3":
        return 302, {"Location": "/reported/sold"}, ""
    return photo(path) if path else photo("banner") + links("sold", 5)


def deep_404(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """The server knows the first page only; for others it answers 404 with the program that shows them."""
    number = int(query.get("page", 1))
    html = numbered({"page": str(number)}) + (f'<a class=next href="?page={number + 1}">next</a>' if number < 3 else "")
    return (404, {}, html) if number > 1 else html


def placeholders(path: str, query: dict, count: int) -> str:
    """Forty cards say "…" each, and become cars when they have been in view for a moment."""
    return f"""<style>.car {{height: 300px}}</style>{"<div class=car><h2>…</h2></div>" * 40}<script>
    const cars = [...document.querySelectorAll(".car")];
    const seen = new IntersectionObserver(entries => entries.forEach(entry => {{
      clearTimeout(entry.target.timer);
      if (entry.isIntersecting) entry.target.timer = setTimeout(() => {{
        const n = cars.indexOf(entry.target);
        entry.target.dataset.id = n;
        entry.target.innerHTML = `<h2>Swift ${{n}}</h2><img src="/photos/${{n}}.jpg">`;
      }}, 300);
    }}));
    cars.forEach(car => seen.observe(car));
    </script>"""


def arrives_above(path: str, query: dict, count: int) -> str:
    """When the page was scrolled, ten cards come above those that were there; pictures come when they are in view."""
    return f"""<style>.car {{height: 300px}} html {{overflow-anchor: none}}</style><main></main><script>
    const main = document.querySelector("main");
    const seen = new IntersectionObserver(entries => entries.forEach(entry => {{
      if (entry.isIntersecting) entry.target.querySelector("img").src = `/photos/${{entry.target.dataset.id}}.jpg`;
    }}));
    function add(where, from, to) {{
      for (let n = from; n < to; n++) {{
        const html = `<div class=car data-id=${{n}}><h2>Swift ${{n}}</h2><img src="{BLANK}"></div>`;
        main.insertAdjacentHTML(where, html);
        seen.observe(where === "beforeend" ? main.lastElementChild : main.firstElementChild);
      }}
    }}
    add("beforeend", 10, 20);
    let done = false;
    addEventListener("scroll", () => {{
      if (done || scrollY < 1200) return;
      done = true;
      add("afterbegin", 0, 10);
      scrollBy(0, 3000);
    }});
    </script>"""


def click_for_address(path: str, query: dict, count: int) -> str:
    """A script leads on when a card is clicked; no address is in the page."""
    if path:
        return photo(path)
    return f"""{"".join(card(n, "") for n in range(6))}<script>
    document.querySelectorAll(".car").forEach((car, n) => {{
      car.onclick = () => {{ location.href = `/reported/click-for-address/car-${{n}}`; }};
    }});
    </script>"""


def opened_in_place(path: str, query: dict, count: int) -> str:
    """A click on a card shows the car in the place of the list; no address leads to it."""
    return f"""<main>{"".join(card(n, "") for n in range(6))}</main><script>
    document.querySelectorAll(".car").forEach((car, n) => {{
      car.onclick = () => {{ document.querySelector("main").innerHTML = `<img src="/photos/${{n}}.jpg">`; }};
    }});
    </script>"""


def one_by_one(path: str, query: dict, count: int) -> str:
    """A gallery gets a picture every 1.2 seconds."""
    if not path:
        return links("one-by-one", 2)
    return f"""<div id=gallery>{photo(path + "-0")}</div><script>
    let n = 1;
    const timer = setInterval(() => {{
      gallery.insertAdjacentHTML("beforeend", `<img src="/photos/{path}-${{n}}.jpg">`);
      if (++n === 5) clearInterval(timer);
    }}, 1200);
    </script>"""


def late_cards(path: str, query: dict, count: int) -> str:
    """Five cards are there at once, five others come two seconds later."""
    late = json.dumps("".join(card(n, photo(n)) for n in range(5, 10)))
    return f"""<main>{"".join(card(n, photo(n)) for n in range(5))}</main><script>
    setTimeout(() => document.querySelector("main").insertAdjacentHTML("beforeend", {late}), 2000);</script>"""


def hidden_marks(path: str, query: dict, count: int) -> str:
    """What says that there are no cars, and that there are no more, is in the page all the time, hidden."""
    return f"""<p class=none style="display: none">no cars</p><main></main><p id=end hidden>That is all</p><script>
    setTimeout(() => {{ document.querySelector("main").innerHTML = {six_cards()}; }}, 1500);</script>"""


def hashbang(path: str, query: dict, count: int) -> str:
    """The link to the next page leads to a route; past the last page it is hidden and leads further all the same."""
    return """<main></main><a class=next href="#!page=2">Next</a><script>
    const next = document.querySelector(".next");
    function draw() {
      const page = Number(location.hash.slice(7) || 1) - 1;
      document.querySelector("main").innerHTML = [0, 1, 2, 3].map(n => 4 * page + n).map(n =>
        `<div class=car data-id="${n}"><h2>Swift ${n}</h2><img src="/photos/${n}.jpg"></div>`).join("");
      next.hidden = page === 2;
      next.href = "#!page=" + (page + 2);
    }
    addEventListener("hashchange", () => setTimeout(draw, 300));
    draw();
    </script>"""


def windowed(path: str, query: dict, count: int) -> str:
    """An endless list that holds its last ten cards only."""
    if path:
        return "".join(card(n, photo(n)) for n in range(5 * int(path[6:]), 5 * int(path[6:]) + 5))
    return """<style>.car {height: 500px}</style><main></main><p id=bottom>…</p><script>
    const main = document.querySelector("main");
    let next = 0, busy = false;
    async function more() {
      if (busy || next > 5) return;
      busy = true;
      main.insertAdjacentHTML("beforeend", await (await fetch("/reported/windowed/cards-" + next++)).text());
      while (main.children.length > 10) main.firstElementChild.remove();
      busy = false;
    }
    new IntersectionObserver(entries => entries[0].isIntersecting && more()).observe(bottom);
    </script>"""


def in_memory(path: str, query: dict, count: int) -> str:
    """A script fetches each picture and shows it from memory."""
    return f"""{"".join(card(n, "<img>") for n in range(6))}<script>
    document.querySelectorAll(".car img").forEach(async (img, n) => {{
      const answer = await fetch(`/photos/${{n}}.jpg`);
      const blob = n % 2 ? await answer.blob() : new Blob([await answer.arrayBuffer()], {{type: "image/jpeg"}});
      img.src = URL.createObjectURL(blob);
    }});
    </script>"""


def before(path: str, query: dict, count: int) -> str:
    """A style sheet sets the picture on the ::before element of each card."""
    rule = ".p{0}::before {{content: ''; display: block; height: 100px; background: url(/photos/{0}.jpg)}}"
    cards = "".join(card(n, f"<div class='pic p{n}'></div>") for n in range(6))
    return f"<style>{''.join(map(rule.format, range(6)))}</style>{cards}<script></script>"


def by_reference(path: str, query: dict, count: int) -> str:
    """What tells cars apart has a name that elsewhere says where a visitor came from."""
    if path:
        return photo(query["ref"])
    link = '<a href="/reported/by-reference/view.php?ref=SW{}&src=list">more</a>'
    return "".join(card(n, link.format(n)) for n in range(10))


def by_key(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """What tells photos apart looks like a signature."""
    if path:
        return 302, {"Location": f"/photos/{query['key']}.jpg"}, ""
    key = [hashlib.sha256(bytes([n])).hexdigest() for n in range(6)]
    return "".join(card(n, f'<img src="/reported/by-key/show.jpg?key={key[n]}">') for n in range(6))


def code(n: int) -> str:
    return hashlib.sha256(f"{n} {time.time()}".encode()).hexdigest()[:32]


def signed_path(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """A code and the second until which it is good are pieces of the path."""
    if path:
        return 302, {"Location": f"/photos/{path.rpartition('/')[2]}"}, ""
    until = int(time.time()) + 3600
    return "".join(card(n, f'<img src="/reported/signed-path/s/{code(n)}/{until}/{n}.jpg">') for n in range(6))


ASKED: Counter = Counter()  # view of a page -> requests with its addresses


def expiring_path(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """Addresses, whose path changes from view to view, are good for five requests."""
    if path:
        _, view, name = path.split("/")
        ASKED[view] += 1
        return (302, {"Location": f"/photos/{name}"}, "") if ASKED[view] <= 5 else (403, {}, "expired")
    view = code(0)
    return "".join(card(n, f'<img src="/reported/expiring-path/s/{view}/{n}.jpg">') for n in range(12))


def late_handler(path: str, query: dict, count: int) -> str:
    """A button is there before the script that hears of it."""
    return f"""<button id=agree>I agree</button><main></main><script>
    setTimeout(() => {{ agree.onclick = () => {{
      agree.remove();
      document.querySelector("main").innerHTML = {six_cards()};
    }}; }}, 1200);
    </script>"""


def closed_root(path: str, query: dict, count: int) -> str:
    """A script puts the cards into a closed shadow root."""
    return f"""<car-list></car-list><script>
    document.querySelector("car-list").attachShadow({{mode: "closed"}}).innerHTML = {six_cards()};</script>"""


def closed_root_in_html(path: str, query: dict, count: int) -> str:
    """The page itself has the cards in a closed shadow root."""
    cards = "".join(card(n, photo(n)) for n in range(6))
    return f"<car-list><template shadowrootmode=closed>{cards}</template></car-list>"
