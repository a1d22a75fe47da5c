// The ways in: choose, drop, paste, and the drawn examples. Each ends in give(files).

import { $ } from "./dom.js";

export function takeFilms(give) {
  const input = $("#files");
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.addEventListener("click", () => input.click());
  }
  input.addEventListener("change", () => {
    give([...input.files]);
    input.value = ""; // so that the same film can be chosen again
  });
  takeDropped(give);
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      give(files);
    }
  });
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => fetchExample(button.dataset.example).then((file) => give([file])));
  }
}

// Anywhere on the page is right for a drop: a film that misses a target would replace the page.
function takeDropped(give) {
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
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) give(files);
  });
}

async function fetchExample(path) {
  const response = await fetch(path);
  return new File([await response.blob()], path.split("/").pop(), { type: "image/jpeg" });
}
