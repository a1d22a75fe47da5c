// One list of films, the one or two of them on the stage, and one operating point; every change ends in draw().

import { captionOf, outcomeOf, showAnswer, showModel, showPoint, spoken } from "./answer.js";
import { describe, predict, useKey } from "./api.js";
import { takeCommands } from "./commands.js";
import { $, make, say } from "./dom.js";
import { takeFilms } from "./intake.js";
import { asFailure, makeQueue } from "./queue.js";
import * as viewer from "./viewer.js";
import { plural } from "./words.js";

const state = { model: null, point: null, films: [], shown: [undefined], active: 0, heat: false, saved: true };
const queue = makeQueue(predictOne, answered);
const current = () => state.shown[state.active];
let list = null; // worklist.js, fetched with the second film

// ------------------------------------------------------------------ drawing

let drawing = 0;

/** Draw once before the next frame, however much changed. */
function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    drawNow();
  });
}

function drawNow() {
  const { films, shown, active, point, heat } = state;
  viewer.showFilms(shown, active, shown.map((item) => captionOf(item, point)), heat);
  showAnswer(current(), point, queue.held, (item) => (item ? again([item]) : start()));
  list?.showWorklist(films, current(), point, lookAt);
  const place = list?.placeOf(current(), films);
  $("#film-name").textContent = current()?.name ?? "";
  $("#save").hidden = $("#print").hidden = !current()?.answer;
  $("#place").hidden = films.length < 2 || !place;
  $("#place").textContent = `${place} of ${films.length}`;
  $("#back").hidden = $("#on").hidden = films.length < 2;
}

// ------------------------------------------------------------------ films

function add(files, leftOut) {
  if (!files.length) return say(leftOut ? "No films in there." : "");
  const films = files.map(({ file, name }) => ({ file, name }));
  state.films.push(...films);
  state.saved = false;
  say(`${plural(films.length, "film")} added${leftOut ? `, ${plural(leftOut, "other file")} left out` : ""}.`);
  const first = $("#stage").dataset.state === "empty";
  choose(films[0]);
  if (first) viewer.focusPane(state.active); // the button that had the focus is gone
  if (state.shown.length > 1 && films[1]) state.shown[1 - state.active] ??= films[1];
  if (state.films.length > 1 && !list) fetchList();
  queue.add(films);
}

async function fetchList() {
  try {
    list = await import("./worklist.js");
  } catch (error) {
    return say(`No worklist. ${asFailure(error).title}. Reload the page.`);
  }
  draw();
}

function choose(film) {
  state.shown[state.active] = film;
  if (state.heat) fetchHeat(film);
  drawNow();
}

function lookAt(film) {
  choose(film);
  say(spoken(film, state.point));
  $("#stage").scrollIntoView({ block: "nearest" });
}

function step(steps) {
  if (!current() || state.films.length < 2 || !list) return;
  const film = list.neighbour(current(), steps, state.films);
  choose(film);
  list.reveal(film);
  say(spoken(film, state.point));
}

function clear() {
  Object.assign(state, { films: [], shown: [undefined], active: 0, saved: true });
  queue.clear();
  say("The list is empty.");
  drawNow();
  $("#stage-choose").focus();
}

function again(films) {
  for (const film of films) Object.assign(film, { failure: null, tries: 0 });
  queue.add(films);
  drawNow();
}

const retryAll = () => again(state.films.filter(({ failure }) => failure?.retry));

async function predictOne(film) {
  await knowModel();
  const heatmap = state.heat;
  const { answer, ms } = await predict(film.file, state.model, heatmap);
  return { answer, ms, heatmap: answer.heatmap };
}

function answered(film) {
  draw();
  if (queue.held) return askForKey();
  if (!film.answer && !film.failure) return;
  if (film === current()) say(spoken(film, state.point));
  else if (state.films.every((other) => other.answer || other.failure)) say(list?.tally(state.films, state.point) ?? spoken(film, state.point));
}

async function fetchHeat(film) {
  if (!film?.answer?.gate.accepted || film.heatmap) return;
  try {
    film.heatmap = (await predict(film.file, state.model, true)).answer.heatmap;
    say("The heat map is shown.");
  } catch (error) {
    state.heat = false;
    say(`No heat map. ${asFailure(error).title}.`);
  }
  draw();
}

function useHeat(on) {
  if ($("#heat").disabled) return;
  state.heat = on;
  drawNow();
  if (on) state.shown.forEach(fetchHeat);
}

// ------------------------------------------------------------------ two films

