// The two questions that the page asks, and what went wrong in words that help.

import { API } from "./config.js";

export const PATIENCE = 60_000; // milliseconds
const LARGE = 1e6; // bytes of a film, above which the page shows how much of it has left
const LONGEST_WAIT = 60; // seconds of Retry-After that are waited for
const USUAL_WAIT = 2; // seconds, where a busy service does not say

let key = ""; // in memory only

/**
 * An answer that did not come. retry: whether sending the same film again may help; wait: seconds after which a busy
 * service asks to be tried again; key: whether it wants a key.
 */
export class Failure extends Error {
  constructor(title, advice, { detail = "", retry = false, request = "", wait = null, key: wanted = false } = {}) {
    super(title);
    Object.assign(this, { title, advice, detail, retry, request, wait, key: wanted });
  }
}

export const BY_STATUS = {
  401: ["This service wants a key", "Ask its operator for one, and enter it here.", false],
  403: ["This page may not ask the service", "Ask the operator to allow the address of this page.", false],
  408: ["The film took too long to arrive", "Send it again over a better connection.", true],
  413: ["This film is too large", "Export a smaller copy, for instance as JPEG.", false],
  415: ["This is not a film that can be read here", "Send a JPEG, PNG, DICOM or TIFF file of one chest film.", false],
  404: ["The service has no such address", "It may be older than this page. Reload the page.", false],
  422: ["This film cannot be read", "The file is damaged or incomplete. Copy or export it again.", false],
  429: ["Too many films in a short time", "Wait a little, then try again.", true],
  503: ["The service is busy", "Too many films at once. Try again in a moment.", true],
};
const OTHERWISE = ["The service failed", "Try again. If it fails again, tell the operator the request id.", true];

export function useKey(text) {
  key = text;
}

/** The model: the bundle, its card, the limits. */
export async function describe() {
  return (await ask("/v1/model")).json();
}

/** Classify one film; model: what describe() gave. Returns {answer, ms}; ms is the whole way there and back. */
export async function predict(film, model, heatmap = false) {
  if (film.size > Math.min(LARGE, model.max_body)) return (await import("./send.js")).predictLarge(film, model, heatmap);
  const began = performance.now();
  const response = await ask(`/v1/predict${heatmap ? "?heatmap=1" : ""}`, {
    method: "POST",
    headers: { "Content-Type": typeOf(film) },
    body: film,
  });
  const answer = await response.json();
  return { answer, ms: performance.now() - began };
}

/** The media type that a film is sent as: what browsers take other files for is not passed on. */
export const typeOf = ({ type }) => (["image/jpeg", "image/png"].includes(type) ? type : "application/octet-stream");

/** The film as the service decoded it: a PNG of 8 grey bits. */
export async function drawn(film) {
  const headers = { "Content-Type": "application/octet-stream" };
  return (await ask("/v1/film", { method: "POST", headers, body: film })).blob();
}

export async function ask(path, options = {}, by = fetch) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await by(API + path, { ...options, headers, signal: AbortSignal.timeout(PATIENCE) });
  } catch (error) {
    throw silence(error);
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** Why nobody answered. */
export function silence(error) {
  if (error.name === "TimeoutError") {
    return new Failure("The service is too slow", "No answer within a minute. Try again.", { retry: true });
  }
  return navigator.onLine
    ? new Failure("The service does not answer", "Is it still running? Then try again.", { retry: true })
    : new Failure("You are offline", "Films are sent again automatically when the connection is back.", { retry: true });
}

async function failureOf(response) {
  const problem = await response.json().catch(() => ({}));
  const { status, headers } = response;
  const [title, advice, retry] = BY_STATUS[status] ?? OTHERWISE;
  const request = headers.get("X-Request-Id") ?? "";
  const detail = problem.detail ?? `HTTP ${status}`;
  return new Failure(title, advice, { detail, retry, request, wait: waitOf(status, headers), key: status === 401 });
}

/** Seconds until a busy service wants to be asked again; null where it is not busy or takes too long. */
function waitOf(status, headers) {
  if (![429, 503].includes(status)) return null;
  const after = headers.get("Retry-After");
  const seconds = /^\d+$/.test(after ?? "") ? Number(after) : after ? (Date.parse(after) - Date.now()) / 1000 : USUAL_WAIT;
  return seconds <= LONGEST_WAIT ? Math.max(0.1, seconds) : null;
}
