// Several films: one row each, the most suspicious first, those without an answer apart. Only the rows in sight stand in
// the document, at heights that style.css knows too, so thousands of films cost no more than twenty.

import { $, make, sign } from "./dom.js";
import { outcomeOf, sentence } from "./answer.js";
import { thumbOf } from "./pictures.js";
import { HEADLINES, percent, plural } from "./words.js";

const HEIGHTS = { row: 3.5, told: 4.75, head: 2.75 }; // rem: of a row, of one with its reason, of a heading
const SPARE = 4; // rows above and below those in sight
const GROUPS = { refused: "Not answered", failed: "Errors" }; // apart, in this order, after all others
const CHIPS = [
  ["all", "All"],
  ["pneumonia", "Suspected"],
  ["normal", "Not suspected"],
  ["refused", "Not answered"],
  ["failed", "Errors"],
  ["asking", "Waiting"],
];
const byName = new Intl.Collator("en", { numeric: true });
const SORTS = {
  name: (a, b) => byName.compare(a.name, b.name),
  outcome: (a, b) => a.outcome.localeCompare(b.outcome) || SORTS.name(a, b),
  probability: (a, b) => (a.answer?.probability ?? -1) - (b.answer?.probability ?? -1),
};

const wish = { sort: "probability", down: true, show: "all", find: "" };
let order = [];
let last = null; // what was shown, for wishes to be applied to

/** films: all; current: the chosen one; choose(film) and retry(films) are called from the list. */
export function showWorklist(films, current, point, choose) {
  last = { films, current, point, choose };
  $("#worklist").hidden = films.length < 2;
  $("main").dataset.list = String(films.length > 1);
  if (films.length < 2) return;
  for (const film of films) film.outcome = outcomeOf(film, point);
  if (!isInUse()) arrange();
  else {
    const listed = new Set(order);
    order.push(...films.filter((film) => fits(film) && !listed.has(film)));
  }
  showHead(films);
  showRows();
}

// Rows that somebody reads or steps through keep their films until they are left.
const isInUse = () => order.length > 0 && Boolean($("#worklist").querySelector("tbody:hover, tbody:focus-within"));

function arrange() {
  const group = ({ outcome }) => Object.keys(GROUPS).indexOf(outcome);
  const compare = SORTS[wish.sort];
  order = last.films.filter(fits).sort((a, b) => group(a) - group(b) || (wish.down ? -1 : 1) * compare(a, b));
}

const fits = ({ name, outcome }) =>
  (wish.show === "all" || outcome === wish.show) && name.toLowerCase().includes(wish.find.toLowerCase());

/** Its place in the list, from 1; 0: it is not there. */
export const placeOf = (film, films) => (order.includes(film) ? order : films).indexOf(film) + 1;

/** The film so many steps from another in the order of the list. */
export function neighbour(film, steps, films) {
  const all = order.includes(film) ? order : films;
  return all[(all.indexOf(film) + steps + all.length) % all.length];
}

// ------------------------------------------------------------------ rows in sight

const box = $("#worklist .scroll");
const root = document.documentElement;
const rem = () => parseFloat(getComputedStyle(root).fontSize);

/** The parts of the list from the top: {body, words, films, head, height, top} with lengths in rem. */
function layout() {
  let top = 0;
  return ["rows", ...Object.keys(GROUPS)].map((name) => {
    const words = GROUPS[name] ?? null;
    const films = order.filter(({ outcome }) => (outcome in GROUPS ? outcome : "rows") === name);
    const part = { body: $(`#${name}`), words, films, head: words ? HEIGHTS.head : 0, height: words ? HEIGHTS.told : HEIGHTS.row, top };
    if (films.length) top += part.head + part.height * films.length;
    return part;
  });
}

