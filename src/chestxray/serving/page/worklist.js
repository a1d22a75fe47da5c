// Several films: one row each, the most suspicious first, those without an answer apart. At most PAGE rows stand in the
// document; they are used again for other films, so that nothing moves while answers come in.

import { $, make, sign } from "./dom.js";
import { outcomeOf, sentence } from "./answer.js";
import { thumbOf } from "./pictures.js";
import { HEADLINES, percent, plural } from "./words.js";

const PAGE = 50;
const GROUPS = { refused: "Not answered", failed: "Errors" }; // apart, in this order, after all others
const CHIPS = [
  ["all", "All"],
  ["pneumonia", "Suspected"],
  ["normal", "Not suspected"],
  ["refused", "Not answered"],
  ["failed", "Errors"],
  ["asking", "Waiting"],
];
const SORTS = {
  name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
  outcome: (a, b) => a.outcome.localeCompare(b.outcome) || SORTS.name(a, b),
  probability: (a, b) => (a.answer?.probability ?? -1) - (b.answer?.probability ?? -1),
};

const wish = { sort: "probability", down: true, show: "all", find: "", page: 0 };
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
  else order.push(...films.filter((film) => fits(film) && !order.includes(film)));
  const pages = Math.max(1, Math.ceil(order.length / PAGE));
  wish.page = Math.min(wish.page, pages - 1);
  const shown = order.slice(wish.page * PAGE, (wish.page + 1) * PAGE);
  fillBody($("#rows"), shown.filter(({ outcome }) => !(outcome in GROUPS)));
  for (const [name, words] of Object.entries(GROUPS)) {
    fillBody($(`#${name}`), shown.filter(({ outcome }) => outcome === name), words);
  }
  showHead(films);
  showPages(pages, shown.length);
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

/** The film so many steps from another in the order of the list. */
export function neighbour(film, steps, films) {
  const all = order.includes(film) ? order : films;
  return all[(all.indexOf(film) + steps + all.length) % all.length];
}

// ------------------------------------------------------------------ rows

function fillBody(body, films, words = null) {
  if (words && !body.rows.length) body.append(make("tr", {}, make("th", { colspan: "3", scope: "rowgroup" }, words)));
  body.hidden = !films.length;
  const rows = [...body.rows].slice(words ? 1 : 0);
  for (const row of rows.slice(films.length)) row.remove();
  films.forEach((film, index) => fill(rows[index] ?? body.appendChild(newRow()), film));
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

/** The whole list as a table to be printed, in the order in which it is shown. */
export function tableOf(films, point) {
  const cells = (film) => [
    film.name,
    wordsOf(film),
    film.answer?.gate.accepted ? percent(film.answer.probability) : "–",
    film.answer?.film_sha256.slice(0, 12) ?? "",
  ];
  const row = (tag, texts) => make("tr", {}, ...texts.map((text) => make(tag, {}, text)));
  const listed = [...order, ...films.filter((film) => !order.includes(film))];
  return make(
    "section",
    { class: "paper" },
    make("h2", {}, "Worklist"),
    make("p", {}, tally(films, point)),
    make(
      "table",
      {},
      make("thead", {}, row("th", ["Film", "Answer", "Probability", "SHA-256"])),
      make("tbody", {}, ...listed.map((film) => row("td", cells(film)))),
    ),
  );
}

// ------------------------------------------------------------------ head, filters, pages

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

function showPages(pages, shown) {
  const first = wish.page * PAGE;
  $("#pages").hidden = pages < 2;
  $("#page-now").textContent = `${first + 1} to ${first + shown} of ${order.length}`;
  $("#page-back").disabled = wish.page === 0;
  $("#page-on").disabled = wish.page === pages - 1;
}

/** Bring the page of the list to front on which a film stands. */
export function turnTo(film) {
  const place = order.indexOf(film);
  if (place >= 0) wish.page = Math.floor(place / PAGE);
}

export function onWishes() {
  const apply = (changes) => {
    Object.assign(wish, { page: 0 }, changes);
    arrange();
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
  $("#page-back").addEventListener("click", () => apply({ page: wish.page - 1 }));
  $("#page-on").addEventListener("click", () => apply({ page: wish.page + 1 }));
  for (const button of $("#worklist").querySelectorAll("[data-sort]")) {
    const { sort } = button.dataset;
    button.addEventListener("click", () => apply({ sort, down: wish.sort === sort ? !wish.down : sort === "probability" }));
  }
  const settle = () => setTimeout(() => last && showWorklist(last.films, last.current, last.point, last.choose));
  $("#worklist").addEventListener("focusout", settle);
  $("#worklist table").addEventListener("mouseleave", settle);
  $("#worklist").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches(".pick")) return;
    event.preventDefault();
    const picks = [...$("#worklist").querySelectorAll(".pick")];
    picks[picks.indexOf(event.target) + step]?.focus();
  });
}
