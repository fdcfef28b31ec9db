"use strict";

// A page is small enough to draw at once and large enough that paging is rare.
const PAGE = 96;
const KEPT = "kept", REJECTED = "rejected";
const at = (id) => document.getElementById(id);
let data, everything, decided, place = { label: 0, page: 0 }, history = [];

// ---- saving: at once, one request at a time; a failed one is repeated ----
const waiting = new Map();
let sending = false;

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

async function save() {
  if (sending || !waiting.size) return;
  sending = true;
  const changes = [...waiting];
  waiting.clear();
  tell("Saving…");
  try {
    await post("decide", { changes });
    sending = false;
    waiting.size ? await save() : tell("Saved");
  } catch (error) {
    for (const [number, decision] of changes) if (!waiting.has(number)) waiting.set(number, decision);
    sending = false;
    tell(`Not saved, trying again: ${error.message}`, true);
    setTimeout(save, 2000);
  }
}

function tell(text, lost = false) {
  at("saved").textContent = text;
  at("saved").classList.toggle("lost", lost);
}

// ---- deciding ----
function change(changes, undoable = true) {
  changes = changes.filter(([number, decision]) => decided[number] !== decision);
  if (!changes.length) return;
  if (undoable) history.push({ place: { ...place }, changes: changes.map(([number]) => [number, decided[number]]) });
  for (const [number, decision] of changes) {
    decided[number] = decision;
    waiting.set(number, decision);
    mark(number);
  }
  count();
  save();
}

function toggle(number) {
  change([[number, decided[number] === REJECTED ? KEPT : REJECTED]]);
}

function checked() {
  const rest = onPage().filter((number) => decided[number] === null);
  if (rest.length) change(rest.map((number) => [number, KEPT]));
  if (!step(1)) at("done").focus();
}

function undo() {
  const last = history.pop();
  if (!last) return;
  show(last.place);
  change(last.changes, false);
  focus(last.changes[0][0]);
}

// ---- moving ----
const images = (label = place.label) => data.classes[label].images;
const pages = (label = place.label) => Math.max(1, Math.ceil(images(label).length / PAGE));
const onPage = () => images().slice(place.page * PAGE, (place.page + 1) * PAGE);
const tiles = () => [...at("grid").children];
const tile = (number) => at("grid").querySelector(`[data-number="${number}"]`);

function step(by) {
  let { label, page } = place;
  page += by;
  if (page < 0) { label -= 1; page = label < 0 ? 0 : pages(label) - 1; }
  else if (page >= pages(label)) { label += 1; page = 0; }
  if (label < 0 || label >= data.classes.length) return false;
  show({ label, page });
  return true;
}

function go(label) {
  if (label >= 0 && label < data.classes.length) show({ label, page: 0 });
}

function focus(number) {
  (tile(number) ?? at("grid").firstElementChild)?.focus();
}

function move(key) {
  const all = tiles(), now = all.indexOf(document.activeElement);
  if (now < 0) return all[0]?.focus();
  const columns = all.filter((other) => other.offsetTop === all[0].offsetTop).length;
  const next = now + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  all[next]?.focus();
}

// ---- drawing ----
function picture(url, text, loading) {
  const image = new Image();
  image.loading = loading;
  image.decoding = "async";
  image.alt = text;
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 128));
  image.addEventListener("error", () => image.parentElement?.classList.add("gone"));
  image.src = url;
  return image;
}

function show(to) {
  place = { ...to };
  const { name, shots } = data.classes[place.label];
  at("name").textContent = name;
  at("shots").replaceChildren(...shots.map((number, i) => picture(`shots/${number}`, `shot ${i + 1} of ${name}`, i < 24 ? "eager" : "lazy")));
  at("grid").replaceChildren(...onPage().map((number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.number = number;
    button.title = `${name}, image ${data.indices[number]}`;
    button.append(picture(`images/${number}`, button.title, "lazy"));
    button.addEventListener("click", () => toggle(number));
    return button;
  }));
  onPage().forEach(mark);
  at("page").textContent = pages() > 1 ? `page ${place.page + 1} of ${pages()}` : "";
  at("previous").disabled = place.label === 0 && place.page === 0;
  document.querySelector("main").scrollTop = 0;
  count();
  focus(onPage().find((number) => decided[number] === null));
}

