// Runs in each document before its own scripts. Pictures are not loaded, so a script that waits for one (a preloader,
// a gallery that shows the next when the last is there) would wait for ever: it is told that each was loaded.

(() => {
  const prototype = HTMLImageElement.prototype, told = new WeakMap(), times = new WeakMap();
  const tell = image => setTimeout(() => {
    const address = image.currentSrc || image.src || image.srcset;
    const before = times.get(image) ?? 0;
    if (!address || told.get(image) === address || before > 100) return;  // some show one after the other for ever
    told.set(image, address);
    times.set(image, before + 1);
    image.dispatchEvent(new Event("load"));
  });
  for (const name of ["src", "srcset"]) {
    const property = Object.getOwnPropertyDescriptor(prototype, name);
    Object.defineProperty(prototype, name, {...property, set(value) { property.set.call(this, value); tell(this); }});
  }
  Object.defineProperty(prototype, "complete", {get: () => true, configurable: true, enumerable: true});
  for (const [name, usual] of [["naturalWidth", 1200], ["naturalHeight", 900]]) {
    const property = Object.getOwnPropertyDescriptor(prototype, name);
    Object.defineProperty(prototype, name, {...property, get() { return property.get.call(this) || usual; }});
  }
  prototype.decode = () => Promise.resolve();
  new MutationObserver(records => {
    for (const {target, addedNodes} of records)
      for (const node of [target, ...addedNodes])
        if (node.localName === "img") tell(node);
        else if (node !== target && node.querySelectorAll) node.querySelectorAll("img").forEach(tell);
  }).observe(document, {subtree: true, childList: true, attributeFilter: ["src", "srcset"]});
})();
