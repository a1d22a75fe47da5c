// What the browser can show of a file. dicom.js is fetched when the first file needs it.

const THUMB = [104, 80]; // pixels, twice what the list shows
const UNKNOWN = "The browser cannot draw this file.";

/** Returns {blob, look} or {deep, look}, as in dicom.js, or {reason}: why there is no picture. */
export async function pictureOf(file) {
  if (/^image\/(jpeg|png|webp|gif|bmp)$/.test(file.type)) return { blob: file };
  if (/^image\/tiff$|\.tiff?$/i.test(file.type || file.name)) return { reason: "A browser cannot draw TIFF films. The service judges it all the same." };
  try {
    if (!(await looksLikeDicom(file))) return file.type.startsWith("text/") ? { reason: UNKNOWN } : { blob: file };
    const { readDicom } = await import("./dicom.js");
    return readDicom(await file.arrayBuffer());
  } catch (error) {
    return { reason: error.name === "RangeError" ? "This DICOM file is damaged." : error.message || UNKNOWN };
  }
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
