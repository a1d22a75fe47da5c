// Just enough of DICOM to show a film at once: uncompressed grey pixels of 8 or 16 bits, and baseline JPEG, which the
// browser draws. Everything else is for the service, which reads it all; here it ends in Undrawable.
// Source: DICOM PS3.5 sections 7.1, 7.5, A.4; PS3.3 C.11.1.1, C.11.2.1.2, C.7.6.3.1.2.

export class Undrawable extends Error {}

const IMPLICIT = "1.2.840.10008.1.2";
const EXPLICIT = "1.2.840.10008.1.2.1";
const BIG_ENDIAN = "1.2.840.10008.1.2.2";
const BASELINE = "1.2.840.10008.1.2.4.50";
const COMPRESSED = [
  ["1.2.840.10008.1.2.1.99", "deflated"],
  ["1.2.840.10008.1.2.4.8", "JPEG-LS"],
  ["1.2.840.10008.1.2.4.9", "JPEG 2000"],
  ["1.2.840.10008.1.2.4", "JPEG"],
  ["1.2.840.10008.1.2.5", "RLE"],
];
const LONG = new Set(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]); // 32-bit length
const PIXELS = 0x7fe00010;
const ALL_THE_SAME = "The service classifies it all the same.";
const OPEN = 0xffffffff; // a length that is not known beforehand

/**
 * Read a film from the bytes of a file.
 * Returns {blob, look} for JPEG, or {deep: {columns, rows, values, span, low, unit}, look}: values, a Uint16Array of
 * rows * columns, counts from the least value up to span; low + unit * value is what the modality measured.
 * look: {centre, width, inverted}, as shares of the span, as the file wants to be seen.
 */
export function readDicom(buffer) {
  const { view, start, syntax } = open(buffer);
  const coded = ![IMPLICIT, EXPLICIT, BIG_ENDIAN].includes(syntax);
  if (coded && syntax !== BASELINE) {
    const [, name] = COMPRESSED.find(([prefix]) => syntax.startsWith(prefix)) ?? [null, "in a way unknown here"];
    throw new Undrawable(`A browser cannot draw this DICOM film (compressed: ${name}). ${ALL_THE_SAME}`);
  }
  const reader = { view, little: syntax !== BIG_ENDIAN, implicit: syntax === IMPLICIT };
  const found = new Map();
  walk(reader, start, (tag, at, length) => found.set(tag, { at, length }));
  const header = headerOf(reader, found);
  const pixels = found.get(PIXELS);
  if (!pixels || !header.rows || !header.columns) throw new Undrawable("This DICOM file holds no picture.");
  if (header.samples > 1 || !header.photometric.startsWith("MONOCHROME")) {
    throw new Undrawable("A browser cannot draw this DICOM film (it is not grey). " + ALL_THE_SAME);
  }
  if (header.frames > 1) throw new Undrawable(`This DICOM file holds ${header.frames} frames.`);
  if (coded) return { blob: jpegIn(view, pixels.at), look: lookOf(header, 0, 255) };
  const deep = deepOf(reader, header, pixels.at);
  return { deep, look: lookOf(header, deep.low, deep.low + deep.unit * deep.span) };
}

function open(buffer) {
  const view = new DataView(buffer);
  let start = view.byteLength > 132 && view.getUint32(128) === 0x4449434d ? 132 : 0; // "DICM"
  let syntax = "";
  if (view.getUint16(start, true) === 2) {
    const meta = { view, little: true, implicit: false };
    start = walk(meta, start, (tag, at, length) => tag === 0x00020010 && (syntax = text(view, at, length)), 2);
  }
  // Some files state one way and are written the other; the first element shows which.
  const explicit = /^[A-Z]{2}$/.test(text(view, start + 4, 2));
  if (!syntax || (syntax === EXPLICIT && !explicit)) syntax = explicit ? EXPLICIT : IMPLICIT;
  else if (syntax === IMPLICIT && explicit) syntax = EXPLICIT;
  return { view, start, syntax };
}

/** Call visit(tag, at, length) for each element up to the pixels, the end of a group or of an item; returns where. */
function walk(reader, at, visit, group = null) {
  const { view, little } = reader;
  while (at + 8 <= view.byteLength) {
    const first = view.getUint16(at, little);
    const tag = first * 65536 + view.getUint16(at + 2, little);
    if (group !== null && first !== group) return at;
    if (tag === 0xfffee00d) return at + 8; // the end of an item
    const { value, length } = header(reader, at, first);
    visit(tag, value, length);
    if (tag === PIXELS) return value;
    at = length === OPEN ? pastSequence(reader, value) : value + length;
  }
  return at;
}

function header({ view, little, implicit }, at, group) {
  if (implicit || group === 0xfffe) return { value: at + 8, length: view.getUint32(at + 4, little) };
  if (LONG.has(text(view, at + 4, 2))) return { value: at + 12, length: view.getUint32(at + 8, little) };
  return { value: at + 8, length: view.getUint16(at + 6, little) };
}

