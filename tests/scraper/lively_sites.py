"""More sites made after public reports, of pages that change while they are read; see `reported_sites`."""

from __future__ import annotations

import json
import time

from tests.scraper.reported_sites import CARDS, LIVELY, NUMBERED, OWN_PAGES, Reported, card, numbered, photo

BUTTON = '[paging]\nkind = "button"\nbutton = "#more"\npatience = 3.0\nsettle = 0.6'
SITES = {
    # 1: what is missing is said
    "unanswered": Reported(
        "github.com/nolanlawson/pinafore/issues/659",
        *("", CARDS, 10, 10, 5, "request was not answered"),
        more='[paging]\nkind = "scroll"\npatience = 2.0\nsettle = 0.4\n[politeness]\nattempts = 1\n',
    ),
    # 2: the HTTP status of a page counts
    "no-content-yet": Reported(
        "github.com/freelawproject/juriscraper/issues/1377",
        *("?page={page}", CARDS, 5, 5, 1, "'Please wait' \\(status 202\\)", NUMBERED),
    ),
    # 3: a page is walked through
    "used-again": Reported("github.com/ionic-team/ionic-framework/issues/19381", "", CARDS, 30, 30, more=LIVELY),
    "strip-of-slots": Reported("github.com/onefinestay/react-lazy-render/issues/9", "", CARDS, 16, 4, more=LIVELY),
    "more-in-a-virtual-list": Reported(
        "github.com/bvaughn/react-virtualized/issues/1059", "", CARDS, 30, 30, more=BUTTON
    ),
    # 4: a page is taken when it has settled
    "preloader": Reported("github.com/puppeteer/puppeteer/issues/662", "", CARDS, 8, 8, more=LIVELY),
    "one-after-the-other": Reported(
        "github.com/puppeteer/puppeteer/issues/662", "", OWN_PAGES + '"#gallery img"', 10, 2, more=LIVELY
    ),
    # 5: something new, not more
    "sorted-anew": Reported(
        "github.com/kalil0321/ats-scrapers/pull/265",
        *("?page=1", CARDS, 15, 15),
        more='[paging]\nkind = "next"\nnext = "a.next"\npatience = 2.0\nsettle = 0.4',
    ),
    "button-stays": Reported(
        "github.com/martinsbalodis/web-scraper-chrome-extension/issues/153", "", CARDS, 15, 15, more=BUTTON
    ),
    # 9: what a user says in the site file
    "dialog-in-a-frame": Reported(
        "github.com/puppeteer/puppeteer/issues/6369", "", CARDS, 6, 6, more=LIVELY + 'click = ["button.agree"]'
    ),
}


def page(name: str, path: str, query: dict[str, str], count: int) -> str | tuple[int, dict[str, str], str]:
    """Return what the site `name` answers."""
    return globals()[name.replace("-", "_")](path, query, count)


def unanswered(path: str, query: dict, count: int) -> str:
    """The script of an endless list asks for more, and the server never answers; a spinner turns."""
    if path:
        time.sleep(600)
    return f"""<style>.car {{height: 300px}}</style><main>{"".join(card(n, photo(n)) for n in range(10))}</main>
    <p class=spinner>Loading</p><script>
    let busy = false;
    addEventListener("scroll", () => {{
      if (busy || innerHeight + scrollY < document.body.scrollHeight - 100) return;
      busy = true;
      fetch("/reported/unanswered/more");
    }});
    </script>"""


def no_content_yet(path: str, query: dict, count: int) -> str | tuple[int, dict[str, str], str]:
    """From the second page on the site answers 202 with a page that shows nothing."""
    if query["page"] != "1":
        return 202, {}, "<title>Please wait</title><div id=container></div>"
    return numbered(query)


def used_again(path: str, query: dict, count: int) -> str:
    """A list uses its seven elements again; each shows the photo of the car before until its own is there."""
    return """<style>#box {height: 700px; overflow-y: auto} #rows {position: relative; height: 6000px}
    .car {position: absolute; height: 200px}</style><div id=box><div id=rows></div></div><script>
    const rows = document.getElementById("rows"), pool = [];
    for (let k = 0; k < 7; k++) {
      rows.insertAdjacentHTML("beforeend", "<div class=car><h2></h2><img></div>");
      pool.push(rows.lastElementChild);
    }
    function draw() {
      const first = Math.floor(box.scrollTop / 200);
      for (let n = first; n < Math.min(30, first + 7); n++) {
        const element = pool[n % 7];
        if (element.dataset.id === String(n)) continue;
        element.dataset.id = n;
        element.style.top = `${200 * n}px`;
        element.firstChild.textContent = `Swift ${n}`;
        setTimeout(() => {
          if (element.dataset.id === String(n)) element.lastChild.src = `/photos/${n}.jpg`; }, 300);
      }
    }
    box.addEventListener("scroll", () => requestAnimationFrame(draw));
    draw();
    </script>"""


