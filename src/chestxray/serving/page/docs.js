// The service's own OpenAPI document, readable without anything from another origin.

import { API } from "./config.js";
import { $, make } from "./dom.js";

const base = API || location.origin;

function operation(path, method, { summary, description = "", parameters = [], requestBody, responses }) {
  const rows = [
    ...parameters.map((parameter) => [`?${parameter.name}=`, parameterText(parameter)]),
    ...(requestBody ? [["body", Object.keys(requestBody.content).join(", ")]] : []),
    ...Object.entries(responses).map(([status, response]) => [status, responseText(response)]),
  ];
  const body = rows.map(([name, text]) => make("tr", {}, make("td", {}, make("code", {}, name)), make("td", {}, text)));
  return make(
    "article",
    {},
    make("h3", {}, make("code", {}, `${method.toUpperCase()} ${path}`), make("span", {}, summary)),
    description ? make("p", {}, description.replace(/`/g, "").replace(/([^\n])\n(?!\n)/g, "$1 ")) : null,
    make("table", {}, make("tbody", {}, ...body)),
  );
}

function parameterText({ schema, description = "" }) {
  const values = schema.enum ? schema.enum.join(", ") : schema.type;
  return description ? `${description} One of: ${values}` : values;
}

function responseText({ description, content = {} }) {
  const types = Object.keys(content);
  return types.length ? `${description} (${types.join(", ")})` : description;
}

function problem({ name, status, title, remedy }) {
  const cells = [make("code", {}, name), String(status), title, remedy];
  return make("tr", { id: name }, ...cells.map((cell) => make("td", {}, cell)));
}

$("#openapi").href = `${base}/openapi.json`;
const documentation = await (await fetch(`${API}/openapi.json`)).json();
$("#description").textContent = documentation.info.description;
$("#call").textContent = `curl --data-binary @film.jpg -H "Content-Type: image/jpeg" ${base}/v1/predict`;
$("#operations").replaceChildren(
  ...Object.entries(documentation.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, details]) => operation(path, method, details)),
  ),
);
$("#problems").replaceChildren(...documentation["x-problems"].map(problem));
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
