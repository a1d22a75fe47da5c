// Runs before the first paint, so that the page never flashes in the other theme; then, once something was painted, loads
// the page's own script, which its tag names: fetching and compiling twenty modules would keep the first paint waiting.
(() => {
  const script = document.currentScript.dataset.then;
  const load = () => import(script); // a second time does nothing
  const once = () => {
    new PerformanceObserver(load).observe({ type: "paint", buffered: true });
    setTimeout(load, document.hidden ? 0 : 500); // what is hidden is not painted
  };
  if (script) addEventListener("DOMContentLoaded", once);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage may be switched off
    }
  };
  const apply = () => {
    root.dataset.theme = chosen() ?? (dark.matches ? "dark" : "light");
    document.querySelector("#theme")?.setAttribute("aria-checked", String(root.dataset.theme === "dark"));
  };
  apply();
  dark.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.querySelector("#theme")?.addEventListener("click", () => {
      const next = root.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("theme", next);
      } catch {
        // then the choice lasts as long as the page
      }
      root.dataset.theme = next;
      document.querySelector("#theme").setAttribute("aria-checked", String(next === "dark"));
    });
  });
})();
