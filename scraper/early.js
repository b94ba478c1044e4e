// Runs in each document before its own scripts, so that a page in a browser without pictures does what it does in one
// with them, and that `loading` knows what is still to come.
//
// Pictures are not loaded: a script that waits for one (a preloader, a gallery that shows the next when the last is
// there) is told that it is. A picture in memory (blob:) notes where its bytes came from, and one that a page shows when a
// script changes the page's address notes the one before. Shadow roots are open. Timers that are still to run are counted.

(() => {
  const BASE = "data-scraper-base";
  const image = HTMLImageElement.prototype, told = new WeakMap(), times = new WeakMap();
  const sources = new WeakMap(), blobs = new Map();  // bytes -> address, blob: address -> address
  const note = picture => {
    const source = blobs.get(picture.getAttribute("src"));
    if (source && picture.getAttribute("data-scraper-source") !== source)
      picture.setAttribute("data-scraper-source", source);
  };
  const tell = picture => setTimeout(() => {
    note(picture);
    const address = picture.currentSrc || picture.src || picture.srcset;
    const before = times.get(picture) ?? 0;
    if (!address || told.get(picture) === address || before > 100) return;  // some show one after the other for ever
    told.set(picture, address);
    times.set(picture, before + 1);
    picture.dispatchEvent(new Event("load"));
  });
  for (const name of ["src", "srcset"]) {
    const property = Object.getOwnPropertyDescriptor(image, name);
    Object.defineProperty(image, name, {...property, set(value) { property.set.call(this, value); tell(this); }});
  }
  Object.defineProperty(image, "complete", {get: () => true, configurable: true, enumerable: true});
  for (const [name, usual] of [["naturalWidth", 1200], ["naturalHeight", 900]]) {
    const property = Object.getOwnPropertyDescriptor(image, name);
    Object.defineProperty(image, name, {...property, get() { return property.get.call(this) || usual; }});
  }
  image.decode = () => Promise.resolve();
  new MutationObserver(records => {
    for (const {type, target, addedNodes} of records) {
      if (type === "attributes") target.removeAttribute(BASE);
      for (const node of [target, ...addedNodes])
        if (node.localName === "img") tell(node);
        else if (node !== target && node.querySelectorAll) node.querySelectorAll("img").forEach(tell);
    }
  }).observe(document, {subtree: true, childList: true, attributeFilter: ["src", "srcset"]});

  const folder = address => address.replace(/[?#].*/, "").replace(/[^/]*$/, "");
  for (const name of ["pushState", "replaceState"]) {
    const change = history[name];
    history[name] = function (...given) {
      const before = document.baseURI;
      change.apply(this, given);
      if (folder(before) === folder(document.baseURI)) return;
      for (const picture of document.querySelectorAll(`:is(img, picture, source):not([${BASE}])`))
        picture.setAttribute(BASE, before);
    };
  }

  for (const name of ["blob", "arrayBuffer"]) {
    const read = Response.prototype[name];
    Response.prototype[name] = async function () {
      const bytes = await read.call(this);
      if (this.url) sources.set(bytes, this.url);
      return bytes;
    };
  }
  const answer = Object.getOwnPropertyDescriptor(XMLHttpRequest.prototype, "response");
  Object.defineProperty(XMLHttpRequest.prototype, "response", {...answer, get() {
    const bytes = answer.get.call(this);
    if (bytes instanceof Blob || bytes instanceof ArrayBuffer) sources.set(bytes, this.responseURL);
    return bytes;
  }});
  window.Blob = new Proxy(Blob, {construct(target, [parts = [], ...more], made) {
    const list = [...parts], blob = Reflect.construct(target, [list, ...more], made);
    const source = list.length === 1 && sources.get(list[0]?.buffer ?? list[0]);
    if (source) sources.set(blob, source);
    return blob;
  }});
  const create = URL.createObjectURL;
  URL.createObjectURL = object => {
    const address = create.call(URL, object);
    if (sources.has(object)) blobs.set(address, sources.get(object));
    return address;
  };

  const attach = Element.prototype.attachShadow;
  Element.prototype.attachShadow = function (options) { return attach.call(this, {...options, mode: "open"}); };

  // timer -> when it runs next; what timers run -> how often they did since something new came to the page: what has
  // run three times in vain, as a clock does, does not count any more
  const due = new Map(), runs = new Map();
  for (const name of ["setTimeout", "setInterval"]) {
    const set = window[name];
    window[name] = function (what, delay = 0, ...rest) {
      if (typeof what !== "function") return set.call(window, what, delay, ...rest);
      const text = String(what), key = text.includes("[native code]") ? what : text;
      const count = timer => { if ((runs.get(key) ?? 0) < 3) due.set(timer, performance.now() + Number(delay)); };
      const timer = set.call(window, function (...given) {
        due.delete(timer);
        runs.set(key, (runs.get(key) ?? 0) + 1);
        if (name === "setInterval") count(timer);
        return what.apply(this, given);
      }, delay, ...rest);
      count(timer);
      return timer;
    };
  }
  for (const name of ["clearTimeout", "clearInterval"]) {
    const clear = window[name];
    window[name] = timer => { due.delete(timer); return clear.call(window, timer); };
  }
  // whether a timer is to run within so many milliseconds; `isNew`: something new came
  const isDue = (within, isNew) => {
    if (isNew) runs.clear();
    return [...due.values()].some(time => time < performance.now() + within);
  };
  Object.defineProperty(window, "__scraperIsDue", {value: isDue});
})();
