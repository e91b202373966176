// AttentionExplorer: the page's part. Left a sentence whose words look at each other along
// lines, right the same weights as a table. Everything the reader sets lives in the widget's
// model, so that a kernel, where there is one, sees it; the weights are computed here.

import {
  attentionWeights,
  average,
  mayLook,
  readCheckpoint,
  show,
  splitWords,
  spread,
} from "./attention_math.js";
import {
  announcer,
  dataBox,
  figureRoot,
  make,
  radioGroup,
  watchTheme,
} from "./page.js";
import { buildLines, buildMap } from "./explorer_panels.js";

const SETTINGS = ["text", "head", "word", "mask", "window", "temperature", "scaled"];
const MASKS = [
  ["none", "none"],
  ["causal", "causal"],
  ["window", "window of"],
];

function render({ model, el }) {
  let net = null; // the checkpoint, unpacked
  let sentence = { words: [], ids: [] };
  let weights = []; // (T, T), what is shown
  let hovered = null; // the word under the mouse looks instead of the chosen one

  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const controls = buildControls(set);
  const lines = buildLines();
  const map = buildMap();
  const summary = make("p", { class: "lmbh-summary" });
  const live = announcer();
  const data = dataBox();
  const own = buildOwnModel(
    (bytes) => {
      readCheckpoint(bytes); // throws before anything changes
      set("head", 0);
      set("own_checkpoint", new DataView(bytes));
    },
    () => {
      set("head", 0);
      set("own_checkpoint", new DataView(new ArrayBuffer(0)));
    },
  );
  const root = figureRoot("explorer", "Attention explorer");
  root.append(
    controls.node,
    make("div", { class: "lmbh-panels" }, lines.node, map.node),
    summary,
    live.node,
    make("div", { class: "lmbh-foot" }, data.node, own.node),
  );

  const choose = (i) => set("word", i);
  const hover = (i) => {
    hovered = i;
    paintChoice();
  };

  function load() {
    const mine = model.get("own_checkpoint");
    const isOwn = mine?.byteLength > 0;
    net = readCheckpoint(isOwn ? mine : model.get("checkpoint"));
    controls.heads.options([
      [null, "average"],
      ...Array.from({ length: net.nHeads }, (_, h) => [h, String(h)]),
    ]);
    own.show(isOwn, net);
    update();
  }

  function update() {
    const settings = Object.fromEntries(
      SETTINGS.map((name) => [name, model.get(name)]),
    );
    const all = splitWords(settings.text, net.vocab);
    const used = {
      words: all.words.slice(0, net.tMax),
      ids: all.ids.slice(0, net.tMax),
    };
    // Also when the words stay and the vocabulary changes: unknown words are marked.
    const isNew = JSON.stringify(used) !== JSON.stringify(sentence);
    if (isNew || !lines.node.hasChildNodes()) {
      hovered = null;
      lines.rebuild(used, choose, hover);
      map.rebuild(used, choose, hover);
    }
    sentence = used;
    controls.show(settings, net, all);
    if (sentence.words.length > 0) {
      const heads = attentionWeights(net, sentence.ids, settings);
      const head =
        settings.head === null ? null : Math.min(settings.head, net.nHeads - 1);
      weights = head === null ? average(heads) : heads[head];
    } else {
      weights = [];
    }
    data.set([
      ["looks from \\ at", ...sentence.words],
      ...weights.map((row, i) => [sentence.words[i], ...row.map((w) => w.toFixed(6))]),
    ]);
    paint();
  }

  function paint() {
    const forbidden = (i, j) => !mayLook(model.get("mask"), model.get("window"), i, j);
    map.paint(sentence.words, weights, forbidden);
    paintChoice();
  }

  function paintChoice() {
    const last = sentence.words.length - 1;
    const chosen = Math.min(model.get("word") ?? last, last);
    const i = hovered ?? chosen;
    lines.paint(weights, i, chosen);
    map.mark(i);
    const text = last < 0 ? "Type a sentence to see who looks at whom." : tell(i);
    summary.textContent = text;
    if (hovered === null) live.say(text);
  }

  function tell(i) {
    const ranked = weights[i].map((w, j) => [w, sentence.words[j]]);
    ranked.sort((a, b) => b[0] - a[0]);
    const [[first, best], second] = ranked;
    const then =
      second?.[0] >= 0.005 ? `, then at “${second[1]}” (${show(second[0])})` : "";
    const words = show(spread(weights[i]), 1);
    return (
      `“${sentence.words[i]}” looks most at “${best}” (${show(first)})${then}. That is as ` +
      `spread out as looking at ${words} ${words === "1" ? "word" : "words"} equally.`
    );
  }

  const events = [
    ...SETTINGS.map((name) => [`change:${name}`, update]),
    ["change:checkpoint", load],
    ["change:own_checkpoint", load],
  ];
  for (const [name, listener] of events) model.on(name, listener);
  const stopWatching = watchTheme(paint);
  load();
  el.append(root);
  return () => {
    for (const [name, listener] of events) model.off(name, listener);
    stopWatching();
    live.stop();
  };
}

