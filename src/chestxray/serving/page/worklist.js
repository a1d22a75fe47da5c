// Several films: one row each, in the order they came.

import { $, make, sign } from "./dom.js";
import { outcomeOf } from "./answer.js";
import { HEADLINES, percent } from "./words.js";

const WORDS = { ...HEADLINES, refused: "Cannot judge", asking: "Waiting" };

export function showWorklist(items, current, point, choose) {
  const section = $("#worklist");
  section.hidden = items.length < 2;
  if (section.hidden) return;
  const body = $("#rows");
  while (body.rows.length > items.length) body.deleteRow(-1);
  items.forEach((item, index) => {
    const row = body.rows[index] ?? body.appendChild(newRow());
    fill(row, item, item === current, point, choose);
  });
  $("#tally").textContent = tally(items, point);
}

function newRow() {
  return make(
    "tr",
    {},
    make("td", { class: "who" }, make("button", { type: "button", class: "pick" }, make("img", { alt: "" }), make("span"))),
    make("td", { class: "outcome" }, make("span", { class: "sign" }), make("span")),
    make("td", { class: "share" }, make("span", { class: "mini" }), make("span", { class: "number" })),
  );
}

function fill(row, item, isCurrent, point, choose) {
  const outcome = outcomeOf(item, point);
  row.dataset.outcome = outcome;
  const [who, says, share] = row.cells;
  const button = who.firstChild;
  button.onclick = () => choose(item);
  if (isCurrent) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  const [picture, name] = button.children;
  picture.onerror = () => {
    item.unshowable = true;
    picture.classList.add("blank");
  };
  if (picture.src !== item.url) picture.src = item.url;
  picture.classList.toggle("blank", Boolean(item.unshowable));
  name.textContent = item.name;
  says.firstChild.replaceChildren(sign(outcome));
  says.lastChild.textContent = outcome === "failed" ? item.failure.title : WORDS[outcome];
  const probability = item.answer?.probability ?? null;
  share.firstChild.classList.toggle("known", probability !== null);
  share.firstChild.style.setProperty("--probability", probability ?? 0);
  share.firstChild.style.setProperty("--threshold", point?.threshold ?? 0.5);
  share.lastChild.textContent = probability === null ? "–" : percent(probability);
}

export function tally(items, point) {
  const count = (outcome) => items.filter((item) => outcomeOf(item, point) === outcome).length;
  const parts = [
    [count("pneumonia"), "suspected"],
    [count("normal"), "normal"],
    [count("refused"), "not judged"],
    [count("failed"), "without answer"],
    [count("asking"), "waiting"],
  ];
  const said = parts.filter(([number]) => number).map(([number, word]) => `${number} ${word}`);
  return `${items.length} films: ${said.join(", ")}`;
}
