// The two questions that the page asks, and what went wrong in words that help.

import { API } from "./config.js";
import { bytes } from "./words.js";

const PATIENCE = 60_000; // milliseconds

/** An answer that did not come. `retry`: whether sending the same film again may help. */
export class Failure extends Error {
  constructor(title, advice, { detail = "", retry = false, request = "" } = {}) {
    super(title);
    Object.assign(this, { title, advice, detail, retry, request });
  }
}

const BY_STATUS = {
  408: ["The film took too long to arrive", "Send it again over a better connection.", true],
  413: ["This film is too large", "Export a smaller copy, for instance as JPEG.", false],
  415: ["This is not a film that can be read here", "Send a JPEG or PNG file of one chest film.", false],
  422: ["This film cannot be read", "The file is damaged or incomplete. Copy or export it again.", false],
  503: ["The service is busy", "Too many films at once. Try again in a moment.", true],
};
const OTHERWISE = ["The service failed", "Try again. If it stays so, tell whoever runs the service the request id.", true];

/** What judges: the bundle, its card, the limits. */
export async function describe() {
  return (await ask("/v1/model")).json();
}

/** Judge one film. Returns {answer, ms}; ms is the whole way there and back. */
export async function predict(film, { heatmap = false, limit = Infinity } = {}) {
  if (film.size > limit) throw tooLarge(film.size, limit);
  const type = ["image/jpeg", "image/png"].includes(film.type) ? film.type : "application/octet-stream";
  const began = performance.now();
  const response = await ask(`/v1/predict${heatmap ? "?heatmap=1" : ""}`, {
    method: "POST",
    headers: { "Content-Type": type },
    body: film,
  });
  const answer = await response.json();
  return { answer, ms: performance.now() - began };
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(API + path, { ...options, signal: AbortSignal.timeout(PATIENCE) });
  } catch (error) {
    if (error.name === "TimeoutError") {
      throw new Failure("The service is too slow", "No answer within a minute. Try again.", { retry: true });
    }
    throw new Failure("The service does not answer", "Is it running, and is this machine online? Then try again.", {
      retry: true,
    });
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  const problem = await response.json().catch(() => ({}));
  const [title, advice, retry] = BY_STATUS[response.status] ?? OTHERWISE;
  const request = response.headers.get("X-Request-Id") ?? "";
  return new Failure(title, advice, { detail: problem.detail ?? `HTTP ${response.status}`, retry, request });
}

function tooLarge(size, limit) {
  const [title, advice] = BY_STATUS[413];
  return new Failure(title, advice, { detail: `It has ${bytes(size)}; the limit is ${bytes(limit)}.` });
}
