// What `loading` does in a page: sent with each command, followed by `return` and a call of one of these functions.
// Elements in open shadow roots are found, too, and serialised inside a <scraper-shadow>.

const roots = [document];
for (let i = 0; i < roots.length; i++)
  for (const element of roots[i].querySelectorAll("*")) if (element.shadowRoot) roots.push(element.shadowRoot);
const all = css => { try { return roots.flatMap(root => [...root.querySelectorAll(css)]); } catch { return []; } };
const inert = document.implementation.createHTMLDocument("");
const flat = node => {
  const copy = inert.importNode(node, false);
  if (node.shadowRoot) {
    const shadow = inert.createElement("scraper-shadow");
    for (const child of node.shadowRoot.childNodes) shadow.appendChild(flat(child));
    copy.appendChild(shadow);
  }
  for (const child of node.childNodes) copy.appendChild(flat(child));
  return copy;
};
const outer = element => roots.length === 1 ? element.outerHTML : flat(element).outerHTML;
const above = element => element.parentElement ?? element.getRootNode().host ?? null;
const shown = element => element.getClientRects().length > 0 && getComputedStyle(element).visibility !== "hidden";
const marks = css => all(css).filter(e => shown(e) || /^(input|link|meta|script)$/.test(e.localName));
const isAble = element => !element.disabled && element.ariaDisabled !== "true";

function answer() {  // what the browser was led to, and how that was answered; 0 where it does not tell
  const entry = performance.getEntriesByType("navigation")[0];
  return [entry?.name ?? "", entry?.responseStatus ?? 0];
}

// A <source> for another screen, as for a telephone or for paper, is marked.
function markSources() {
  for (const source of all("source[media]"))
    if (!matchMedia(source.media).matches) source.setAttribute("data-scraper-other-screen", "");
}

function html(empty, hidden) {  // of a page with shadow roots; the driver knows that of others
  markSources();
  document.documentElement.setAttribute("data-scraper-base", document.baseURI);
  const shows = marks(empty);
  for (const mark of all(empty)) if (!shows.includes(mark)) mark.setAttribute(hidden, "");
  return roots.length > 1 ? "<!DOCTYPE html>" + outer(document.documentElement) : "";
}

function shows(selector) {
  return marks(selector).length > 0;
}

// By script: a banner over a button does not matter. With `size`, only where the page has still this size, as one has
// whose button did nothing yet. Returns the page's size before, 0 where there is nothing to press.
function press(selector, intoView, size) {
  const found = all(selector).find(element => shown(element) && isAble(element));
  const before = document.documentElement.innerHTML.length;
  if (!found || size && size !== before) return 0;
  if (intoView) found.scrollIntoView({behavior: "instant"});
  found.click();
  return before;
}

// What seems to lead to further listings, or `back` to those before, in words; empty where nothing does. `cards` selects
// the listings, `own` what the site file names to lead on.
function more(cards, own, back) {
  const rel = back ? "prev" : "next";
  const words = back ? /^[←‹«<]*\s*prev(ious)?( page)?$/i : new RegExp("^(load|show) (\\d+ )?more\\b.{0,20}$|^(see|view)? ?(\\d+ )?more (cars|vehicles|listings|results|ads|offers)"
    + "|^next( page)?\\s*[→›»>]*$|^[→›»>]$", "i");
  const elsewhere = "carousel slide swiper slick gallery filter".split(" ").map(name => `[class*=${name}]`).join();
  const disabled = ".disabled, .inactive, [disabled], [aria-disabled=true]";
  const here = location.href.split("#")[0];
  const leadsOn = e => {
    if (e.closest(cards) || all(own).some(other => other.contains(e))) return false;
    const isNext = e.matches(`[rel~=${rel}]`), text = (e.innerText || e.ariaLabel || "").trim();
    const isHere = e.href && e.href.split("#")[0] === here && !e.onclick && !/#[/!]/.test(e.href);
    if (e.localName === "link") return isNext && !isHere;
    if (!shown(e) || !isAble(e) || isHere || e.closest(disabled)) return false;
    const pager = e.closest("[class*=pag], [aria-label*=pag i]");
    const now = pager?.querySelector("[aria-current], .active, .current")
      ?? [...pager?.querySelectorAll("span, b, strong, em") ?? []].find(e => /^\d+$/.test(e.innerText) && !e.closest("a"));
    const isLater = !back && /^\d+$/.test(text) && parseInt(now?.innerText) < Number(text);
    return isNext || isLater || words.test(text) && !e.closest(elsewhere);
  };
  const found = all(`link[rel~=${rel}], a, button, [role=button]`).find(leadsOn);
  return found ? (found.innerText || found.ariaLabel || `rel=${rel}`).trim().slice(0, 40) : "";
}

