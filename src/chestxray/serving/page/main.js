// One list of cases and one chosen operating point; every change of them ends in draw().

import { offerPoints, showAnswer, showPoint, spoken } from "./answer.js";
import { Failure, describe, predict } from "./api.js";
import { fillAbout } from "./card.js";
import { $ } from "./dom.js";
import { takeFilms } from "./intake.js";
import { onHeat, onUnshowable, showFilm } from "./viewer.js";
import { abbreviated } from "./words.js";
import { showWorklist, tally } from "./worklist.js";

const AT_ONCE = 2; // films on their way at the same time

const state = { model: null, point: null, items: [], current: null, heat: false, asking: 0 };

function draw() {
  const { items, current, point, heat } = state;
  showFilm(current, heat);
  showAnswer(current, point, again);
  showWorklist(items, current, point, lookAt);
}

function add(files) {
  const added = files.map((file) => ({ file, name: file.name || "pasted film", size: file.size, url: URL.createObjectURL(file) }));
  state.items.push(...added);
  choose(added[0]);
  pump();
}

function choose(item) {
  state.current = item;
  if (state.heat) fetchHeat(item);
  draw();
}

function lookAt(item) {
  choose(item);
  $("#stage").scrollIntoView({ block: "nearest" });
}

function clear() {
  for (const item of state.items) URL.revokeObjectURL(item.url);
  Object.assign(state, { items: [], current: null });
  say("The list is empty.");
  draw();
  $("#stage-choose").focus();
}

function again(item) {
  delete item.failure;
  draw();
  pump();
}

// Films are asked about in their order, a few at a time; one that fails does not stop the rest.
function pump() {
  const next = state.items.find((item) => !item.answer && !item.failure && !item.asked);
  if (!next || state.asking >= AT_ONCE) return;
  state.asking += 1;
  next.asked = true;
  judge(next).finally(() => {
    state.asking -= 1;
    next.asked = false;
    draw();
    announce(next);
    pump();
  });
  pump();
}

async function judge(item) {
  try {
    await knowModel();
    const { answer, ms } = await predict(item.file, { heatmap: state.heat, limit: state.model.max_body });
    Object.assign(item, { answer, ms, heatmap: answer.heatmap });
  } catch (error) {
    item.failure = asFailure(error);
  }
}

function asFailure(error) {
  if (error instanceof Failure) return error;
  return new Failure("The page failed", "Reload it and try again.", { detail: String(error), retry: true });
}

function announce(item) {
  if (item === state.current) say(spoken(item, state.point));
  else if (state.items.every((other) => other.answer || other.failure)) say(tally(state.items, state.point));
}

function say(text) {
  $("#live").textContent = text;
}

async function fetchHeat(item) {
  if (!item?.answer?.gate.accepted || item.heatmap) return;
  try {
    const { answer } = await predict(item.file, { heatmap: true });
    item.heatmap = answer.heatmap;
    say("The heat map is shown.");
  } catch (error) {
    state.heat = false;
    say(`No heat map. ${asFailure(error).title}.`);
  }
  draw();
}

async function knowModel() {
  if (state.model) return;
  const model = await describe();
  if (state.model) return; // another film asked at the same time
  const { operating_points: points, default_operating_point: usual } = model.bundle;
  state.model = model;
  state.point = points.find((point) => point.name === usual);
  offerPoints(points, state.point, (point) => {
    state.point = point;
    showPoint(point);
    draw();
    if (state.current?.answer) say(spoken(state.current, point));
  });
  showPoint(state.point);
  fillAbout(model);
  $("#fact-model").textContent = `${model.bundle.name} · ${abbreviated(model.model_sha256)}`;
  $("#fact-model").title = `Graph SHA-256 ${model.model_sha256}`;
  $("#fact-version").textContent = `chestxray ${model.bundle.package_version}, bundle version ${model.bundle.version}`;
}

async function openAbout() {
  $("#about").showModal();
  try {
    await knowModel();
  } catch (error) {
    $("#card").textContent = `${asFailure(error).title}. ${asFailure(error).advice}`;
  }
}

takeFilms(add);
onHeat((on) => {
  state.heat = on;
  draw();
  if (on) fetchHeat(state.current);
});
onUnshowable((url) => {
  const item = state.items.find((other) => other.url === url);
  if (item) item.unshowable = true;
  draw();
});
$("#clear").addEventListener("click", clear);
$("#open-about").addEventListener("click", openAbout);
$("#about").addEventListener("click", (event) => event.target === $("#about") && $("#about").close());
draw();
knowModel().then(draw, () => say("The service does not answer yet."));
