// The films on the stage, one or two side by side: zoom, pan, invert, window and level, and the heat map over them.
// A film keeps its view in item.view: {zoom, x, y} with x and y in widths and heights of the pane, {centre, width} as
// shares of the film's range, {inverted}.

import { $, make, say, sign } from "./dom.js";
import { followGestures } from "./gestures.js";
import { pictureOf } from "./pictures.js";

const MOST = 16; // times the size that fits
const PLAIN = { centre: 0.5, width: 1, inverted: false };
const LENS = 2.5; // times the film around it
const PRESETS = {
  lungs: { centre: 0.34, width: 0.62 },
  mediastinum: { centre: 0.66, width: 0.55 },
  contrast: { centre: 0.5, width: 0.5 },
};

const stage = $("#stage");
const toggle = $("#heat");
const sliders = { width: $("#window"), centre: $("#level") };
const panes = [];
let tool = "move";
let lens = false;
let active = 0;

/** Make the two panes. activate(index): called when the other one is touched or focused. */
export function setTheStage(activate) {
  for (const index of [0, 1]) {
    const root = document.importNode($("#pane").content, true).firstElementChild;
    $("#panes").append(root);
    const pane = { index, item: null, root, film: $("img.film", root), canvas: $("canvas", root), overlay: $(".overlay", root) };
    pane.film.addEventListener("error", () => pane.url && missing(pane, "The browser cannot draw this file."));
    root.addEventListener("focusin", () => index !== active && activate(index));
    followGestures(root, {
      isZoomed: () => viewOf(pane)?.zoom > 1,
      tool: () => tool,
      zoom: (factor, at) => zoom(factor, at, pane),
      pan: (x, y) => pan(x, y, pane),
      level: (wider, brighter) => level(wider, brighter, pane),
    });
    root.addEventListener("pointermove", (event) => magnify(pane, event));
    root.addEventListener("pointerleave", () => ($(".lens", root).hidden = true));
    pane.overlay.addEventListener("load", () => drawLines(pane));
    panes.push(pane);
  }
  $("#preset").addEventListener("change", ({ target }) => {
    const { item } = panes[active];
    if (item?.look) change(panes[active], PRESETS[target.value] ?? { centre: item.look.centre, width: item.look.width });
  });
  for (const [name, slider] of Object.entries(sliders)) {
    slider.addEventListener("input", () => change(panes[active], { [name]: Math.max(0.004, slider.value / 100) }));
  }
  useTool(tool);
}

/** Show a film in each pane, undefined for the place of one to come; outcomes: what is said of each. */
export function showFilms(items, current, outcomes, heatOn) {
  active = current;
  stage.dataset.state = items.some(Boolean) ? "film" : "empty";
  stage.dataset.panes = items.length;
  for (const pane of panes) {
    pane.root.hidden = pane.index >= items.length;
    pane.root.dataset.active = String(pane.index === current && items.length > 1);
    put(pane, items[pane.index]);
    caption(pane, outcomes[pane.index]);
    overlay(pane, heatOn);
  }
  const item = items[current];
  toggle.disabled = !item?.answer?.gate.accepted;
  toggle.setAttribute("aria-checked", String(heatOn));
  $("#heat-tools").dataset.on = String(!panes[current].overlay.hidden);
  $("#opacity").disabled = $("#lines").disabled = panes[current].overlay.hidden;
  follow(panes[current]);
}

/** The film's address lives as long as it is on the stage. */
async function put(pane, item) {
  if (pane.item === item) return;
  const name = item ? `Film ${item.name}` : "Place for a second film";
  pane.root.setAttribute("aria-label", name);
  pane.film.alt = name;
  pane.canvas.setAttribute("aria-label", name);
  if (pane.url) URL.revokeObjectURL(pane.url);
  Object.assign(pane, { item, url: null, picture: null });
  pane.root.dataset.state = item ? "opening" : "wanted";
  $(".instead p", pane.root).textContent = "A second film, to compare";
  if (!item) return;
  const picture = await pictureOf(item.file);
  if (pane.item !== item) return; // another one was chosen meanwhile
  if (picture.reason) return missing(pane, picture.reason);
  pane.picture = picture;
  item.look = picture.look ?? PLAIN;
  item.view ??= { zoom: 1, x: 0, y: 0, ...item.look };
  pane.film.hidden = Boolean(picture.deep);
  pane.canvas.hidden = !picture.deep;
  pane.drawDeep = picture.deep && (await import("./dicom.js")).drawDeep;
  if (picture.blob) pane.film.src = pane.url = URL.createObjectURL(picture.blob);
  pane.root.dataset.state = "film";
  paint(pane);
}

function missing(pane, reason) {
  pane.picture = null;
  pane.root.dataset.state = "unshowable";
  $(".instead p", pane.root).textContent = reason;
}

