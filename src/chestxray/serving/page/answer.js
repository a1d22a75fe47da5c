// The answer beside the film: in words, on a bar, with what the operating point reached where it was chosen.

import { $, make, sign } from "./dom.js";
import { HEADLINES, SPLITS, abbreviated, bytes, measured, milliseconds, percent, verdict } from "./words.js";

const panel = $("#answer");

/** item: a case or null; point: the chosen operating point or null; retry: called with the case. */
export function showAnswer(item, point, retry) {
  const outcome = outcomeOf(item, point);
  panel.dataset.outcome = outcome;
  $("#sign").replaceChildren(sign(outcome));
  $("#headline").textContent = headline(outcome);
  $("#because").replaceChildren(...because(outcome, item, point));
  const again = $("#retry");
  again.hidden = !(outcome === "failed" && item.failure.retry);
  again.onclick = () => retry(item);
  showBar(item?.answer?.probability ?? null, point);
  showFacts(item);
}

export function outcomeOf(item, point) {
  if (!item) return "empty";
  if (item.failure) return "failed";
  if (!item.answer || !point) return "asking";
  return verdict(item.answer, point);
}

/** One sentence for those who listen instead of look. */
export function spoken(item, point) {
  const outcome = outcomeOf(item, point);
  if (outcome === "failed") return `${item.name}: ${item.failure.title}. ${item.failure.advice}`;
  if (outcome === "refused") return `${item.name}: ${HEADLINES.refused}. ${item.answer.gate.reason}`;
  return `${item.name}: ${HEADLINES[outcome]}. Probability ${percent(item.answer.probability)}.`;
}

function headline(outcome) {
  return { ...HEADLINES, empty: "No film yet", asking: "Reading the film" }[outcome];
}

function because(outcome, item, point) {
  switch (outcome) {
    case "empty":
      return ["Choose, drop or paste a frontal chest film. The answer appears here."];
    case "asking":
      return ["This takes a moment."];
    case "failed":
      return [
        make("strong", {}, `${item.failure.title}. `),
        item.failure.advice,
        item.failure.detail ? make("span", { class: "detail" }, sentence(item.failure.detail)) : "",
        item.failure.request ? make("span", { class: "detail" }, `Request ${item.failure.request}`) : "",
      ];
    case "refused":
      return [`${sentence(item.answer.gate.reason)} No probability is given.`];
    case "pneumonia":
      return [`The probability reaches the threshold of the operating point “${point.name}”.`];
    default:
      return [`The probability stays below the threshold of the operating point “${point.name}”.`];
  }
}

function sentence(text) {
  const trimmed = text.trim().replace(/^this film: /, "");
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

function showBar(probability, point) {
  const bar = $("#bar");
  const known = probability !== null;
  bar.classList.toggle("known", known);
  bar.style.setProperty("--probability", probability ?? 0);
  bar.style.setProperty("--threshold", point?.threshold ?? 0.5);
  $("#probability").textContent = known ? percent(probability) : "–";
  $("#threshold").textContent = point ? `threshold ${percent(point.threshold)}` : "";
  const meter = $("#meter");
  meter.setAttribute("aria-valuenow", known ? (100 * probability).toFixed(1) : "0");
  const against = point ? `; the threshold is ${percent(point.threshold)}` : "";
  meter.setAttribute("aria-valuetext", (known ? percent(probability) : "not known") + against);
}

function showFacts(item) {
  const { answer, ms, size } = item ?? {};
  $("#fact-film").textContent = answer ? `${abbreviated(answer.film_sha256)} · ${bytes(size)}` : "–";
  $("#fact-film").title = answer ? `SHA-256 ${answer.film_sha256}` : "";
  $("#fact-time").textContent = ms ? `${milliseconds(ms)}, there and back` : "–";
}

/** The switch between operating points; change(point) is called at once with the chosen one. */
export function offerPoints(points, chosen, change) {
  const radios = points.map((point) =>
    make(
      "label",
      { class: "point" },
      make("input", { type: "radio", name: "point", value: point.name, checked: point === chosen, onchange: () => change(point) }),
      make("span", {}, point.name, make("small", {}, percent(point.threshold))),
    ),
  );
  $("#points").replaceChildren(...radios);
}

export function showPoint(point) {
  const split = SPLITS[point.chosen_on] ?? point.chosen_on;
  const row = (name, number, of) =>
    make(
      "div",
      { class: "measure" },
      make("dt", {}, name),
      make(
        "dd",
        {},
        make("b", {}, number.share),
        make("span", {}, `${number.hits} of ${number.count} ${of}`),
        make("span", {}, `95% interval ${number.interval}`),
      ),
    );
  $("#measures").replaceChildren(
    row("Sensitivity", measured(point.sensitivity, point.positives), "with pneumonia"),
    row("Specificity", measured(point.specificity, point.negatives), "normal"),
  );
  $("#measured-on").textContent = `Measured on the ${split} that it was chosen on; on other films expect less.`;
}