function showRows() {
  const from = box.scrollTop / rem();
  const to = from + box.clientHeight / rem();
  let start = 2; // row 1 is the head of the table
  $("#worklist table").setAttribute("aria-rowcount", order.length + 1);
  for (const { body, words, films, head, height, top } of layout()) {
    const within = (at) => Math.min(films.length, Math.max(0, at));
    const first = within(Math.floor((from - top - head) / height) - SPARE);
    const last = within(Math.ceil((to - top - head) / height) + SPARE);
    fillBody(body, films.slice(first, last), words, start + first);
    start += films.length;
    body.hidden = !films.length;
    body.style.setProperty("--above", `${height * first}rem`);
    body.style.paddingBottom = `${height * (films.length - Math.max(first, last))}rem`;
  }
}

// A row stays at its place in the list, so that the focus stays where it is while the list is scrolled, and takes another
// film where the order changes, so that nothing moves while answers come in.
function fillBody(body, films, words, start) {
  if (words && !body.rows.length) body.append(make("tr", {}, make("th", { colspan: "3", scope: "rowgroup" }, words)));
  const rows = [...body.rows].slice(words ? 1 : 0);
  const isWanted = ({ ariaRowIndex: place }) => place >= start && place < start + films.length;
  const spare = rows.filter((row) => !isWanted(row));
  const kept = new Map(rows.filter(isWanted).map((row) => [Number(row.ariaRowIndex), row]));
  for (const row of spare) row.remove();
  let next = body.rows[words ? 1 : 0];
  films.forEach((film, index) => {
    const row = kept.get(start + index) ?? spare.pop() ?? newRow();
    if (row === next) next = row.nextElementSibling;
    else body.insertBefore(row, next ?? null);
    row.ariaRowIndex = start + index;
    fill(row, film);
  });
}

/** Scroll the list so that a film's row is in sight. */
export function reveal(film) {
  const part = layout().find(({ films }) => films.includes(film));
  if (!part) return;
  const top = rem() * (part.top + part.head + part.height * part.films.indexOf(film));
  const room = box.clientHeight - $("#worklist thead").offsetHeight - rem() * part.height;
  box.scrollTop = Math.min(top, Math.max(top - room, box.scrollTop));
  showRows();
}

/** Move the focus through the list, which is longer than what stands in the document. */
function walk(event) {
  const at = order.indexOf(event.target.closest("tr")?.film);
  const page = Math.max(1, Math.floor(box.clientHeight / (rem() * HEIGHTS.row)) - 1);
  const last = order.length - 1;
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: last }[event.key];
  if (to === undefined || at < 0 || !event.target.matches(".pick")) return;
  event.preventDefault();
  const film = order[Math.min(last, Math.max(0, to))];
  reveal(film);
  [...box.querySelectorAll("tr")].find((row) => row.film === film)?.querySelector(".pick").focus({ preventScroll: true });
}

function newRow() {
  const row = make(
    "tr",
    {},
    make("td", {}, make("button", { type: "button", class: "pick" }, make("span", { class: "thumb" }), make("span"))),
    make("td", { class: "outcome" }, make("span", { class: "sign" }), make("span")),
    make("td", { class: "share" }, make("span", { class: "mini" }), make("span", { class: "number" })),
  );
  row.addEventListener("click", () => last.choose(row.film));
  return row;
}

function fill(row, film) {
  const { outcome, answer, failure, name } = film;
  if (row.film !== film) thumb(row, film);
  row.film = film;
  const isCurrent = film === last.current;
  const shows = [film, outcome, answer, failure, last.point, isCurrent];
  if (row.shows?.every((one, index) => one === shows[index])) return;
  row.shows = shows;
  row.dataset.outcome = outcome;
  const [who, says, share] = row.cells;
  if (isCurrent) who.firstChild.setAttribute("aria-current", "true");
  else who.firstChild.removeAttribute("aria-current");
  who.firstChild.lastChild.textContent = name;
  says.firstChild.replaceChildren(sign(outcome));
  says.lastChild.textContent = wordsOf(film);
  const probability = answer?.probability ?? null;
  share.firstChild.classList.toggle("known", probability !== null);
  share.firstChild.style.setProperty("--probability", probability ?? 0);
  share.firstChild.style.setProperty("--threshold", last.point?.threshold ?? 0.5);
  share.lastChild.textContent = probability === null ? "–" : percent(probability);
}