function compare() {
  if (!current()) return;
  if (state.shown.length === 1) {
    const other = state.films.length > 1 ? list?.neighbour(current(), 1, state.films) : undefined;
    state.shown.push(other);
    state.active = other ? 0 : 1;
    if (state.heat) fetchHeat(other);
  } else {
    Object.assign(state, { shown: [current() ?? state.shown[1 - state.active]], active: 0 });
  }
  say(state.shown.length > 1 ? "Two films side by side" : "One film");
  drawNow();
}

function activate(index) {
  if (index >= state.shown.length) return;
  state.active = index;
  draw();
}

// ------------------------------------------------------------------ the model

let known = null; // the one question on its way

function knowModel() {
  if (!state.model) known ??= describe().then(tookModel).finally(() => (known = null));
  return known;
}

function tookModel(model) {
  const { operating_points: points, default_operating_point: usual } = model.bundle;
  state.model = model;
  state.point = points.find((point) => point.name === usual);
  showModel(model, state.point, (point) => {
    state.point = point;
    showPoint(point);
    drawNow();
    if (current()?.answer) say(spoken(current(), point));
  });
  showPoint(state.point);
}

async function start() {
  try {
    await knowModel();
  } catch (error) {
    const failure = asFailure(error);
    if (failure.key) {
      queue.held = failure;
      askForKey();
    } else say(`${failure.title}. ${failure.advice}`);
  }
  draw();
}

function askForKey() {
  if (!$("#key-form").hidden) return;
  drawNow();
  say(`${queue.held.title}. ${queue.held.advice}`);
  $("#key").focus();
}

function takeKey(event) {
  event.preventDefault();
  useKey($("#key").value);
  $("#key-form").reset();
  $("#key-form").hidden = true;
  start().then(queue.release);
}

// ------------------------------------------------------------------ out

async function save() {
  const { csvOf } = await import("./csv.js");
  const text = csvOf(state.films.map((film) => ({ ...film, outcome: outcomeOf(film, state.point) })), state.point);
  download(new Blob([text], { type: "text/csv" }), `chestxray-${new Date().toISOString().slice(0, 10)}.csv`);
  state.saved = true;
}

function download(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function savePicture() {
  const { drawAnswer } = await import("./paper.js");
  const film = viewer.drawing();
  const picture = drawAnswer(film, current(), state.point, outcomeOf(current(), state.point));
  picture.toBlob((blob) => download(blob, `${current().name.replace(/[^\w.-]+/g, "-")}.answer.png`), "image/png");
  say("The answer is saved as PNG.");
}

async function printList() {
  const { tableOf } = await import("./paper.js");
  const paper = tableOf(list.listed(state.films), list.tally(state.films, state.point), state.point);
  document.body.append(paper);
  document.documentElement.dataset.paper = "list";
  print();
  delete document.documentElement.dataset.paper;
  paper.remove();
}

$("link[rel=icon]").href = "icon.svg"; // after the first paint
$("#details").open = matchMedia("(min-width: 75rem) and (min-height: 56rem)").matches; // where there is room
viewer.setTheStage(activate);
viewer.onHeat(useHeat);
takeFilms(add);
takeCommands({
  move: () => viewer.useTool("move"),
  levels: () => viewer.useTool("levels"),
  in: () => [viewer.zoom(1.25), viewer.sayView()],
  out: () => [viewer.zoom(0.8), viewer.sayView()],
  fit: viewer.fit,
  actual: viewer.actual,
  lens: viewer.useLens,
  invert: viewer.invert,
  reset: viewer.reset,
  compare,
  other: () => state.shown.length > 1 && viewer.focusPane(1 - state.active),
  heat: () => useHeat(!state.heat),
  on: () => step(1),
  back: () => step(-1),
  choose: () => $("#files").click(),
  help: () => $("#help").showModal(),
});
$("#panes").addEventListener("keydown", (event) => {
  const direction = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (!direction || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const [x, y] = direction;
  if (event.shiftKey) [viewer.level(-0.05 * x, 0.05 * y), viewer.sayView()];
  else viewer.pan(0.1 * x, 0.1 * y);
});
$("#on").addEventListener("click", () => step(1));
$("#back").addEventListener("click", () => step(-1));
$("#clear").addEventListener("click", clear);
$("#retry-all").addEventListener("click", retryAll);
$("#export").addEventListener("click", save);
$("#print-list").addEventListener("click", printList);
$("#print").addEventListener("click", () => print());
$("#save").addEventListener("click", savePicture);
$("#key-form").addEventListener("submit", takeKey);
$("#help").addEventListener("click", ({ target }) => target === $("#help") && target.close());
addEventListener("online", retryAll);
addEventListener("beforeprint", () => ($("#printed").textContent = new Date().toLocaleString()));
addEventListener("beforeunload", (event) => state.films.length > 1 && !state.saved && event.preventDefault());
drawNow();
start();
document.documentElement.dataset.ready = "true"; // everything is listened to
