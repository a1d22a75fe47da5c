// The page about the model: what /v1/model says, and the model card.

import { describe, useKey } from "./api.js";
import { markdown } from "./card.js";
import { $, make } from "./dom.js";
import { abbreviated, measured, percent, splitName } from "./words.js";

async function show() {
  try {
    fill(await describe());
    $("#trouble").textContent = "";
  } catch (error) {
    $("#key-form").hidden = !error.key;
    $("#trouble").textContent = error.key ? "" : `${error.title ?? error}. ${error.advice ?? ""}`;
  }
}

function fill({ bundle, model_sha256: hash, card, notice }) {
  const { height, width } = bundle.preprocessing;
  const facts = [
    ["Model", `${bundle.name}, network ${bundle.network}, ${bundle.parameters.toLocaleString("en")} parameters`],
    ["Input", `${height} × ${width} pixels, grey`],
    ["Exported", `${bundle.created.slice(0, 10)}, chestxray ${bundle.package_version}`],
    ["Graph", `SHA-256 ${abbreviated(hash)}`, hash],
    ["Training films", `fingerprint ${abbreviated(bundle.training_data)}`, bundle.training_data],
  ];
  $("#intended").textContent = bundle.intended_use.replace(notice, "").trim();
  $("#operating").replaceChildren(...bundle.operating_points.map((point) => row(point, bundle.default_operating_point)));
  $("#facts").replaceChildren(
    ...facts.map(([name, text, title = null]) => make("div", {}, make("dt", {}, name), make("dd", { title }, text))),
  );
  $("#card").replaceChildren(...(card ? markdown(card) : [make("p", {}, "This bundle has no model card.")]));
}

function row(point, usual) {
  const small = (text) => make("small", {}, text);
  const share = ({ share: text, hits, count, interval }) =>
    [make("b", {}, text), small(`${hits} of ${count}`), small(interval)];
  return make(
    "tr",
    {},
    make("th", { scope: "row" }, make("code", {}, point.name), point.name === usual ? " (usual)" : ""),
    make("td", {}, percent(point.threshold), small(splitName(point))),
    make("td", {}, ...share(measured(point.sensitivity, point.positives))),
    make("td", {}, ...share(measured(point.specificity, point.negatives))),
  );
}

$("#key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("#key").value);
  $("#key-form").reset();
  $("#key-form").hidden = true;
  show();
});
show();
