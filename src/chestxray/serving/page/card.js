// A model card, in the little Markdown that cards use, as elements.

import { make } from "./dom.js";

/** Headings, lists, tables, quotations, code and paragraphs. Everything else stays as it was written. */
export function markdown(text) {
  const nodes = [];
  const lines = text.replace(/\r/g, "").replace(/^---\n[^]*?\n---\n/, "").replace(/<!--[^]*?-->/g, "").split("\n"); // less YAML and comments
  while (lines.length) {
    const line = lines[0];
    if (!line.trim()) lines.shift();
    else if (/^#{1,6} /.test(line)) nodes.push(heading(lines.shift()));
    else if (line.startsWith("```")) nodes.push(fence(lines));
    else if (line.startsWith(">")) nodes.push(quotation(lines));
    else if (/^\s*[-*] /.test(line)) nodes.push(list(lines));
    else if (line.trim().startsWith("|")) nodes.push(table(lines, nodes.filter((node) => node.className === "scroll").length + 1));
    else nodes.push(make("p", {}, ...inline(taken(lines, isText).join(" "))));
  }
  return nodes;
}

const isText = (line) => line.trim() && !/^(#{1,6} |```|>|\s*[-*] |\s*\|)/.test(line);

function taken(lines, wanted) {
  const end = lines.findIndex((line) => !wanted(line));
  return lines.splice(0, end === -1 ? lines.length : Math.max(1, end));
}

function heading(line) {
  const [, marks, words] = /^(#+) (.*)$/.exec(line);
  return make(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(words));
}

function fence(lines) {
  lines.shift();
  const code = taken(lines, (line) => !line.startsWith("```"));
  lines.shift();
  return make("pre", {}, code.join("\n"));
}

function quotation(lines) {
  const words = taken(lines, (line) => line.startsWith(">")).map((line) => line.replace(/^>\s?/, ""));
  return make("blockquote", {}, ...markdown(words.join("\n")));
}

function list(lines) {
  const items = [];
  for (const line of taken(lines, (next) => /^(\s*[-*] |\s+\S)/.test(next))) {
    if (/^\s*[-*] /.test(line)) items.push(line.replace(/^\s*[-*] /, ""));
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return make("ul", {}, ...items.map((item) => make("li", {}, ...inline(item))));
}

function table(lines, number) {
  const rows = taken(lines, (line) => line.trim().startsWith("|"))
    .map((line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()))
    .filter((cells) => !cells.every((cell) => /^:?-+:?$/.test(cell)));
  const [head, ...body] = rows;
  const row = (tag) => (cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, ...inline(cell))));
  const scroll = { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table ${number}` };
  return make("div", scroll, make("table", {}, make("thead", {}, row("th")(head)), make("tbody", {}, ...body.map(row("td")))));
}

function inline(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]+`)/).filter(Boolean).map((part) => {
    if (part.startsWith("**") && part.endsWith("**")) return make("strong", {}, part.slice(2, -2));
    if (part.startsWith("`") && part.endsWith("`")) return make("code", {}, part.slice(1, -1));
    return part;
  });
}

