// The ways in: choose, a folder, a camera, drop, paste, and the drawn examples. Each ends in give(films, left out).
// A film is {file, name}; what comes from a folder is named by its path in there.

import { $ } from "./dom.js";

/** What of a folder may be a film: DICOM files often have no ending, or one that is a number. */
const isFilm = ({ name }) => /^[^.]+$|^[^.].*\.(jpe?g|png|dcm|dicom|tiff?|\d+)$/i.test(name);

export function takeFilms(give) {
  const named = (files) => [...files].map((file) => ({ file, name: file.webkitRelativePath || file.name || "pasted film" }));
  const giveFolder = (films) => {
    const wanted = films.filter(({ file }) => isFilm(file));
    give(wanted, films.length - wanted.length);
  };
  for (const [id, use] of [["files", give], ["folder", giveFolder], ["camera", give]]) {
    const input = $(`#${id}`);
    input.addEventListener("change", () => {
      use(named(input.files), 0);
      input.value = ""; // so that the same film can be chosen again
    });
  }
  addEventListener("click", ({ target }) => {
    const button = target.closest?.("[data-choose], [data-example]");
    if (button?.dataset.choose) $(`#${button.dataset.choose}`).click();
    else if (button) fetchExample(button.dataset.example).then((file) => give(named([file]), 0));
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (!files.length) return;
    event.preventDefault();
    give(named(files), 0);
  });
  for (const picture of document.querySelectorAll("img[data-src]")) picture.src = picture.dataset.src; // after the first paint
  takeDropped(async (transfer) => {
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()); // before the first await
    const loose = named(transfer.files);
    if (!entries.some((entry) => entry?.isDirectory)) return give(loose, 0);
    giveFolder((await Promise.all(entries.filter(Boolean).map(filesIn))).flat());
  });
}

/** All films of a directory entry, however deep. */
async function filesIn(entry) {
  if (entry.isFile) {
    const file = await new Promise((done) => entry.file(done, () => done(null))); // null: it may not be read
    return file ? [{ file, name: entry.fullPath.slice(1) }] : [];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail)); // a hundred at a time
    if (!some.length) return found;
    for (const child of some) found.push(...(await filesIn(child)));
  }
}

// Anywhere on the page is right for a drop: a film that misses a target would replace the page.
function takeDropped(take) {
  const root = document.documentElement;
  let depth = 0; // dragenter and dragleave fire for every element on the way
  const over = (change) => {
    depth = Math.max(0, depth + change);
    root.classList.toggle("dropping", depth > 0);
  };
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => carriesFiles(event) && over(1));
  addEventListener("dragleave", (event) => carriesFiles(event) && over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    if (event.dataTransfer?.files.length) take(event.dataTransfer);
  });
}

async function fetchExample(path) {
  const response = await fetch(path);
  return new File([await response.blob()], path.split("/").pop(), { type: "image/jpeg" });
}