function caption(pane, outcome) {
  const { item } = pane;
  const line = $(".caption", pane.root);
  line.dataset.outcome = outcome?.kind ?? "empty";
  line.replaceChildren();
  if (item) line.append(make("span", { class: "sign" }, sign(outcome.kind)), make("b", {}, item.name), outcome.words);
}

function overlay({ item, root, overlay: picture }, heatOn) {
  const map = heatOn && root.dataset.state !== "unshowable" ? item?.heatmap : null;
  if (map && picture.dataset.of !== item.answer.film_sha256) {
    delete picture.dataset.lines;
    picture.src = `data:image/png;base64,${map}`;
    picture.dataset.of = item.answer.film_sha256;
  }
  picture.hidden = !map;
}

async function drawLines({ item, overlay: picture }) {
  const wanted = $("#lines").checked;
  if (!item?.heatmap || picture.dataset.lines === String(wanted)) return;
  picture.dataset.lines = String(wanted);
  picture.src = wanted ? (await import("./lines.js")).linesOf(picture) : `data:image/png;base64,${item.heatmap}`;
}

// ------------------------------------------------------------------ the view

const viewOf = (pane) => (pane.picture ? pane.item.view : null);

function paint(pane) {
  const view = viewOf(pane);
  if (!view) return;
  const { zoom: scale, x, y, centre, width, inverted } = view;
  $(".sheets", pane.root).style.transform = `translate(${100 * x}%, ${100 * y}%) scale(${scale})`;
  pane.root.dataset.grab = tool === "levels" ? "levels" : scale > 1 ? "zoomed" : "fit";
  if (pane.picture.deep) paintDeep(pane);
  else filter(pane, centre, width, inverted);
  const { look } = pane.item;
  const words = [`${Math.round(100 * scale)}%`, `W ${span(pane, width)} L ${place(pane, centre)}`];
  if (inverted !== look.inverted) words.push("inverted");
  const readout = $(".readout", pane.root);
  readout.textContent = words.join(" · ");
  readout.dataset.plain = String(scale === 1 && Object.keys(look).every((name) => view[name] === look[name]));
  if (pane.index === active) follow(pane);
}

function paintDeep(pane) {
  const look = `${pane.item.view.centre} ${pane.item.view.width} ${pane.item.view.inverted}`;
  if (pane.drawn?.picture === pane.picture && pane.drawn.look === look) return;
  pane.drawn = { picture: pane.picture, look };
  pane.frame ??= requestAnimationFrame(() => {
    pane.frame = null;
    if (viewOf(pane) && pane.picture.deep) pane.drawDeep(pane.picture.deep, pane.canvas, pane.item.view);
  });
}

function filter({ index, film }, centre, width, inverted) {
  const slope = 1 / width;
  const intercept = 0.5 - centre / width;
  const plain = centre === 0.5 && width === 1 && !inverted;
  for (const channel of $(`#levels-${index}`).firstElementChild.children) {
    channel.setAttribute("slope", inverted ? -slope : slope);
    channel.setAttribute("intercept", inverted ? 1 - intercept : intercept);
  }
  film.style.filter = plain ? "" : `url(#levels-${index})`;
}

// What the file measured where it is known, else grey levels of a byte.
const span = ({ picture: { deep } }, width) => Math.round(width * (deep ? Math.abs(deep.unit) * deep.span : 255));
const place = ({ picture: { deep } }, centre) =>
  Math.round((deep?.low ?? 0) + centre * (deep ? deep.unit * deep.span : 255));

function follow(pane) {
  const view = viewOf(pane);
  const isPreset = ([, one]) => view?.centre === one.centre && view.width === one.width;
  $("#preset").value = Object.entries(PRESETS).find(isPreset)?.[0] ?? "";
  $("#preset").disabled = !view;
  for (const [name, slider] of Object.entries(sliders)) {
    slider.disabled = !view;
    slider.value = 100 * (view ?? PLAIN)[name];
    if (view) slider.setAttribute("aria-valuetext", String((name === "width" ? span : place)(pane, view[name])));
  }
  for (const button of stage.querySelectorAll("[aria-pressed]")) {
    const name = button.dataset.does;
    const on = { invert: view?.inverted, compare: stage.dataset.panes === "2", lens, [tool]: true }[name] ?? false;
    button.setAttribute("aria-pressed", String(on));
  }
}

function change(pane, changes) {
  const view = viewOf(pane);
  if (!view) return;
  Object.assign(view, changes);
  paint(pane);
  const other = panes[1 - pane.index];
  if (!("zoom" in changes) || !viewOf(other) || other.root.hidden) return;
  Object.assign(viewOf(other), { zoom: view.zoom, x: view.x, y: view.y }); // two films are moved as one
  paint(other);
}

/** Zoom by a factor; at: the place that stays, {x, y} from the pane's middle in shares of its size. */
export function zoom(factor, at = { x: 0, y: 0 }, pane = panes[active]) {
  const view = viewOf(pane);
  if (!view) return;
  const scale = Math.min(MOST, Math.max(1, view.zoom * factor));
  const grown = scale / view.zoom;
  change(pane, held({ zoom: scale, x: at.x - (at.x - view.x) * grown, y: at.y - (at.y - view.y) * grown }));
}

