// AttentionSteps' tables, and the fields in which their numbers are changed.

import { heatColour, show } from "./attention_math.js";
import { isDark, make, walkCells } from "./page.js";

export const INPUTS = ["query", "key", "value"];
const PINNABLE = ["scores", "scaled", "weights"];

export const pinName = (stage, i, j) => `${stage}[${i},${j}]`;

const LIMIT = 9999; // what a cell can show

/** "1,5", "−2" and " 3 " are numbers; undefined if it is none, null if nothing is there. */
function parse(text) {
  const plain = text.trim().replace("−", "-").replace(",", ".");
  if (plain === "") return null;
  const number = Number(plain);
  return Math.abs(number) <= LIMIT ? number : undefined;
}

// One table. Its cells are text fields, or for the mask buttons.
export function buildPanel({ stage, mark, name, tokens, labels, actions }) {
  const { change, look, toggle, complain } = actions;
  const isInput = INPUTS.includes(stage);
  const isPinnable = PINNABLE.includes(stage);
  const what = (i, j) => `${stage}, ${tokens[i]}, ${labels[j]}`;
  let edited = null; // the field whose text is the reader's until they leave it

  const field = (i, j) => {
    const input = make("input", {
      type: "text",
      inputmode: "decimal",
      autocomplete: "off",
      "aria-label": what(i, j),
      readonly: isInput || isPinnable ? null : "",
      focus: () => {
        input.select();
        look(stage, i, j);
      },
      input: () => {
        edited = input;
        const number = parse(input.value);
        input.setAttribute("aria-invalid", number === undefined);
        if (number === undefined)
          complain(`“${input.value}” is no number from −${LIMIT} to ${LIMIT}`);
        else change(stage, i, j, number);
      },
      blur: () => {
        if (edited !== input) return;
        edited = null;
        input.setAttribute("aria-invalid", "false");
        look(stage, i, j);
      },
      keydown: ({ key }) => {
        if (key !== "Enter" && key !== "Escape") return;
        edited = null;
        input.setAttribute("aria-invalid", "false");
        look(stage, i, j);
        input.select();
      },
    });
    return input;
  };
  const switchOf = (i, j) =>
    make("button", {
      type: "button",
      focus: () => look(stage, i, j),
      click: () => toggle(i, j),
    });

  const cells = tokens.map((_, i) =>
    labels.map((_, j) => (stage === "masked" ? switchOf(i, j) : field(i, j))),
  );
  const { stopAt } = walkCells(cells);
  const sums = tokens.map(() => make("td", { class: "lmbh-sum" }));
  const hasSums = stage === "weights";
  const side = isInput
    ? { query: "lmbh-q", key: "lmbh-k", value: "lmbh-v" }[stage]
    : "lmbh-q";
  const above = labels === tokens ? "lmbh-k" : "";
  const head = (word, scope, kind) =>
    make(
      "th",
      { scope, class: kind, title: word },
      make("span", { class: "lmbh-word" }, word),
    );
  const table = make(
    "table",
    {},
    make(
      "caption",
      {},
      make("span", { class: `lmbh-mark ${isInput ? side : ""}` }, mark),
      ` ${name}`,
    ),
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        make("td"),
        ...labels.map((word) => head(word, "col", above)),
        ...(hasSums ? [make("th", { scope: "col" }, "Σ")] : []),
      ),
    ),
    make(
      "tbody",
      {},
      ...cells.map((row, i) =>
        make(
          "tr",
          {},
          head(tokens[i], "row", side),
          ...row.map((cell) => make("td", {}, cell)),
          ...(hasSums ? [sums[i]] : []),
        ),
      ),
    ),
  );
  const node = make("div", { class: `lmbh-panel lmbh-${stage}` }, table);

  function paint(all, at) {
    const dark = isDark();
    cells.forEach((row, i) =>
      row.forEach((cell, j) => {
        const x = all[stage][i][j];
        const isPinned = pinName(stage, i, j) in all.pins;
        const isHere = at.stage === stage && at.i === i && at.j === j;
        cell.classList.toggle("lmbh-pinned", isPinned);
        cell.classList.toggle("lmbh-here", isHere);
        cell.classList.toggle("lmbh-source", isSource(at, stage, i, j));
        if (isHere) stopAt(cell);
        if (stage === "masked") {
          cell.textContent = x === -Infinity ? "−∞" : fixed(x);
          const may = all.mask[i][j];
          cell.classList.toggle("lmbh-forbidden", !may);
          cell.setAttribute("aria-pressed", !may);
          const verb = may ? "may look at" : "may not look at";
          cell.setAttribute(
            "aria-label",
            `${tokens[i]} ${verb} ${tokens[j]}: ${cell.textContent}`,
          );
        } else {
          // What the reader is typing stays as typed.
          if (cell !== edited) cell.value = isInput ? show(x, 3) : fixed(x);
          cell.setAttribute("aria-label", what(i, j) + (isPinned ? ", pinned" : ""));
        }
        if (stage === "weights") {
          const { background, text } = heatColour(x, dark);
          cell.style.background = background;
          cell.style.color = text;
        }
      }),
    );
    if (!hasSums) return;
    all.weights.forEach((row, i) => {
      const sum = row.reduce((a, b) => a + b, 0);
      sums[i].textContent = fixed(sum);
      sums[i].classList.toggle("lmbh-off", Math.abs(sum - 1) > 0.005);
    });
  }
  return { node, cells, paint };
}

const fixed = (x) =>
  x
    .toFixed(2)
    .replace(/^-0\.00$/, "0.00")
    .replace("-", "−");

// Does the number in focus come from number [i, j] of this stage?
function isSource(at, stage, i, j) {
  switch (at.stage) {
    case "scores":
      return (stage === "query" && i === at.i) || (stage === "key" && i === at.j);
    case "scaled":
      return stage === "scores" && i === at.i && j === at.j;
    case "masked":
      return stage === "scaled" && i === at.i && j === at.j;
    case "weights":
      return stage === "masked" && i === at.i;
    case "output":
      return (stage === "weights" && i === at.i) || (stage === "value" && j === at.j);
    default:
      return false;
  }
}

/** What every token took from whom, in words: the weights once more, largest first. */
export function buildMixture(tokens) {
  const lines = tokens.map(() => make("dd"));
  const pairs = tokens.flatMap((token, i) => [
    make("dt", { class: "lmbh-q" }, token),
    lines[i],
  ]);
  const node = make(
    "div",
    { class: "lmbh-panel lmbh-mixture" },
    make("p", {}, "in words: every output is a mixture"),
    make("dl", {}, ...pairs),
  );
  function paint({ weights }) {
    weights.forEach((row, i) => {
      const parts = row
        .map((w, j) => [w, tokens[j]])
        .filter(([w]) => Math.abs(w) >= 0.005);
      parts.sort((a, b) => b[0] - a[0]);
      const text = parts.map(([w, token]) => `${fixed(w)} ${token}`).join(" + ");
      lines[i].textContent = text || "nothing";
    });
  }
  return { node, paint };
}
