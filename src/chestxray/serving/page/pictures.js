// What the browser can show of a file. dicom.js is fetched when the first file needs it.

import { drawn } from "./api.js";

const THUMB = [104, 80]; // pixels, twice what the list shows
const UNKNOWN = "The browser cannot draw this file.";
const drawings = new WeakMap(); // what the service drew, by file: the list and the stage ask for it once

/** Returns {blob, look} or {deep, look}, as in dicom.js, or {reason}: why there is no picture. */
export async function pictureOf(file) {
  if (/^image\/(jpeg|png|webp|gif|bmp)$/.test(file.type)) return { blob: file };
  if (/^image\/tiff$|\.tiff?$/i.test(file.type || file.name)) return drawnPicture(file, UNKNOWN);
  try {
    if (!(await looksLikeDicom(file))) return file.type.startsWith("text/") ? { reason: UNKNOWN } : { blob: file };
    const { readDicom } = await import("./dicom.js");
    return readDicom(await file.arrayBuffer());
  } catch (error) {
    const reason = error.name === "RangeError" ? "This DICOM file is damaged." : error.message || UNKNOWN;
    return error.name === "RangeError" ? { reason } : drawnPicture(file, reason);
  }
}

/** What the service decoded, or the reason where it cannot, either. */
function drawnPicture(file, reason) {
  if (!drawings.has(file)) {
    drawings.set(file, drawn(file).then((blob) => ({ blob }), () => drawings.delete(file) && { reason }));
  }
  return drawings.get(file);
}

async function looksLikeDicom(file) {
  if (/\.(dcm|dicom)$/i.test(file.name)) return true;
  return (await file.slice(128, 132).text()) === "DICM";
}

/** A small canvas of a picture, cropped to the shape of the list; null where it cannot be drawn. */
export async function thumbOf(file) {
  const { blob, deep, look } = await pictureOf(file);
  const canvas = document.createElement("canvas");
  try {
    if (deep) (await import("./dicom.js")).drawDeep(deep, canvas, look);
    const source = deep ? canvas : blob;
    const bitmap = await createImageBitmap(source, { resizeWidth: THUMB[0], resizeQuality: "medium" });
    Object.assign(canvas, { width: THUMB[0], height: THUMB[1] });
    const context = canvas.getContext("2d");
    if (look?.inverted && !deep) context.filter = "invert(1)";
    context.drawImage(bitmap, 0, (THUMB[1] - bitmap.height) / 2);
    bitmap.close();
    return canvas;
  } catch {
    return null;
  }
}