export function pan(x, y, pane = panes[active]) {
  const view = viewOf(pane);
  if (view) change(pane, held({ zoom: view.zoom, x: view.x + x, y: view.y + y }));
}

// The film cannot be pushed off the stage.
function held({ zoom: scale, x, y }) {
  const most = Math.max(0, scale - 1) / 2;
  return { zoom: scale, x: Math.min(most, Math.max(-most, x)), y: Math.min(most, Math.max(-most, y)) };
}

/** Widen the window, and show brighter, in shares of the film's range. */
export function level(wider, brighter, pane = panes[active]) {
  const view = viewOf(pane);
  if (!view) return;
  const width = Math.min(4, Math.max(0.004, view.width + wider));
  change(pane, { width, centre: Math.min(2, Math.max(-1, view.centre + (view.inverted ? brighter : -brighter))) });
}

export function invert() {
  const view = viewOf(panes[active]);
  if (!view) return;
  change(panes[active], { inverted: !view.inverted });
  say(view.inverted ? "Inverted" : "Not inverted");
}

export function fit() {
  change(panes[active], { zoom: 1, x: 0, y: 0 });
  say("The whole film");
}

/** One pixel of the film on one of the screen. */
export function actual() {
  const pane = panes[active];
  if (!viewOf(pane)) return;
  const { width, height } = sizeOf(pane);
  const { clientWidth, clientHeight } = pane.root;
  const fitted = Math.min(clientWidth / width, clientHeight / height);
  change(pane, { zoom: Math.min(MOST, 1 / (fitted * devicePixelRatio)), x: 0, y: 0 });
  say("Actual pixels, one to one");
}

const sizeOf = ({ picture, film, canvas }) =>
  picture.deep ? { width: canvas.width, height: canvas.height } : { width: film.naturalWidth, height: film.naturalHeight };

/** Switch the magnifier, which follows the pointer. */
export function useLens() {
  lens = !lens;
  stage.dataset.lens = String(lens);
  for (const { root } of panes) $(".lens", root).hidden = true;
  follow(panes[active]);
}

function magnify(pane, { clientX, clientY }) {
  const glass = $(".lens", pane.root);
  if (!lens || !viewOf(pane)) return;
  const box = pane.root.getBoundingClientRect();
  const [x, y] = [clientX - box.left, clientY - box.top];
  const sheets = $(".sheets", pane.root);
  const copy = sheets.cloneNode(true);
  if (pane.picture.deep) $("canvas", copy).getContext("2d").drawImage(pane.canvas, 0, 0);
  const around = make("div", {}, copy);
  glass.replaceChildren(around);
  glass.hidden = false;
  const half = glass.clientWidth / 2;
  Object.assign(around.style, {
    width: `${box.width}px`,
    height: `${box.height}px`,
    transform: `translate(${half - LENS * x}px, ${half - LENS * y}px) scale(${LENS})`,
  });
  Object.assign(glass.style, { left: `${x - half}px`, top: `${y - half}px` });
}

/** The active film as it is shown, its map over it, on a canvas of its own size; null where there is no picture. */
export function drawing() {
  const pane = panes[active];
  if (!viewOf(pane)) return null;
  const { width, height } = sizeOf(pane);
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.filter = pane.film.style.filter || "none";
  context.drawImage(pane.picture.deep ? pane.canvas : pane.film, 0, 0, width, height);
  context.filter = "none";
  context.globalAlpha = $("#opacity").value / 100;
  if (!pane.overlay.hidden) context.drawImage(pane.overlay, 0, 0, width, height);
  return canvas;
}

export function reset() {
  const { item } = panes[active];
  if (!viewOf(panes[active])) return;
  change(panes[active], { zoom: 1, x: 0, y: 0, ...item.look });
  say("View reset");
}

/** "move" or "levels": what dragging does. */
export function useTool(name) {
  tool = name;
  stage.dataset.tool = name;
  for (const pane of panes) paint(pane);
  follow(panes[active]);
}

export function focusPane(index) {
  panes[index].root.focus();
}

/** Say the view aloud; for keys and buttons, whose effect is not under the hand. */
export function sayView() {
  const view = viewOf(panes[active]);
  if (!view) return;
  const [pane, scale] = [panes[active], Math.round(100 * view.zoom)];
  say(`Zoom ${scale}%, window ${span(pane, view.width)}, level ${place(pane, view.centre)}`);
}

export function onHeat(change) {
  toggle.addEventListener("click", () => change(toggle.getAttribute("aria-checked") !== "true"));
  const slider = $("#opacity");
  const apply = () => panes.forEach((pane) => pane.overlay.style.setProperty("opacity", slider.value / 100));
  slider.addEventListener("input", apply);
  $("#lines").addEventListener("change", () => panes.forEach((pane) => pane.overlay.hidden || drawLines(pane)));
  apply();
}