function wordsOf({ outcome, answer, failure }) {
  if (outcome === "failed") return failure.title;
  if (outcome === "refused") return sentence(answer.gate.reason);
  return { asking: "Waiting", pneumonia: "Suspected", normal: "Not suspected" }[outcome] ?? HEADLINES[outcome];
}

// One after another, and only for rows that stand in the document: decoding hundreds at once would stall the page.
let thumbs = Promise.resolve();

function thumb(row, film) {
  const place = $(".thumb", row);
  place.replaceChildren(...(film.thumb ? [film.thumb] : []));
  if (film.thumb !== undefined) return;
  thumbs = thumbs.then(async () => {
    if (row.film !== film || !row.isConnected) return;
    film.thumb ??= await thumbOf(film.file);
    if (row.film === film && film.thumb) place.replaceChildren(film.thumb);
  });
}

/** All films in the order in which they are listed, those that are filtered out at the end, each with what is said of it. */
export function listed(films) {
  const ordered = new Set(order);
  return [...order, ...films.filter((film) => !ordered.has(film))].map((film) => ({ film, words: wordsOf(film) }));
}

// ------------------------------------------------------------------ head and filters

export function tally(films, point) {
  const count = (wanted) => films.filter((film) => outcomeOf(film, point) === wanted).length;
  const parts = CHIPS.slice(1).map(([outcome, words]) => [count(outcome), words.toLowerCase()]);
  return `${plural(films.length, "film")}: ${parts.filter(([number]) => number).map((part) => part.join(" ")).join(", ")}`;
}

function showHead(films) {
  const counts = Object.fromEntries(CHIPS.map(([name]) => [name, films.filter(({ outcome }) => outcome === name).length]));
  counts.all = films.length;
  const done = films.length - counts.asking;
  $("#progress-text").textContent = counts.asking ? `${done} of ${films.length} done` : plural(films.length, "film");
  Object.assign($("#progress"), { max: films.length, value: done });
  $("#worklist").dataset.done = String(!counts.asking);
  for (const chip of $("#chips").querySelectorAll("label")) {
    const input = chip.firstChild;
    chip.hidden = !counts[input.value] && input.value !== wish.show;
    chip.querySelector("small").textContent = counts[input.value];
  }
  const again = films.filter(({ failure }) => failure?.retry).length;
  $("#retry-all").hidden = !again;
  $("#retry-all").textContent = `Try ${plural(again, "film")} again`;
  for (const button of $("#worklist").querySelectorAll("[data-sort]")) {
    const sorted = button.dataset.sort === wish.sort ? (wish.down ? "descending" : "ascending") : "none";
    button.parentElement.setAttribute("aria-sort", sorted);
  }
}

// ------------------------------------------------------------------ what is listened to

const apply = (changes) => {
  Object.assign(wish, changes);
  arrange();
  box.scrollTop = 0;
  showWorklist(last.films, last.current, last.point, last.choose);
};
$("#chips").append(
  ...CHIPS.map(([value, words]) => {
    const checked = value === wish.show;
    const input = { type: "radio", name: "show", value, checked, onchange: () => apply({ show: value }) };
    return make("label", { class: "chip" }, make("input", input), make("span", {}, words, " ", make("small")));
  }),
);
$("#find").addEventListener("input", ({ target }) => apply({ find: target.value }));
for (const button of $("#worklist").querySelectorAll("[data-sort]")) {
  const { sort } = button.dataset;
  button.addEventListener("click", () => apply({ sort, down: wish.sort === sort ? !wish.down : sort === "probability" }));
}
const settle = () => setTimeout(() => last && showWorklist(last.films, last.current, last.point, last.choose));
$("#worklist").addEventListener("focusout", settle);
$("#worklist table").addEventListener("mouseleave", settle);
$("#worklist").addEventListener("keydown", walk);
let frame = 0;
const look = () => (frame ||= requestAnimationFrame(() => [(frame = 0), last && showRows()]));
box.addEventListener("scroll", look, { passive: true });
new ResizeObserver(look).observe(box);
