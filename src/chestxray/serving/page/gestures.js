// Pointers over a film: drag with the chosen tool, pinch, wheel, double click; a plain click centres in a zoomed film,
// so that nothing needs a drag.

const STILL = 4; // CSS pixels that a click may move
const STEP = 2.5; // of a double click

/** does: {isZoomed, tool, zoom(factor, at), pan(x, y), level(wider, brighter)}; places as in viewer.js. */
export function followGestures(pane, does) {
  const pointers = new Map();
  let moved = 0;
  let later = 0;
  let clicked = false;

  const place = ({ clientX, clientY }) => {
    const box = pane.getBoundingClientRect();
    return { x: (clientX - box.left) / box.width - 0.5, y: (clientY - box.top) / box.height - 0.5 };
  };

  pane.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button") || pane.dataset.state !== "film") return;
    moved = pointers.size ? STILL : 0;
    clicked = true;
    pointers.set(event.pointerId, event);
    pane.setPointerCapture(event.pointerId);
  });

  pane.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    pointers.set(event.pointerId, event);
    const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
    moved += Math.hypot(x, y);
    if (pointers.size === 2) pinch(before, event);
    else if (moved < STILL) return;
    else if (does.tool() === "levels" || event.shiftKey || event.buttons === 2) {
      does.level(x / pane.clientWidth, -y / pane.clientHeight);
    } else does.pan(x / pane.clientWidth, y / pane.clientHeight);
  });

  function pinch(before, now) {
    const other = [...pointers.values()].find(({ pointerId }) => pointerId !== now.pointerId);
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const [a, b] = [place(now), place(other)];
    does.zoom(apart(now) / Math.max(1, apart(before)), { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
  }

  const lift = (event) => {
    const was = pointers.delete(event.pointerId);
    if (!was || event.type !== "pointerup" || moved >= STILL || event.button || !does.isZoomed()) return;
    const { x, y } = place(event);
    clearTimeout(later);
    later = setTimeout(() => does.pan(-x, -y), 250); // unless it becomes a double click
  };
  pane.addEventListener("pointerup", lift);
  pane.addEventListener("pointercancel", lift);

  pane.addEventListener("dblclick", (event) => {
    if (event.target.closest("button")) return;
    clearTimeout(later);
    does.zoom(does.isZoomed() ? 0 : STEP, place(event));
  });

  // The wheel belongs to the page until the film has been clicked, as on any map.
  pane.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !clicked) return;
      event.preventDefault();
      does.zoom(Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 500)), place(event));
    },
    { passive: false },
  );

  pane.addEventListener("blur", () => (clicked = false));
  pane.addEventListener("contextmenu", (event) => moved >= STILL && event.preventDefault());
}
