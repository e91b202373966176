// AttentionExplorer's two pictures of the same weights: lines between words, and a table.

import { heatColour } from "./attention_math.js";
import { isDark, make, uniqueName, walkCells } from "./page.js";

// The sentence twice, as those who look and those who are looked at, and lines between.
export function buildLines() {
  const node = make("div", { class: "lmbh-lines" });
  let askers = [];
  let paths = [];
  let offers = [];
  let numbers = [];
  return {
    node,
    rebuild({ words, ids }, choose, hover) {
      const unknown = (j) => (ids[j] === null ? "lmbh-word lmbh-unknown" : "lmbh-word");
      askers = words.map((word, i) =>
        make(
          "button",
          {
            type: "button",
            class: unknown(i),
            title: word,
            click: () => choose(i),
            focus: () => choose(i),
            mouseenter: () => hover(i),
            mouseleave: () => hover(null),
          },
          word,
        ),
      );
      walkCells(askers.map((button) => [button]));
      paths = words.map((_, i) =>
        words.map((_, j) =>
          make("path", {
            d: `M0 ${i + 0.5} C50 ${i + 0.5} 50 ${j + 0.5} 100 ${j + 0.5}`,
          }),
        ),
      );
      numbers = words.map(() => make("span", { class: "lmbh-number" }));
      offers = words.map((word, j) =>
        make(
          "li",
          {},
          make("span", { class: unknown(j), title: word }, word),
          numbers[j],
        ),
      );
      const askersTitle = uniqueName("askers");
      const offersTitle = uniqueName("offers");
      const svg = make(
        "svg",
        {
          viewBox: `0 0 100 ${Math.max(1, words.length)}`,
          preserveAspectRatio: "none",
          "aria-hidden": "true",
        },
        ...paths.flat(),
      );
      node.replaceChildren(
        make("p", { id: askersTitle, class: "lmbh-title lmbh-q" }, "looks from"),
        make("p", { id: offersTitle, class: "lmbh-title lmbh-k" }, "looks at"),
        make(
          "ol",
          { "aria-labelledby": askersTitle },
          ...askers.map((button) => make("li", {}, button)),
        ),
        svg,
        make("ol", { "aria-labelledby": offersTitle, class: "lmbh-offers" }, ...offers),
      );
    },
    paint(weights, i, chosen) {
      askers.forEach((button, n) => {
        button.setAttribute("aria-pressed", n === chosen);
        button.classList.toggle("lmbh-on", n === i);
        if (document.activeElement !== button) button.tabIndex = n === chosen ? 0 : -1;
      });
      paths.forEach((row, n) =>
        row.forEach((path, j) => {
          const w = weights[n][j];
          path.style.strokeWidth = n === i ? 1 + 9 * w : 0.5 + 2 * w;
          path.style.opacity = n === i ? (w === 0 ? 0 : 0.2 + 0.8 * w) : 0.3 * w;
          path.classList.toggle("lmbh-on", n === i);
        }),
      );
      offers.forEach((offer, j) => {
        const w = weights[i][j];
        offer.style.setProperty("--share", `${100 * w}%`);
        numbers[j].textContent = w.toFixed(2);
      });
    },
  };
}

// The same weights as a grid of numbers that the arrow keys walk through.
export function buildMap() {
  const node = make("div", { class: "lmbh-map" });
  let cells = [];
  let rows = [];
  return {
    node,
    rebuild({ words, ids }, choose, hover) {
      const head = (word, j, scope) => {
        const unknown = ids[j] === null ? "lmbh-word lmbh-unknown" : "lmbh-word";
        return make(
          "th",
          { scope, title: word },
          make("span", { class: unknown }, word),
        );
      };
      cells = words.map((_, i) =>
        words.map(() => make("td", { focus: () => choose(i), click: () => choose(i) })),
      );
      rows = words.map((word, i) =>
        make("tr", { mouseenter: () => hover(i) }, head(word, i, "row"), ...cells[i]),
      );
      walkCells(cells);
      const corner = make("th", { class: "lmbh-corner" }, "%");
      const top = make(
        "tr",
        {},
        corner,
        ...words.map((word, j) => head(word, j, "col")),
      );
      const caption = "Weights in per cent: each row shares out 100";
      const longest = Math.max(2, ...words.map((word) => word.length));
      node.style.setProperty("--words", words.length);
      node.style.setProperty("--letters", Math.min(9, longest));
      node.replaceChildren(
        make("p", { class: "lmbh-title" }, caption),
        make(
          "div",
          { class: "lmbh-scroll" },
          make(
            "table",
            { role: "grid", "aria-label": caption, mouseleave: () => hover(null) },
            make("thead", {}, top),
            make("tbody", {}, ...rows),
          ),
        ),
      );
    },
    paint(words, weights, forbidden) {
      const dark = isDark();
      cells.forEach((row, i) =>
        row.forEach((cell, j) => {
          const hidden = forbidden(i, j);
          const { background, text } = heatColour(weights[i][j], dark);
          const share = hidden ? "" : String(Math.round(100 * weights[i][j]));
          cell.textContent = share;
          cell.classList.toggle("lmbh-all", share === "100"); // three digits need room
          cell.classList.toggle("lmbh-forbidden", hidden);
          cell.style.background = hidden ? "" : background;
          cell.style.color = hidden ? "" : text;
          const what = hidden ? "may not look" : `${share} per cent`;
          cell.setAttribute("aria-label", `“${words[i]}” at “${words[j]}”: ${what}`);
        }),
      );
    },
    mark(i) {
      rows.forEach((row, n) => row.classList.toggle("lmbh-on", n === i));
    },
  };
}
