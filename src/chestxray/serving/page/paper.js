// What is saved or printed: one film's answer as a picture (the film with its map, and under it what a reader needs beside
// it), and the worklist as a table.

import { make } from "./dom.js";
import { HEADLINES, abbreviated, percent, splitName } from "./words.js";

const WIDTH = 1200; // pixels
const LINE = 34;

/** film: a canvas or null; returns a canvas. */
export function drawAnswer(film, item, point, outcome) {
  const { answer, name } = item;
  const lines = linesOf(answer, point);
  const height = film ? Math.round((WIDTH / film.width) * film.height) : 0;
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: WIDTH, height: height + 150 + LINE * lines.length });
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (film) context.drawImage(film, 0, 0, WIDTH, height);
  context.fillStyle = "#17191b";
  const font = getComputedStyle(document.body).fontFamily;
  const write = (text, y, size) => {
    context.font = `${size > 30 ? 600 : 400} ${size}px ${font}`;
    context.fillText(text, 40, y, WIDTH - 80);
  };
  write(HEADLINES[outcome], height + 64, 40);
  write(name, height + 108, 24);
  lines.forEach((line, index) => write(line, height + 152 + LINE * index, 24));
  return canvas;
}

function linesOf({ gate, probability, notes = [], film_sha256: sha256, model, model_sha256: graph, notice }, point) {
  const said = gate.accepted
    ? [
        `Calibrated probability of pneumonia ${percent(probability)}`,
        `Operating point ${point.name}: suspected from ${percent(point.threshold)} (sensitivity ${percent(point.sensitivity)} of ` +
          `${point.positives}, specificity ${percent(point.specificity)} of ${point.negatives} ${splitName(point)})`,
      ]
    : [gate.reason];
  return [
    ...said,
    ...notes.map((note) => `Note: ${note}`),
    `Model ${model}, ${abbreviated(graph)}; film SHA-256 ${abbreviated(sha256)}; ${stamp()}`,
    notice,
  ];
}

const stamp = () => `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`;

/** rows: as listed() of worklist.js gives them; returns a section to be printed. */
export function tableOf(rows, title, point) {
  const model = rows.find(({ film }) => film.answer)?.film.answer;
  const cells = ({ film, words }) => [
    film.name,
    words,
    film.answer?.gate.accepted ? percent(film.answer.probability) : "–",
    film.answer?.film_sha256.slice(0, 12) ?? "",
  ];
  const row = (tag, texts) => make("tr", {}, ...texts.map((text) => make(tag, {}, text)));
  return make(
    "section",
    { class: "paper" },
    make("h2", {}, "Worklist"),
    make("p", {}, title),
    point && make("p", {}, `Operating point ${point.name}: suspected from ${percent(point.threshold)}`),
    model ? make("p", {}, `Model ${model.model}, ${abbreviated(model.model_sha256)}; ${stamp()}`) : null,
    make(
      "table",
      {},
      make("thead", {}, row("th", ["Film", "Answer", "Probability", "SHA-256"])),
      make("tbody", {}, ...rows.map((one) => row("td", cells(one)))),
    ),
  );
}
