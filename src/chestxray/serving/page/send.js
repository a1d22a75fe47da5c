// Large films: how much of them has left is shown, which fetch does not tell, and what a request cannot hold goes by the
// form of /v1/upload. Fetched with the first such film.

import { BY_STATUS, Failure, PATIENCE, ask, silence, typeOf } from "./api.js";
import { $, make } from "./dom.js";
import { bytes } from "./words.js";

/** As predict() of api.js. */
export async function predictLarge(film, { max_body: body, max_upload: most = body }, heatmap) {
  if (film.size > most) throw tooLarge(film.size, most);
  const began = performance.now();
  const query = heatmap ? "heatmap=1" : "";
  const response =
    film.size > body
      ? await ask(`/v1/predict?key=${await sendByForm(film)}&${query}`.replace(/&$/, ""), { method: "POST" })
      : await ask(`/v1/predict${query && `?${query}`}`, { method: "POST", headers: { "Content-Type": typeOf(film) }, body: film }, send);
  return { answer: await response.json(), ms: performance.now() - began };
}

function tooLarge(size, limit) {
  const [title, advice] = BY_STATUS[413];
  return new Failure(title, advice, { detail: `It has ${bytes(size)}; the limit is ${bytes(limit)}.` });
}

/** Send a film to where the service says. Returns the key that it lies under. */
async function sendByForm(film) {
  const { url, fields, key } = await (await ask("/v1/upload")).json();
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("file", film);
  let response;
  try {
    response = await send(url, { method: "POST", body });
  } catch (error) {
    throw silence(error);
  }
  if (response.ok) return key;
  const detail = `The store of large films answered ${response.status}`;
  throw new Failure("The film could not be sent", "Try again.", { detail, retry: true });
}

/** As fetch; rejects with a TimeoutError where nothing moves for as long as PATIENCE. */
function send(url, { method, headers = {}, body }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const film = Symbol();
    let timer;
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(() => request.abort(), PATIENCE);
    };
    request.open(method, url);
    request.responseType = "blob";
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => {
      wait();
      show(film, loaded, total);
    };
    request.upload.onloadend = () => show(film, 1, 1);
    request.onload = () => resolve(responseOf(request));
    request.onerror = () => reject(new TypeError("no answer"));
    request.onabort = () => reject(new DOMException("no answer in time", "TimeoutError"));
    request.onloadend = () => clearTimeout(timer);
    wait();
    request.send(body);
  });
}

function responseOf(request) {
  const lines = request.getAllResponseHeaders().trim().split("\r\n").filter(Boolean);
  const headers = lines.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
  const { status } = request;
  return new Response([204, 304].includes(status) ? null : request.response, { status, headers });
}

// ------------------------------------------------------------------ one bar for all that is on its way

const leaving = new Map();
const bar = make("progress", { class: "sending", "aria-label": "Sent", hidden: true });
$("#because").after(bar);

function show(film, loaded, total) {
  if (loaded < total) leaving.set(film, [loaded, total]);
  else leaving.delete(film);
  const [done, all] = [...leaving.values()].reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
  bar.hidden = !all;
  Object.assign(bar, { max: all || 1, value: done });
}
