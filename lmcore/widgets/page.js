// Small tools with which both figures build their part of the page. Text from the reader
// only ever becomes a text node, so nothing typed can turn into markup.

const SVG = new Set(["svg", "path"]);
let counter = 0;

/** A name that no other figure on the page uses, for radio groups and ids. */
export function uniqueName(stem) {
  return `lmbh-${stem}-${++counter}`;
}

/** Make an element: attributes, event listeners (functions) and children. */
export function make(tag, attributes = {}, ...children) {
  const node = SVG.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A labelled group of radio buttons: the browser brings the keyboard and the names. */
export function radioGroup(legend, onChange) {
  const name = uniqueName("choice");
  const title = uniqueName("title");
  const holder = make("div", { class: "lmbh-pills" });
  const node = make(
    "div",
    { role: "radiogroup", "aria-labelledby": title, class: "lmbh-group" },
    make("span", { id: title, class: "lmbh-name" }, legend),
    holder,
  );
  const inputs = new Map();
  return {
    node,
    options(pairs) {
      inputs.clear();
      holder.replaceChildren(
        ...pairs.map(([value, text]) => {
          const input = make("input", {
            type: "radio",
            name,
            change: () => onChange(value),
          });
          inputs.set(value, input);
          return make("label", {}, input, make("span", {}, text));
        }),
      );
    },
    set(value) {
      for (const [key, input] of inputs) input.checked = key === value;
    },
  };
}

/** Tell screen readers what changed, once the reader has paused. */
export function announcer() {
  const node = make("p", { class: "lmbh-hidden", "aria-live": "polite" });
  let timer = null;
  let loaded = false;
  return {
    node,
    say(text) {
      clearTimeout(timer);
      if (!loaded) {
        loaded = true; // nobody has asked yet
        return;
      }
      timer = setTimeout(() => {
        if (node.textContent !== text) node.textContent = text;
      }, 500);
    },
    stop: () => clearTimeout(timer),
  };
}

/** A table as text, to mark, to copy, and to read where no script runs after it. */
export function dataBox() {
  const area = make("textarea", {
    readonly: "",
    rows: 6,
    "aria-label": "Data",
    wrap: "off",
  });
  const said = make("span", { role: "status" });
  const copy = async () => {
    area.select();
    try {
      await navigator.clipboard.writeText(area.value);
      said.textContent = "Copied.";
    } catch {
      // Without permission the text stays selected for the reader's own copy key.
      said.textContent = "Selected: press Ctrl+C or ⌘C.";
    }
  };
  const node = make(
    "details",
    {},
    make("summary", {}, "Data"),
    area,
    make("p", {}, make("button", { type: "button", click: copy }, "Copy"), " ", said),
  );
  return {
    node,
    set(rows) {
      area.value = rows.map((row) => row.join("\t")).join("\n");
      said.textContent = "";
    },
  };
}

/** Is the page dark: the book's theme, or JupyterLab's? Paper is always light. */
export function isDark() {
  if (window.matchMedia("print").matches) return false;
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : document.body.dataset.jpThemeLight === "false";
}

/** Call `repaint` whenever the theme changes; returns how to stop. */
export function watchTheme(repaint) {
  const observer = new MutationObserver(repaint);
  observer.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  observer.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  const print = window.matchMedia("print");
  print.addEventListener("change", repaint);
  return () => {
    observer.disconnect();
    print.removeEventListener("change", repaint);
  };
}

const MOVES = {
  ArrowUp: (i, j) => [i - 1, j],
  ArrowDown: (i, j) => [i + 1, j],
  ArrowLeft: (i, j) => [i, j - 1],
  ArrowRight: (i, j) => [i, j + 1],
  Home: (i) => [i, 0],
  End: (i, j, columns) => [i, columns - 1],
};

/** One stop of the Tab key per table: arrow keys walk through its cells. */
export function walkCells(cells) {
  const stopAt = (target) => {
    for (const cell of cells.flat()) cell.tabIndex = cell === target ? 0 : -1;
  };
  cells.forEach((row, i) =>
    row.forEach((cell, j) => {
      cell.addEventListener("focus", () => stopAt(cell));
      cell.addEventListener("keydown", (event) => {
        if (!(event.key in MOVES) || event.ctrlKey || event.metaKey || event.altKey)
          return;
        if (insideText(cell, event.key)) return;
        const [to, at] = MOVES[event.key](i, j, row.length);
        event.preventDefault();
        cells[to]?.[at]?.focus();
      });
    }),
  );
  if (cells[0]?.[0]) stopAt(cells[0][0]);
  return { stopAt };
}

// In a text field the left and right keys first belong to the text that is being edited.
function insideText(cell, key) {
  if (cell.selectionStart === undefined || key === "ArrowUp" || key === "ArrowDown")
    return false;
  const { selectionStart: from, selectionEnd: to, value } = cell;
  if (from === 0 && to === value.length) return false;
  return key === "ArrowLeft" || key === "Home" ? from > 0 : to < value.length;
}

/** The outermost element: keys typed in a figure are not shortcuts of the page around. */
export function figureRoot(kind, label) {
  return make("div", {
    class: `lmbh lmbh-${kind}`,
    role: "group",
    "aria-label": label,
    "data-lm-suppress-shortcuts": "true", // JupyterLab's shortcuts
    keydown(event) {
      if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
    },
  });
}