def strip_of_slots(path: str, query: dict, count: int) -> str:
    """Each card is a strip of slots; a slot has no picture at all before it was scrolled into view."""
    slots = "".join(f"<span class=slot data-photo=/photos/{{0}}-{k}.jpg></span>" for k in range(4))
    cards = "".join(card(n, f"<div class=strip>{slots.format(n)}</div>") for n in range(4))
    return f"""<style>.strip {{display: flex; overflow-x: auto; width: 420px}}
    .slot {{flex: 0 0 400px; height: 300px}}</style>{cards}<script>
    document.querySelectorAll(".strip").forEach(root => {{
      const seen = new IntersectionObserver(entries => entries.forEach(entry => {{
        if (entry.isIntersecting && !entry.target.firstChild)
          entry.target.innerHTML = `<img src="${{entry.target.dataset.photo}}">`;
      }}), {{root}});
      root.querySelectorAll(".slot").forEach(slot => seen.observe(slot));
    }});
    </script>"""


def more_in_a_virtual_list(path: str, query: dict, count: int) -> str:
    """A button makes a list longer of which only the rows in view are there."""
    return """<style>body {margin: 0} #rows {position: relative} .car {position: absolute; height: 300px}
    #more {position: fixed; bottom: 0}</style><div id=rows></div><button id=more>more</button><script>
    let cars = 10;
    const rows = document.getElementById("rows");
    function draw() {
      const first = Math.max(0, Math.floor(scrollY / 300) - 1);
      rows.style.height = `${300 * cars}px`;
      rows.innerHTML = "";
      for (let n = first; n < Math.min(cars, first + 8); n++) rows.insertAdjacentHTML("beforeend",
        `<div class=car data-id=${n} style="top: ${300 * n}px"><h2>Swift ${n}</h2><img src="/photos/${n}.jpg"></div>`);
    }
    more.onclick = () => { cars += 10; if (cars === 30) more.remove(); setTimeout(draw, 300); };
    addEventListener("scroll", draw);
    draw();
    </script>"""


def preloader(path: str, query: dict, count: int) -> str:
    """Each card shows a tiny picture; a script loads the real one aside, and shows it when it is there."""
    cards = "".join(card(n, f'<img src="/photos/tiny-{n}.jpg">') for n in range(8))
    return f"""{cards}<script>
    document.querySelectorAll("img").forEach((img, n) => {{
      const real = new Image();
      real.onload = () => {{ img.src = real.src; }};
      real.src = `/photos/${{n}}.jpg`;
    }});
    </script>"""


def one_after_the_other(path: str, query: dict, count: int) -> str:
    """A gallery adds a picture when the one before was loaded."""
    if not path:
        return "".join(card(n, f'<a href="/reported/one-after-the-other/car-{n}">more</a>') for n in range(2))
    return f"""<div id=gallery></div><script>
    let shown = 0;
    function next() {{
      if (shown === 5) return;
      const img = document.createElement("img");
      img.onload = next;
      img.src = `/photos/{path}-${{shown++}}.jpg`;
      gallery.append(img);
    }}
    next();
    </script>"""


def sorted_anew(path: str, query: dict, count: int) -> str:
    """The second page shows the cars of the first once more, in another order; two more pages have others."""
    number = int(query["page"])
    shown = {1: range(5), 2: range(4, -1, -1), 3: range(5, 10), 4: range(10, 15)}[number]
    cards = "".join(card(n, photo(n)) for n in shown)
    return cards + (f'<a class=next href="?page={number + 1}">next</a>' if number < 4 else "")


def button_stays(path: str, query: dict, count: int) -> str:
    """A button puts other cards in the place of these; it stays where it is, and is disabled in the end."""
    return """<main></main><button id=more>more</button><script>
    let page = 0;
    function draw() {
      document.querySelector("main").innerHTML = [0, 1, 2, 3, 4].map(k => 5 * page + k).map(n =>
        `<div class=car data-id=${n}><h2>Swift ${n}</h2><img src="/photos/${n}.jpg"></div>`).join("");
      more.disabled = page === 2;
    }
    more.onclick = () => { more.disabled = true; page++; setTimeout(draw, 600); };
    draw();
    </script>"""


def dialog_in_a_frame(path: str, query: dict, count: int) -> str:
    """The dialog on cookies is a page of its own, in a frame; nothing is shown before it is answered."""
    if path:
        return """<button class=agree onclick="parent.postMessage('yes', '*')">Agree</button>"""
    cards = json.dumps("".join(card(n, photo(n)) for n in range(6)))
    return f"""<iframe src="/reported/dialog-in-a-frame/dialog"></iframe><main></main><script>
    onmessage = event => {{ if (event.data === "yes") document.querySelector("main").innerHTML = {cards}; }};
    </script>"""
