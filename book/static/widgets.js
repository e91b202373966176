// Live figures in the static page: loads the widget runtime from the site itself, when a
// figure comes near the screen, or else once the page has been quiet for a while.
(() => {
  const folder = new URL("vendor/widgets/", document.currentScript.src).href;
  const views = 'script[type="application/vnd.jupyter.widget-view+json"]';
  let asked = false;

  function addScript(name, attributes, then) {
    const script = document.createElement("script");
    for (const [key, value] of Object.entries(attributes)) script.setAttribute(key, value);
    if (then) script.addEventListener("load", then);
    script.src = folder + name;
    document.head.append(script);
  }

  function load() {
    if (asked) return;
    asked = true;
    // ipywidgets typesets its labels through MathJax 2's queue; the page has MathJax 3.
    if (window.MathJax) {
      const Queue = (job) => window.MathJax.typesetPromise?.([job[2]]);
      window.MathJax.Hub = { Queue };
    }
    addScript("require.js", {}, () => {
      window.require.config({ baseUrl: folder });
      addScript("embed-amd.js", { "data-jupyter-widgets-cdn": folder });
    });
  }

  // ipywidgets' sliders and boxes carry a visible label, but no accessible name.
  function nameControls(root) {
    for (const row of root.querySelectorAll(".widget-inline-hbox")) {
      const label = row.querySelector(".widget-label")?.textContent.trim();
      if (!label) continue;
      for (const control of row.querySelectorAll("input, select, [role=slider]")) {
        if (!control.getAttribute("aria-label")) control.setAttribute("aria-label", label);
      }
    }
  }

  window.addEventListener("load", () => setTimeout(load, 5000));
  document.addEventListener("DOMContentLoaded", () => {
    const places = [...document.querySelectorAll(views)].map((view) => view.parentElement);
    const near = new IntersectionObserver(
      (entries) => entries.some((entry) => entry.isIntersecting) && load(),
      { rootMargin: "1200px 0px" },
    );
    for (const place of places) {
      near.observe(place);
      new MutationObserver(() => nameControls(place)).observe(place, {
        childList: true,
        subtree: true,
      });
    }
  });
})();