function mark(number) {
  const button = tile(number);
  if (!button) return;
  button.classList.toggle("kept", decided[number] === KEPT);
  button.classList.toggle("rejected", decided[number] === REJECTED);
  button.setAttribute("aria-pressed", decided[number] === REJECTED);
}

const tally = (numbers) => ({
  of: numbers.length,
  looked: numbers.filter((number) => decided[number] !== null).length,
  wrong: numbers.filter((number) => decided[number] === REJECTED).length,
});

function count() {
  const all = tally(everything), here = tally(images());
  at("total").textContent = `${all.looked} of ${all.of} looked at, ${all.wrong} rejected`;
  at("counts").textContent = `${here.looked} of ${here.of} looked at, ${here.wrong} rejected`;
  const [good, bad] = at("progress").children;
  good.style.width = `${100 * (all.looked - all.wrong) / Math.max(1, all.of)}%`;
  bad.style.width = `${100 * all.wrong / Math.max(1, all.of)}%`;
  at("progress").setAttribute("aria-valuenow", Math.round(100 * all.looked / Math.max(1, all.of)));
  at("undo").disabled = !history.length;
  [...at("classes").children].forEach((item, label) => {
    const current = label === place.label;
    const button = item.firstElementChild, was = button.hasAttribute("aria-current");
    if (current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    if (current || was || !button.dataset.counted) entry(button, label);
    if (current && !was) item.scrollIntoView({ block: "nearest" });
  });
}

function entry(button, label) {
  const { of, looked, wrong } = tally(images(label));
  const numbers = document.createElement("small"), bad = document.createElement("em");
  bad.textContent = wrong ? `✕${wrong} ` : "";
  numbers.append(bad, looked === of ? `✓${of}` : `${looked}/${of}`);
  button.classList.toggle("finished", looked === of);
  button.dataset.counted = "true";
  button.lastElementChild.replaceWith(numbers);
}

async function done() {
  await save();
  if (sending || waiting.size) return tell("Not saved yet; wait, then press Done again", true);
  await post("done", {});
  at("over").hidden = false;
  at("over").firstElementChild.textContent =
    `Saved in ${data.file}. You can close this page; \`dreamset generate ${data.recipe}\` replaces the rejected pictures.`;
}

const KEYS = {
  Enter: checked, u: undo, n: () => step(1), p: () => step(-1), "]": () => go(place.label + 1), "[": () => go(place.label - 1),
};

document.addEventListener("keydown", (event) => {
  if (!data || !at("over").hidden || event.altKey || event.target.matches("input")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") { event.preventDefault(); undo(); }
    return;
  }
  const onTile = event.target.closest("#grid") || event.target === document.body;
  if (key.startsWith("Arrow")) { event.preventDefault(); move(key); }
  else if (KEYS[key] && (key !== "Enter" || onTile)) { event.preventDefault(); KEYS[key](); }
  else if (key === "x" && event.target.dataset.number) toggle(Number(event.target.dataset.number));
});

window.addEventListener("beforeunload", (event) => { if (sending || waiting.size) event.preventDefault(); });

async function start() {
  data = await (await fetch("data")).json();
  decided = [...data.states].map((letter) => ({ k: KEPT, r: REJECTED })[letter] ?? null);
  everything = data.indices.map((_, number) => number);
  document.title = `Review ${data.recipe}`;
  at("recipe").textContent = data.recipe;
  at("classes").replaceChildren(...data.classes.map(({ name }, label) => {
    const item = document.createElement("li"), button = document.createElement("button"), text = document.createElement("span");
    text.textContent = name;
    button.title = name;
    button.append(text, document.createElement("small"));
    button.addEventListener("click", () => go(label));
    item.append(button);
    return item;
  }));
  at("checked").addEventListener("click", checked);
  at("previous").addEventListener("click", () => step(-1));
  at("undo").addEventListener("click", undo);
  at("done").addEventListener("click", () => done().catch((error) => tell(error.message, true)));
  at("size").addEventListener("input", () => document.documentElement.style.setProperty("--side", `${at("size").value}px`));
  // Start where the last session ended: at the first page with an unseen picture.
  const label = Math.max(0, data.classes.findIndex((row) => row.images.some((number) => decided[number] === null)));
  const first = images(label).findIndex((number) => decided[number] === null);
  show({ label, page: Math.max(0, Math.floor(first / PAGE)) });
}

start().catch((error) => tell(error.message, true));
