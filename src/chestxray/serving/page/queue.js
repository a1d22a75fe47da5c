// Films on their way to the service: a few at a time, in their order. A busy service is waited for as long as it says, a
// missing key holds all, and a film that fails does not stop the rest.

import { Failure } from "./api.js";

const AT_ONCE = 4;
const TRIES = 8; // of one film at a service that stays busy
const LONG = 5_000; // milliseconds after which the page says that it takes long

/** classify(item): gives what is added to the item, or throws; changed(item): called after each change of one. */
export function makeQueue(classify, changed) {
  const waiting = [];
  let asking = 0;
  let pause = 0; // timer; 0: none
  const queue = { held: null, add, clear, release };

  function add(items) {
    waiting.push(...items);
    pump();
  }

  function clear() {
    waiting.length = 0;
    queue.held = null;
  }

  /** Go on after a key was given. */
  function release() {
    queue.held = null;
    pump();
  }

  function pump() {
    while (waiting.length && asking < AT_ONCE && !pause && !queue.held) run(waiting.shift());
  }

  async function run(item) {
    asking += 1;
    item.busy = null;
    const slow = setTimeout(() => {
      item.slow = true;
      changed(item);
    }, LONG);
    try {
      Object.assign(item, await classify(item));
    } catch (error) {
      fail(item, asFailure(error));
    }
    clearTimeout(slow);
    item.slow = false;
    asking -= 1;
    changed(item);
    pump();
  }

  function fail(item, failure) {
    item.tries = (item.tries ?? 0) + 1;
    if (failure.key) queue.held = failure;
    else if (failure.wait === null || item.tries >= TRIES) {
      item.failure = failure;
      return;
    } else {
      item.busy = failure;
      rest(failure.wait);
    }
    waiting.unshift(item);
  }

  function rest(seconds) {
    clearTimeout(pause);
    pause = setTimeout(() => {
      pause = 0;
      pump();
    }, 1000 * seconds);
  }

  return queue;
}

export function asFailure(error) {
  if (error instanceof Failure) return error;
  if (["NotReadableError", "NotFoundError"].includes(error.name)) {
    return new Failure("The file cannot be read", "It was moved or changed. Choose it again.");
  }
  return new Failure("The page failed", "Reload it and try again.", { detail: String(error), retry: true });
}
