// Everything that can be done to a film, in one table: the buttons of the stage, the keys and the list of keys.

import { $, icon, make } from "./dom.js";

// name, what it does, its key, the drawing of its button (none: no button), whether the button stays down
const COMMANDS = [
  ["move", "Drag moves the film", "m", "M12 4v16M4 12h16M9.5 6.5 12 4l2.5 2.5M9.5 17.5 12 20l2.5-2.5M6.5 9.5 4 12l2.5 2.5M17.5 9.5 20 12l-2.5 2.5", true],
  ["levels", "Drag sets window and level", "w", "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16v16M12 8h6.9M12 12h8M12 16h6.9", true],
  ["out", "Zoom out", "-", "M6 12h12"],
  ["in", "Zoom in", "+", "M12 6v12M6 12h12"],
  ["fit", "The whole film", "0", "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5"],
  ["actual", "Actual pixels, one to one", "1", "M6 7.5 8.5 6v12M15 7.5 17.5 6v12M12 10v.1M12 15v.1"],
  ["lens", "Magnifier", "l", "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5 20 20", true],
  ["invert", "Invert", "i", "M5 5h14v14H5zM5 19 19 5M10.5 19 19 10.5M15 19l4-4", true],
  ["reset", "Reset the view", "r", "M5 12a7 7 0 1 0 2.2-5.1M6.5 3v4.5H11"],
  ["compare", "Two films side by side", "c", "M4 5h7v14H4zM13 5h7v14h-7z", true],
  ["other", "The other of two films", "x", null],
  ["heat", "Heat map", "h", null],
  ["on", "Next film", "n", null],
  ["back", "Previous film", "p", null],
  ["choose", "Choose films", "o", null],
  ["help", "Keyboard shortcuts", "?", "M9 9.5a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.1-1.5 2.4M12 18v.1"],
];
// main.js: where the film has the focus
const ARROWS = [
  ["Arrows", "Move a zoomed film"],
  ["Shift + ← →", "Narrower or wider window"],
  ["Shift + ↑ ↓", "Brighter or darker"],
];

/** run: a function for each name. */
export function takeCommands(run) {
  $("#buttons").append(...COMMANDS.filter(([, , , line]) => line).map((row) => button(row, run)));
  const rows = [...COMMANDS.map(([, does, key]) => [key.toUpperCase(), does]), ...ARROWS];
  $("#key-list").append(...rows.map(([key, does]) => make("div", {}, make("dt", {}, make("kbd", {}, key)), make("dd", {}, does))));
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !areKeysOn() || isTaken(event.target)) return;
    const key = event.key === "=" ? "+" : event.key.toLowerCase();
    const row = COMMANDS.find(([, , its]) => its === key);
    if (!row) return;
    event.preventDefault();
    run[row[0]]();
  });
  rememberKeys();
}

function button([name, does, key, line, stays], run) {
  const pressed = stays ? "false" : null;
  const attributes = { type: "button", "data-does": name, "aria-label": does, title: `${does} (${key.toUpperCase()})` };
  return make("button", { ...attributes, "aria-pressed": pressed, onclick: run[name] }, icon(line));
}

// Keys mean something else where text is typed, and nothing behind a dialog.
const isTaken = (target) => target.matches("input:not([type=range], [type=radio]), textarea, select") || $("dialog[open]");

const areKeysOn = () => $("#keys-on").checked;

/** Whoever speaks to the machine can switch single keys off. Source: WCAG 2.2, success criterion 2.1.4. */
function rememberKeys() {
  const box = $("#keys-on");
  try {
    box.checked = localStorage.getItem("keys") !== "off";
    box.addEventListener("change", () => localStorage.setItem("keys", box.checked ? "on" : "off"));
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
}
