// Runs before the first paint, so that the page never flashes in the other theme. Once something was painted, it puts the
// rest of the page where its templates wait, in place, and loads the page's own script, which its tag names: style, layout
// and raster of what nobody reads at once, and twenty modules, would keep the first paint waiting.
(() => {
  const script = document.currentScript.dataset.then;
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage may be switched off
    }
  };
  const apply = (theme) => {
    root.dataset.theme = theme;
    document.querySelector("#theme")?.setAttribute("aria-checked", String(theme === "dark"));
  };
  const follow = () => apply(chosen() ?? (dark.matches ? "dark" : "light"));
  const complete = () => {
    for (const template of document.querySelectorAll("template[data-later]")) template.replaceWith(template.content);
    follow();
    if (script) import(script); // a second time does nothing
  };
  follow();
  dark.addEventListener("change", follow);
  addEventListener("click", ({ target }) => {
    if (!target.closest?.("#theme")) return;
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", next);
    } catch {
      // then the choice lasts as long as the page
    }
    apply(next);
  });
  addEventListener("DOMContentLoaded", () => {
    if (!script) return follow();
    new PerformanceObserver(complete).observe({ type: "paint", buffered: true });
    setTimeout(complete, document.hidden ? 0 : 500); // what is hidden is not painted
  });
})();