function buildControls(set) {
  const text = make("input", {
    type: "text",
    class: "lmbh-sentence",
    autocomplete: "off",
    spellcheck: "false",
    input: () => {
      // The text first: a change of the word repaints, with the text of the model.
      set("text", text.value);
      set("word", null); // the word being typed looks
    },
  });
  const note = make("p", { class: "lmbh-note", role: "status" });
  const heads = radioGroup("Head", (value) => set("head", value));
  const masks = radioGroup("Mask", (value) => set("mask", value));
  masks.options(MASKS);
  const width = make("input", {
    type: "number",
    min: 1,
    step: 1,
    "aria-label": "Words in the window, the looking word included",
    input: () => width.value >= 1 && set("window", Math.floor(Number(width.value))),
    change: () => (width.value = String(Math.max(1, Math.floor(Number(width.value))))),
  });
  masks.node.append(width);
  // The slider moves in powers of two: halving and doubling feel alike.
  const slider = make("input", {
    type: "range",
    min: -3,
    max: 3,
    step: 0.25,
    "aria-label": "Temperature",
    input: () => set("temperature", 2 ** Number(slider.value)),
  });
  const degree = make("output", { "aria-hidden": "true" });
  const scaled = make("input", {
    type: "checkbox",
    change: () => set("scaled", scaled.checked),
  });
  const root = make("span");
  const node = make(
    "div",
    { class: "lmbh-controls" },
    make("label", { class: "lmbh-type" }, make("span", {}, "Type a sentence"), text),
    note,
    heads.node,
    masks.node,
    make(
      "label",
      {},
      make("span", { class: "lmbh-name" }, "Temperature ", degree),
      slider,
    ),
    make(
      "label",
      {},
      make("span", { class: "lmbh-name" }, "Scale"),
      make("span", { class: "lmbh-check" }, scaled, root),
    ),
  );
  return {
    node,
    heads,
    show(settings, net, all) {
      if (text.value !== settings.text) text.value = settings.text;
      const head =
        settings.head === null ? null : Math.min(settings.head, net.nHeads - 1);
      heads.set(head);
      masks.set(settings.mask);
      width.disabled = settings.mask !== "window";
      if (Number(width.value) !== settings.window && document.activeElement !== width) {
        width.value = settings.window;
      }
      slider.value = Math.log2(settings.temperature);
      slider.setAttribute("aria-valuetext", show(settings.temperature));
      degree.textContent = show(settings.temperature);
      scaled.checked = settings.scaled;
      const headWidth = net.width / net.nHeads;
      root.textContent = `divide by √D = √${headWidth} = ${show(Math.sqrt(headWidth))}`;
      note.textContent = noteOn(all, net);
    },
  };
}

function noteOn({ words, ids }, net) {
  const notes = [];
  const unknown = [...new Set(words.filter((_, i) => ids[i] === null))];
  if (unknown.length > 0) {
    const as = net.vocab.includes("<unknown>") ? "read as <unknown>" : "read as zeros";
    const named = unknown
      .slice(0, 4)
      .map((word) => `“${word}”`)
      .join(", ");
    const more = unknown.length > 4 ? ` and ${unknown.length - 4} more` : "";
    notes.push(`Not in the vocabulary, ${as}: ${named}${more}.`);
  }
  if (words.length > net.tMax) {
    notes.push(
      `The model has ${net.tMax} positions: the first ${net.tMax} words are used.`,
    );
  }
  return notes.join(" ");
}

function buildOwnModel(use, goBack) {
  const said = make("p", { role: "status" });
  const file = make("input", {
    type: "file",
    accept: ".safetensors",
    async change() {
      if (!file.files[0]) return;
      try {
        use(await file.files[0].arrayBuffer());
      } catch (error) {
        said.textContent = `This file was not loaded: ${error.message}.`;
      }
      file.value = ""; // so that the same file can be chosen again
    },
  });
  const back = make(
    "button",
    {
      type: "button",
      click: () => {
        file.focus(); // this button vanishes
        goBack();
      },
    },
    "Back to the book’s model",
  );
  const node = make(
    "details",
    {},
    make("summary", {}, "Your own model"),
    make(
      "p",
      {},
      "In Python, ",
      make("code", {}, 'AttentionExplorer(…).export("mine.safetensors")'),
      " writes a file for this figure. It stays on your computer.",
    ),
    make("p", {}, make("label", {}, "Load a file: ", file)),
    said,
    make("p", {}, back),
  );
  return {
    node,
    show(isOwn, net) {
      back.hidden = !isOwn;
      said.textContent = isOwn
        ? `Your model is in use: ${net.vocab.length} words, ${net.nHeads} heads.`
        : "";
    },
  };
}

export default { render };
