// The film, and the heat map over it.

import { $ } from "./dom.js";

const stage = $("#stage");
const film = $("#film");
const overlay = $("#overlay");
const toggle = $("#heat");
const opacity = $("#opacity");

/** Show a case, or nothing. `onHeat(on)` is called when the heat map is switched. */
export function showFilm(item, heatOn) {
  stage.dataset.state = item ? (item.unshowable ? "unshowable" : "film") : "empty";
  if (item && film.src !== item.url) film.src = item.url;
  film.alt = item ? `Film ${item.name}` : "";
  $("#film-name").textContent = item?.name ?? "";
  const judged = item?.answer?.gate.accepted ?? false;
  toggle.disabled = !judged;
  toggle.setAttribute("aria-checked", String(heatOn));
  const picture = judged && heatOn ? item.heatmap : null;
  if (picture) overlay.src = `data:image/png;base64,${picture}`;
  overlay.hidden = !picture;
  $("#heat-tools").dataset.on = String(Boolean(picture));
  opacity.disabled = !picture;
}

export function onHeat(change) {
  toggle.addEventListener("click", () => change(toggle.getAttribute("aria-checked") !== "true"));
  const apply = () => overlay.style.setProperty("opacity", opacity.value / 100);
  opacity.addEventListener("input", apply);
  apply();
}

/** A file that no browser can draw gets a word instead of a broken picture. */
export function onUnshowable(change) {
  film.addEventListener("error", () => film.getAttribute("src") && change(film.src));
}
