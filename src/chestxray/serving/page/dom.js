// The two functions through which everything reaches the document: as text, never as markup.

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
export function sign(outcome) {
  return document.importNode($(`#sign-${outcome}`).content, true);
}