function pastSequence(reader, at) {
  const { view, little } = reader;
  for (;;) {
    const tag = view.getUint16(at, little) * 65536 + view.getUint16(at + 2, little);
    const length = view.getUint32(at + 4, little);
    at += 8;
    if (tag === 0xfffee0dd) return at; // the end of the sequence
    at = length === OPEN ? walk(reader, at, () => {}) : at + length;
  }
}

function headerOf({ view, little }, found) {
  const short = (tag, usual) => (found.get(tag)?.length >= 2 ? view.getUint16(found.get(tag).at, little) : usual);
  const words = (tag) => (found.has(tag) ? text(view, found.get(tag).at, found.get(tag).length) : "");
  const number = (tag, usual) => (words(tag) ? Number.parseFloat(words(tag)) : usual); // the first, where there are more
  return {
    samples: short(0x00280002, 1),
    photometric: words(0x00280004),
    frames: number(0x00280008, 1),
    rows: short(0x00280010, 0),
    columns: short(0x00280011, 0),
    allocated: short(0x00280100, 16),
    stored: short(0x00280101, short(0x00280100, 16)),
    signed: short(0x00280103, 0) === 1,
    centre: number(0x00281050, null),
    width: number(0x00281051, null),
    intercept: number(0x00281052, 0),
    slope: number(0x00281053, 1) || 1,
    exact: ["LINEAR_EXACT", "SIGMOID"].includes(words(0x00281056)),
    inverse: words(0x20500020) === "INVERSE",
  };
}

function deepOf({ view, little }, { rows, columns, allocated, stored, signed, slope, intercept }, at) {
  const count = rows * columns;
  const wide = allocated === 16;
  if (![8, 16].includes(allocated)) throw new Undrawable(`A browser cannot draw DICOM films of ${allocated} bits.`);
  if (at + count * (wide ? 2 : 1) > view.byteLength) throw new Undrawable("The file ends before its picture does.");
  const values = new Uint16Array(count);
  const unused = 16 - stored;
  let [least, most] = [Infinity, -Infinity];
  const all = new Int32Array(count);
  for (let index = 0; index < count; index += 1) {
    const raw = wide ? view.getUint16(at + 2 * index, little) : view.getUint8(at + index);
    const value = signed ? (raw << (16 + unused)) >> (16 + unused) : (raw << unused & 0xffff) >> unused;
    all[index] = value;
    if (value < least) least = value;
    if (value > most) most = value;
  }
  if (stored <= 8 && !signed && slope === 1 && intercept === 0) [least, most] = [0, 2 ** stored - 1]; // as they stand
  for (let index = 0; index < count; index += 1) values[index] = all[index] - least;
  return { columns, rows, values, span: Math.max(1, most - least), low: least * slope + intercept, unit: slope };
}

function lookOf({ photometric, inverse, centre, width, exact }, low, high) {
  const inverted = inverse || photometric === "MONOCHROME1";
  if (centre === null || !(width > 0)) return { centre: 0.5, width: 1, inverted };
  const range = high - low;
  const [middle, extent] = exact ? [centre, width] : [centre - 0.5, Math.max(width - 1, 0.001)];
  return { centre: (middle - low) / range, width: extent / Math.abs(range), inverted };
}

/** The one frame in its items; the first item is the table of offsets. */
function jpegIn(view, at) {
  const pieces = [];
  while (at + 8 <= view.byteLength && view.getUint32(at, true) === 0xe000fffe) {
    const length = view.getUint32(at + 4, true);
    pieces.push(new Uint8Array(view.buffer, at + 8, Math.min(length, view.byteLength - at - 8)));
    at += 8 + length;
  }
  return new Blob(pieces.slice(1), { type: "image/jpeg" });
}

function text(view, at, length) {
  const bytes = new Uint8Array(view.buffer, at, Math.max(0, Math.min(length, view.byteLength - at)));
  return String.fromCharCode(...bytes.subarray(0, 64)).replace(/[\0 ]+$/, "").trim();
}

/** Draw into a canvas, at levels {centre, width, inverted}. */
export function drawDeep({ columns, rows, values, span }, canvas, { centre, width, inverted }) {
  const table = new Uint32Array(span + 1);
  for (let value = 0; value <= span; value += 1) {
    const share = Math.min(1, Math.max(0, (value / span - centre) / width + 0.5));
    table[value] = 0xff000000 | (Math.round(255 * (inverted ? 1 - share : share)) * 0x010101);
  }
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  const out = new Uint32Array(image.data.buffer);
  for (let index = 0; index < out.length; index += 1) out[index] = table[values[index]];
  canvas.getContext("2d").putImageData(image, 0, 0);
}
