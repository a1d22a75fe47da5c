// The functions through which everything reaches the document: as text, never as markup.

export const $ = (selector, within = document) => within.querySelector(selector);

/** An element: make("td", {class: "number"}, "12"). Children are nodes or text; null is left out. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** The drawing that belongs to an outcome: each has a shape of its own, so that colour is never the only sign. */
export const sign = (outcome) => document.importNode($(`#sign-${outcome}`).content, true);

/** A drawing of one line, 24 by 24. */
export function icon(line) {
  const [svg, path] = ["svg", "path"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  svg.setAttribute("viewBox", "0 0 24 24");
  path.setAttribute("d", line);
  svg.append(path);
  return svg;
}

/** For those who listen instead of look. */
export function say(text) {
  $("#live").textContent = text;
}
