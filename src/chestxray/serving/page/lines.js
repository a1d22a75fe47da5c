// A heat map as lines in place of areas: where the alpha of the overlay, which rises with the evidence, passes a level.

import { make } from "./dom.js";

const LEVELS = [101, 122, 145]; // alpha of the overlay at a quarter, a half and three quarters of its scale

/** overlay: an image that has loaded; returns the address of another one. */
export function linesOf(overlay) {
  const canvas = make("canvas", { width: overlay.naturalWidth, height: overlay.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(overlay, 0, 0);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  const level = (at) => LEVELS.filter((one) => image.data[4 * at + 3] >= one).length;
  const levels = Uint8Array.from({ length: canvas.width * canvas.height }, (_, at) => level(at));
  for (let at = 0; at < levels.length; at += 1) {
    const isEdge = [1, 2, canvas.width, 2 * canvas.width].some((step) => (levels[at + step] ?? levels[at]) !== levels[at]);
    image.data[4 * at + 3] = isEdge ? 255 : 0;
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
