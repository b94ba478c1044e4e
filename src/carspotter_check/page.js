// Sends photos to the check, two at a time, and shows what it says; photos stay in this tab.
"use strict";

const WORDS = {
  match: "Matches the claim",
  named: "Named",
  other_model: "Another model",
  unusable: "Not a usable photo",
  not_sure: "Can't tell",
  failed: "No answer",
};
const AT_ONCE = 2;
const LARGE = 2_000_000; // bytes; a larger photo is made smaller before it travels
const ALL = 8_000_000; // bytes of all photos of a listing together; the server takes 10 MB
const LONGEST = 1600; // pixels, far more than any model looks at
const TRIES = 6;
const waiting = [];
let running = 0;

const $ = (selector, within = document) => within.querySelector(selector);

async function start() {
  const drop = $("#drop");
  for (const input of [$("#files"), $("#camera")]) {
    input.addEventListener("change", () => { take(input.files); input.value = ""; });
  }
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, () => drop.classList.add("over"));
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => take(event.dataTransfer.files));
  // The browser would open a dropped photo in place of the page.
  for (const kind of ["dragenter", "dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
  try {
    const model = await (await fetch("v1/model")).json();
    for (const name of model.classes) {
      const label = $("#claims label").cloneNode(true);
      const input = $("input", label);
      input.value = name;
      input.checked = false;
      $("span", label).textContent = name;
      $("#claims").append(label);
    }
    const promise = model.rejection.reason;
    $("#model").textContent = `Model ${model.run}, version ${model.version}. ${promise[0].toUpperCase()}${promise.slice(1)}.`;
  } catch {
    $("#model").textContent = "The server does not answer; load the page again.";
  }
}

function take(files) {
  const claim = $("input[name=claim]:checked").value;
  const claimed = claim ? `, claimed ${claim}` : "";
  const cards = [...files].map((file) => card(file, file.name + claimed));
  if ($("#together").checked && files.length > 1) {
    const listing = card(files[0], `${files.length} photos of one car${claimed}`);
    waiting.push({ files: [...files], claim, cards, listing });
    $("#results").prepend(listing, ...cards);
  } else {
    cards.forEach((one, place) => waiting.push({ files: [files[place]], claim, cards: [one] }));
    $("#results").prepend(...cards);
  }
  next();
}

function card(file, title) {
  const card = $("#card").content.firstElementChild.cloneNode(true);
  $(".name", card).textContent = title;
  const img = $("img", card);
  img.src = URL.createObjectURL(file);
  img.alt = title;
  img.onerror = () => { $(".picture", card).hidden = true; };
  return card;
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    check(waiting.shift()).finally(() => { running -= 1; next(); });
  }
}

async function check({ files, claim, cards, listing }) {
  const [path, name] = listing ? ["v1/listing", "photos"] : ["v1/check", "photo"];
  const { status, body } = await send(path, name, files, claim);
  if (status !== 200) {
    const unusable = (body.error || "").startsWith("unusable: ");
    const sentence = (body.error || "The server did not answer.").replace("unusable: ", "");
    for (const one of listing ? [listing, ...cards] : cards) show(one, unusable ? "unusable" : "failed", sentence);
    return;
  }
  if (listing) {
    show(listing, body.verdict, body.reason);
    $(".scale", listing).hidden = body.decided.length === 0;
    $(".scale", listing).textContent = `Decided by ${body.decided.join(", ")}.`;
  }
  (listing ? body.answers : [body]).forEach((answer, place) => fill(cards[place], files[place], answer));
}

function fill(card, file, answer) {
  show(card, answer.verdict, answer.reason);
  if (answer.decided_by === "likeness") {
    bar(card, "unlike known cars", answer.unlike); // a share of each class would say the contrary
  } else {
    for (const [name, share] of Object.entries(answer.probabilities)) bar(card, name, share);
  }
  const button = $(".explain", card);
  // it shows what speaks for one class and not for another, which says nothing of a photo unlike all of them
  button.hidden = answer.decided_by === "likeness" || Object.keys(answer.probabilities).length === 0;
  button.addEventListener("click", () => explain(file, card, button));
}

function bar(card, name, share) {
  const line = document.createElement("li");
  const progress = Object.assign(document.createElement("progress"), { max: 1, value: share });
  progress.setAttribute("aria-label", name);
  line.append(
    Object.assign(document.createElement("span"), { textContent: name, title: name }), progress,
    Object.assign(document.createElement("output"), { textContent: `${(100 * share).toFixed(1)} %` }),
  );
  $(".bars", card).append(line);
}

function show(card, verdict, reason) {
  card.classList.add(verdict);
  $(".verdict", card).textContent = WORDS[verdict] || verdict;
  $(".reason", card).textContent = reason;
}

async function explain(file, card, button) {
  const canvas = $("canvas", card);
  if (canvas.dataset.drawn) {
    canvas.hidden = !canvas.hidden;
  } else {
    button.disabled = true;
    const { status, body } = await send("v1/explain", "photo", [file]);
    button.disabled = false;
    if (status !== 200) {
      $(".reason", card).textContent = body.error || "The server did not answer.";
      return;
    }
    draw(canvas, body.heat);
    canvas.dataset.drawn = body.label;
    canvas.hidden = false;
  }
  $(".legend", card).hidden = canvas.hidden;
  button.textContent = canvas.hidden ? "What decided?" : "Hide what decided";
}

// One pixel per cell; the browser's smoothing does the rest.
function draw(canvas, heat) {
  canvas.height = heat.length;
  canvas.width = heat[0].length;
  const most = Math.max(0.02, ...heat.flat().map(Math.abs));
  const picture = new ImageData(canvas.width, canvas.height);
  heat.flat().forEach((value, cell) => {
    const strength = Math.abs(value) / most;
    picture.data.set(value > 0 ? [213, 94, 0, 190 * strength] : [0, 114, 178, 190 * strength], 4 * cell);
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// A photo of a phone has 12 to 48 megapixels; the browser shrinks what it can read, all else goes as it is.
async function shrunk(file, most) {
  if (file.size < most) return file;
  try {
    const image = await createImageBitmap(file);
    const factor = Math.min(1, LONGEST / Math.max(image.width, image.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(image.width * factor);
    canvas.height = Math.round(image.height * factor);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return (await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92))) || file;
  } catch {
    return file;
  }
}

async function send(path, name, files, claim = "") {
  const form = new FormData();
  const most = Math.min(LARGE, ALL / files.length);
  for (const file of files) form.append(name, await shrunk(file, most), file.name);
  if (claim) form.append("claim", claim);
  for (let attempt = 1; ; attempt += 1) {
    try {
      const answer = await fetch(path, { method: "POST", body: form });
      const body = await answer.json();
      if (answer.status !== 503 || attempt === TRIES) return { status: answer.status, body };
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      await new Promise((resume) => setTimeout(resume, 1000 * seconds));
    } catch {
      return { status: 0, body: {} };
    }
  }
}

start();
