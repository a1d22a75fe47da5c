// The answer beside the film: in words, on a bar, with what the operating point reached where it was chosen.

import { $, make, sign } from "./dom.js";
import { HEADLINES, abbreviated, bytes, measured, milliseconds, percent, splitName, verdict } from "./words.js";

const SLOW = "This takes longer than usual: the service or the connection is slow. You need not do anything.";

const panel = $("#answer");

/** item: a case or undefined; point: the chosen operating point or null; held: the failure that holds all, or null. */
export function showAnswer(item, point, held, retry) {
  const outcome = held && !item?.answer ? "failed" : outcomeOf(item, point);
  const failure = outcome === "failed" ? (item?.failure ?? held) : null;
  panel.dataset.outcome = outcome;
  $("#sign").replaceChildren(sign(outcome));
  $("#headline").textContent = failure?.key ? failure.title : HEADLINES[outcome];
  $("#because").replaceChildren(...because(outcome, item, point, failure));
  $("#retry").hidden = !failure?.retry;
  $("#retry").onclick = () => retry(item);
  $("#key-form").hidden = !failure?.key;
  showBar(item?.answer?.probability ?? null, point);
  showFacts(item);
}

export function outcomeOf(item, point) {
  if (!item) return "empty";
  if (item.failure) return "failed";
  if (!item.answer || !point) return "asking";
  return verdict(item.answer, point);
}

/** What stands under a film beside another: {kind, words}. */
export function captionOf(item, point) {
  const kind = outcomeOf(item, point);
  const classified = item?.answer?.probability ?? null;
  return { kind, words: HEADLINES[kind] + (classified === null ? "" : `, ${percent(classified)}`) };
}

/** One sentence for those who listen instead of look. */
export function spoken(item, point) {
  const outcome = outcomeOf(item, point);
  if (outcome === "failed") return `${item.name}: ${item.failure.title}. ${item.failure.advice}`;
  if (outcome === "refused") return `${item.name}: ${HEADLINES.refused}. ${item.answer.gate.reason}`;
  if (outcome === "asking") return `${item.name}: ${HEADLINES.asking}`;
  return `${item.name}: ${HEADLINES[outcome]}. Probability ${percent(item.answer.probability)}.`;
}

function because(outcome, item, point, failure) {
  switch (outcome) {
    case "empty":
      return ["Choose, drop or paste a frontal chest film. The answer appears here."];
    case "asking":
      if (item.busy) return [`The service is busy. The page tries again automatically, after ${item.busy.wait.toFixed(0)} s.`];
      return [item.slow ? SLOW : "This takes a moment."];
    case "failed":
      return [
        failure.key ? "" : make("strong", {}, `${failure.title}. `),
        failure.advice,
        failure.detail ? make("span", { class: "detail" }, sentence(failure.detail)) : "",
        failure.request ? make("span", { class: "detail" }, `Request ${failure.request}`) : "",
      ];
    case "refused":
      return [`${sentence(item.answer.gate.reason)} No probability is given.`, ...notes(item)];
    case "pneumonia":
      return [`Reaches the threshold of the operating point “${nameOf(point)}”.`, ...notes(item)];
    default:
      return [`Stays below the threshold of the operating point “${nameOf(point)}”.`, ...notes(item)];
  }
}

/** What a reader of the answer has to know of the film: that its age is not stated, what was ignored in its header. */
function notes({ answer }) {
  return (answer.notes ?? []).map((note) => make("span", { class: "detail note" }, `Note: ${note}.`));
}

export function sentence(text) {
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
  const { answer, ms, file } = item ?? {};
  $("#fact-film").textContent = answer ? `${abbreviated(answer.film_sha256)} · ${bytes(file.size)}` : "–";
  $("#fact-film").title = answer ? `SHA-256 ${answer.film_sha256}` : "";
  $("#fact-time").textContent = ms ? milliseconds(ms) : "–";
}

/** Points of one threshold are one, under all their names. */
function distinct(points) {
  const found = new Map();
  for (const point of points) {
    if (found.has(point.threshold)) found.get(point.threshold).names.push(point.name);
    else found.set(point.threshold, Object.assign(point, { names: [point.name] }));
    point.names = found.get(point.threshold).names;
  }
  return [...found.values()];
}

const nameOf = (point) => (point.names ?? [point.name]).join(", ");

/** What answers, and the switch between its operating points; change(point) is called at once with the chosen one. */
export function showModel({ bundle, model_sha256: hash }, chosen, change) {
  const radios = distinct(bundle.operating_points).map((point) => {
    const checked = point.threshold === chosen.threshold;
    const input = { type: "radio", name: "point", value: point.name, checked, onchange: () => change(point) };
    const words = make("span", {}, nameOf(point), make("small", {}, percent(point.threshold)));
    return make("label", { class: "point" }, make("input", input), words);
  });
  $("#points").replaceChildren(...radios);
  $("#fact-model").textContent = `${bundle.name} · ${abbreviated(hash)}`;
  $("#fact-model").title = `Graph SHA-256 ${hash}`;
  $("#fact-version").textContent = `chestxray ${bundle.package_version}, bundle version ${bundle.version}`;
}

export function showPoint(point) {
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
    row("Specificity", measured(point.specificity, point.negatives), "labelled normal"),
  );
  $("#measured-on").textContent = `Measured on the ${splitName(point)} that it was chosen on. On other films expect less.`;
}