// Notes where a click on each card leads whose link has no address; the click goes nowhere. Returns how many there are.
function destinations(selector, link, name) {
  let found = "";
  const {open} = window;
  const hear = event => { found = event.destination.url; if (event.cancelable) event.preventDefault(); };
  window.open = address => { found = new URL(address, document.baseURI).href; return null; };
  window.navigation?.addEventListener("navigate", hear);
  const cards = all(selector), without = cards.filter(card => {
    const element = link && card.querySelector(link) || card;
    return !element.href && !element.closest("a[href]") && !element.querySelector("a[href]");
  });
  for (const card of without) {
    found = "";
    const element = link && card.querySelector(link) || card;
    if (element.isConnected) element.click();
    if (found && found !== location.href) element.setAttribute(name, found);
    else break;  // it does something else
  }
  window.open = open;
  window.navigation?.removeEventListener("navigate", hear);
  return without.length;
}

function following(selector) {  // the address of the next page; "#" where a script handles the click
  const found = all(selector).find(shown) ?? all(selector)[0];
  const link = found && (found.href ? found : found.querySelector("a[href]") ?? found.closest("a[href]"));
  const address = link ? new URL(link.href, document.baseURI) : null;
  const isPage = address && address.protocol.startsWith("http") && address.href !== location.href
    && (/^#[/!]./.test(address.hash) || address.href.split("#")[0] !== location.href.split("#")[0]);
  const isLive = found && (shown(found) || found.localName === "link" || isPage && !address.hash);
  return isPage && isLive ? address.href : isLive && found.localName !== "link" ? "#" : "";
}

const address = value => /[./]/.test(value) && !/^(data|blob|about):/.test(value);
const isBare = picture => [picture, ...picture.querySelectorAll("img, source")].every(e =>  // it shows nothing yet
  ![...e.attributes].some(a => /^(src|style$|href$|data-)|srcset$/.test(a.name) && address(a.value)));

// Moves, then tells which cards there are, which are in view, and the HTML of those that changed.
// `photos` selects the pictures in a card; null where the cards are pictures themselves. A page is not `ready` while a
// timer runs out `within` so many milliseconds; one that does so within `redraw` is `due`, as after a step.
function survey(selector, photos, move, again, background, target, within, redraw, isNew, end) {
  const state = window.__scraper ??= {
    token: String(Math.random()), serials: new WeakMap(), next: 0, seen: new WeakSet(), observed: new WeakSet(),
    plain: new WeakSet(), bare: new WeakMap(), strips: new WeakMap(), turns: new WeakMap(), dirty: new Set()};
  const note = records => {  // which cards changed; the others need not be serialised again
    for (const record of records)
      for (let e = record.target; e; e = e.parentElement ?? e.getRootNode().host)
        if (state.serials.has(e)) { state.dirty.add(e); state.plain.delete(e); break; }
  };
  state.observer ??= new MutationObserver(note);
  for (const root of roots) if (!state.observed.has(root)) {
    state.observer.observe(root, {subtree: true, childList: true, attributes: true, characterData: true});
    state.observed.add(root);
  }
  markSources();
  note(state.observer.takeRecords());
  if (again || !state.hashes) state.hashes = new WeakMap();
  const found = [...new Set(all(selector).map(e => photos === null ? e.closest("picture") ?? e : e))];
  const clips = new Map();
  const clip = element => {  // the part of the window in which the children of an element can be seen
    if (!element || element === document.documentElement || element === document.body)
      return {top: 0, left: 0, bottom: innerHeight, right: innerWidth};
    if (!clips.has(element)) {
      let box = clip(above(element));
      if (getComputedStyle(element).overflow !== "visible") {
        const own = element.getBoundingClientRect();
        box = {top: Math.max(box.top, own.top), left: Math.max(box.left, own.left),
               bottom: Math.min(box.bottom, own.bottom), right: Math.min(box.right, own.right)};
      }
      clips.set(element, box);
    }
    return clips.get(element);
  };
  const place = element => {  // 0: in view, 0.5: in part, 1: below or to the right, -1: above or to the left
    const rect = element.getBoundingClientRect(), box = clip(above(element));  // null: has no box
    if (!rect.width && !rect.height && !element.getClientRects().length) return null;
    if (rect.bottom < box.top || rect.right < box.left) return -1;
    if (rect.top >= box.bottom || rect.left >= box.right) return 1;
    const fits = rect.height <= box.bottom - box.top && rect.width <= box.right - box.left;
    return fits && (rect.bottom > box.bottom + 1 || rect.right > box.right + 1) ? 0.5 : 0;
  };
  const scrollsDown = e => e.scrollHeight > e.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(e).overflowY);
  const scrollsAside = e => e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX);
  const scrollers = () => {
    const result = [];
    for (let e = found.length ? above(found[found.length - 1]) : null; e; e = above(e))
      if (scrollsDown(e) || scrollsAside(e)) result.push(e);
    return [...new Set([...result, document.scrollingElement ?? document.documentElement])];
  };
  const go = (element, isDown) => {  // whether it could be scrolled
    const {scrollTop, scrollLeft, clientHeight, clientWidth} = element;
    const start = element === document.scrollingElement ? 0 : element.getBoundingClientRect().top;
    const end = found.length ? found[found.length - 1].getBoundingClientRect().bottom - start : 0;
    const most = 0.9 * Math.min(clientHeight, innerHeight);
    const top = isDown ? (end > 1 ? Math.min(most, end) : most) : 0;  // to the end of the last card: others may follow
    const left = isDown ? 0 : 0.9 * Math.min(clientWidth, innerWidth);
    element.scrollBy({top, left, behavior: "instant"});
    return element.scrollTop > scrollTop + 1 || element.scrollLeft > scrollLeft + 1;
  };
  const hasGap = strip => {  // some of its slides have a picture, others none yet
    const slides = [...(strip.children.length === 1 ? strip.children[0] : strip).children];
    const full = slides.filter(slide => slide.matches(photos) || slide.querySelector(photos));
    return full.length > 0 && full.length < slides.length;
  };
  const openStrips = card => {
    const open = (state.strips.get(card) ?? []).filter(s => s.isConnected && !state.seen.has(s) && hasGap(s));
    return open.length && place(card) === 0 ? open : [];
  };
  const show = element => {
    element.scrollIntoView({block: "start", inline: "center", behavior: "instant"});
    clips.clear();
    state.seen.add(element);  // as far as it can be
  };
  const targets = () => found.flatMap(e => [e, ...(state.bare.get(e) ?? [])]);
  let moved = "";
  if (move === "to") {
    const card = found.find(e => state.serials.get(e) === target);
    if (card && place(card) !== null) { show(card); moved = "card"; }
  } else if (move === "on" || move === "first") {
    const isNext = where => where !== null && (move === "first" || where > 0);
    const strip = found.flatMap(openStrips)[0];
    const target = targets().find(e => !state.seen.has(e) && isNext(place(e)));
    if (strip) {
      state.turns.set(strip, (state.turns.get(strip) ?? 0) + 1);
      if (!go(strip, false) || state.turns.get(strip) > 50) state.seen.add(strip);  // some go round and round
      moved = "card";
    } else if (target) { show(target); moved = "card"; }
    else if (move === "on") {
      moved = "end";
      if (scrollers().some(e => go(e, true) || scrollsAside(e) && go(e, false))) moved = "further";
      clips.clear();
    }
  } else if (move === "back" || move === "top") {
    const top = move === "top" ? -1e9 : -innerHeight;
    for (const scroller of scrollers()) scroller.scrollBy({top, behavior: "instant"});
    clips.clear();
  }
  if (move) {  // what watches for elements in view hears of it when the page is drawn
    state.drawn = false;
    requestAnimationFrame(() => requestAnimationFrame(() => { state.drawn = true; }));
  }
  const serials = [], changed = [], inView = [], spans = [];
  let unseen = 0, bare = 0;
  for (const element of found) {
    if (!state.serials.has(element)) state.serials.set(element, state.next++);
    const serial = state.serials.get(element);
    serials.push(serial);
    const where = place(element);
    if (where === 0) state.seen.add(element);
    if (where === 0 || where === 0.5) {
      inView.push(serial);
      spans.push(element.getBoundingClientRect());
    }
    if (where > 0 && !state.seen.has(element)) unseen++;
    const inside = () => photos === null ? [element] : photos ? element.querySelectorAll(photos) : [];
    const shows = state.plain.has(element) ? [] : inside();
    state.plain.add(element);
    for (const e of shows) {
      if (/^(img|source|picture|script|svg)$/.test(e.localName)) continue;
      state.plain.delete(element);  // a style sheet may give it another picture at any time
      const image = [null, "::before", "::after"].map(part => getComputedStyle(e, part).backgroundImage)
        .find(value => value.includes("url(")) ?? "";
      if (image.includes("url(") && !image.startsWith('url("data:') && e.getAttribute(background) !== image)
        e.setAttribute(background, image);
    }
    if (state.hashes.has(element) && !state.dirty.has(element)) continue;
    const html = outer(element);
    let hash = 5381;
    for (let i = 0; i < html.length; i++) hash = (hash * 33 ^ html.charCodeAt(i)) | 0;
    hash = `${html.length}:${hash}`;
    if (state.hashes.get(element) !== hash) { state.hashes.set(element, hash); changed.push([serial, html]); }
    if (photos === null) continue;
    state.bare.set(element, [...inside()].filter(isBare));
    if (photos) state.strips.set(element, [...element.querySelectorAll("*")].filter(scrollsAside));
  }
  for (const element of found) {
    for (const picture of state.bare.get(element) ?? []) {
      const where = place(picture);
      if (where === 0) state.seen.add(picture);
      else if (where > 0 && !state.seen.has(picture)) bare++;
    }
    bare += openStrips(element).length;
  }
  // Whether a part of the list that is in view, as high as a card, shows nothing: its cards are still to be drawn.
  const isBlank = () => {
    if (found.length > 1) {
      const uppers = new Set();
      for (let e = above(found[found.length - 1]); e; e = above(e)) uppers.add(e);
      state.list = above(found[0]);
      while (!uppers.has(state.list)) state.list = above(state.list);
    }
    const list = state.list;
    if (!list?.isConnected) return false;
    const own = list.getBoundingClientRect(), box = clip(list);
    const bottom = Math.min(own.bottom, box.bottom), x = (Math.max(own.left, box.left) + Math.min(own.right, box.right)) / 2;
    const heights = spans.map(span => span.height).sort((a, b) => a - b);
    state.height = heights[heights.length >> 1] ?? state.height;
    const isContent = e => e !== list && list.contains(e)
      && (e.childElementCount || e.textContent.trim() || /^(img|iframe|svg|canvas|video)$/.test(e.localName));
    let end = Math.max(own.top, box.top);
    for (const span of [...spans.sort((a, b) => a.top - b.top), {top: bottom, bottom}]) {
      if (span.top - end >= state.height)
        return !list.getRootNode().elementsFromPoint(x, (end + span.top) / 2).some(isContent);
      end = Math.max(end, span.bottom);
    }
    return false;
  };
  const blank = photos !== null && isBlank();
  const alive = [...document.scripts].some(s => !/json|template|html/.test(s.type))
    || document.querySelector("meta[http-equiv=refresh i]") !== null;
  state.dirty.clear();
  const ready = document.readyState === "complete" && !window.__scraperIsDue?.(within, isNew), drawn = state.drawn ?? true;
  const due = Boolean(window.__scraperIsDue?.(redraw));  // a timer may be about to draw what scrolling brought into view
  const ended = Boolean(end) && marks(end).length > 0;
  const cards = {token: state.token, base: document.baseURI, serials, changed, inView};
  return {...cards, unseen, bare, blank, moved, drawn, due, alive, ready, ended};
}
