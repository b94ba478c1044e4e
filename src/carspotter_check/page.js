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
const TRIES = 6;
const waiting = [];
let running = 0;

const $ = (selector, within = document) => within.querySelector(selector);

async function start() {
  const drop = $("#drop");
  for (const input of [$("#files"), $("#camera")]) {
    input.addEventListener("change", () => { take(input.files); input.value = ""; });
  }
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  // A photo dropped beside the box would otherwise replace the page.
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
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
    $("#model").textContent = `Model ${model.run}, version ${model.version}`;
  } catch {
    $("#model").textContent = "The server does not answer; load the page again.";
  }
}

function take(files) {
  const claim = $("input[name=claim]:checked").value;
  for (const file of files) {
    const card = $("#card").content.firstElementChild.cloneNode(true);
    $(".name", card).textContent = file.name + (claim ? `, claimed ${claim}` : "");
    const img = $("img", card);
    img.src = URL.createObjectURL(file);
    img.alt = file.name;
    img.onerror = () => { $(".picture", card).hidden = true; };
    $("#results").prepend(card);
    waiting.push({ file, claim, card });
  }
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    check(waiting.shift()).finally(() => { running -= 1; next(); });
  }
}

async function check({ file, claim, card }) {
  const { status, body } = await send("v1/check", file, claim ? { claim } : {});
  if (status !== 200) {
    const unusable = (body.error || "").startsWith("unusable: ");
    show(card, unusable ? "unusable" : "failed", (body.error || "The server did not answer.").replace("unusable: ", ""));
    return;
  }
  show(card, body.verdict, body.reason);
  for (const [name, share] of Object.entries(body.probabilities)) {
    const line = document.createElement("li");
    const bar = Object.assign(document.createElement("progress"), { max: 1, value: share });
    bar.setAttribute("aria-label", name);
    line.append(
      Object.assign(document.createElement("span"), { textContent: name, title: name }), bar,
      Object.assign(document.createElement("output"), { textContent: `${(100 * share).toFixed(1)} %` }),
    );
    $(".bars", card).append(line);
  }
  const button = $(".explain", card);
  button.hidden = Object.keys(body.probabilities).length === 0;
  button.addEventListener("click", () => explain(file, card, button));
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
    const { status, body } = await send("v1/explain", file, {});
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

async function send(path, file, fields) {
  const form = new FormData();
  form.append("photo", file, file.name);
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
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
