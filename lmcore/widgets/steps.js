// AttentionSteps: the page's part. Tables of numbers from Q, K and V to the output. Inputs
// can be changed, numbers on the way can be pinned, masked places are toggled, and one
// sentence and one formula explain the number in focus.

import { attentionSteps, explain, show } from "./attention_math.js";
import { announcer, dataBox, figureRoot, make, watchTheme } from "./page.js";
import { INPUTS, buildMixture, buildPanel, pinName } from "./steps_panel.js";

const SHARED = ["query", "key", "value", "mask", "pins", "tokens"];
const STEPS = ["inputs", "scores", "scaled", "masked", "weights", "output"];

// Which tables a step reads; the phone shows only these and the step's own.
const READS = {
  inputs: INPUTS,
  scores: ["query", "key"],
  scaled: ["scores"],
  masked: ["scaled"],
  weights: ["masked"],
  output: ["weights", "value"],
};

function describe(step, d) {
  return {
    inputs:
      "Every token brings three rows of numbers: a query (what am I looking for?), " +
      "a key (what do I offer?) and a value (what do I pass on?).",
    scores:
      "Every query meets every key: multiply number by number and add up; " +
      "a large score means a good fit.",
    scaled:
      `Divide by √D = √${d} = ${show(Math.sqrt(d))}: with more numbers in a vector the ` +
      "sums grow, and softmax would be too sure of itself.",
    masked:
      "A key that a token may not look at gets −∞ in the place of its score; " +
      "choose a number to forbid or allow it.",
    weights:
      "Softmax along each row, e to the power of each number divided by the row’s sum, " +
      "shares out one unit of attention.",
    output:
      "Every token takes the average of all values, weighted by its row of weights.",
  }[step];
}

function titles(d) {
  return {
    query: ["Q", "queries"],
    key: ["K", "keys"],
    value: ["V", "values"],
    scores: ["1", "scores = Q Kᵀ"],
    scaled: ["2", `scaled = scores / √${d}`],
    masked: ["3", "masked: who may look?"],
    weights: ["4", "weights = softmax"],
    output: ["5", "output = weights · V"],
  };
}

function render({ model, el }) {
  const tokens = model.get("tokens");
  const d = model.get("query")[0].length;
  // The number that is explained.
  let here = { stage: "query", i: tokens.length - 1, j: 1 };
  let complaint = "";
  let told = null; // the step that screen readers have heard about

  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const state = () => Object.fromEntries(SHARED.map((name) => [name, model.get(name)]));

  function change(stage, i, j, number) {
    if (INPUTS.includes(stage)) {
      if (number === null) return;
      set(stage, replaced(model.get(stage), i, j, number));
      return;
    }
    const { [pinName(stage, i, j)]: _, ...others } = model.get("pins");
    set(
      "pins",
      number === null ? others : { ...others, [pinName(stage, i, j)]: number },
    );
  }

  const look = (stage, i, j) => {
    here = { stage, i, j };
    const step = STEPS.indexOf(stepOf(stage));
    if (step === model.get("step")) paint();
    else set("step", step);
  };
  const toggle = (i, j) => {
    const mask = model.get("mask");
    set("mask", replaced(mask, i, j, !mask[i][j]));
  };
  const complain = (text) => {
    complaint = text;
    explainHere();
  };

  const panels = {};
  for (const [stage, [mark, name]] of Object.entries(titles(d))) {
    const table = { query: "query", key: "key", value: "value", output: "value" }[
      stage
    ];
    const labels = table ? model.get(table)[0].map((_, n) => String(n)) : tokens;
    const actions = { change, look, toggle, complain };
    panels[stage] = buildPanel({ stage, mark, name, tokens, labels, actions });
  }
  const guide = buildGuide({
    go: (by) => set("step", clamp(model.get("step") + by, STEPS.length)),
    // These buttons vanish when they are used: the keyboard goes on in the tables.
    release: () => {
      change(here.stage, here.i, here.j, null);
      panels[here.stage].cells[here.i][here.j].focus();
    },
    releaseAll: () => {
      set("pins", {});
      panels[here.stage].cells[here.i][here.j].focus();
    },
    reset: () => {
      const start = model.get("start");
      for (const name of [...INPUTS, "mask"]) model.set(name, start[name]);
      set("pins", {});
    },
    maskAll: (causal) =>
      set(
        "mask",
        tokens.map((_, i) => tokens.map((_, j) => !causal || j <= i)),
      ),
  });
  const mixture = buildMixture(tokens);
  const data = dataBox();
  const live = announcer();
  const root = figureRoot("steps", "Attention step by step");
  const nodes = (...stages) => stages.map((stage) => panels[stage].node);
  root.append(
    guide.node,
    make("div", { class: "lmbh-stage" }, ...nodes(...INPUTS)),
    make(
      "div",
      { class: "lmbh-stage" },
      ...nodes("scores", "scaled", "masked", "weights", "output"),
      mixture.node,
    ),
    live.node,
    make("div", { class: "lmbh-foot" }, data.node),
  );

  // The step may have moved on since: keep the place, in a table of the new step.
  function follow() {
    const step = STEPS[model.get("step")];
    if (stepOf(here.stage) !== step) {
      here = { ...here, stage: step === "inputs" ? "query" : step };
    }
    here.j = clamp(here.j, panels[here.stage].cells[0].length);
    return step;
  }

  function paint() {
    complaint = "";
    const step = follow();
    const now = state();
    const all = { ...now, ...attentionSteps(now) };
    for (const [stage, panel] of Object.entries(panels)) {
      panel.paint(all, here);
      panel.node.classList.toggle("lmbh-now", stepOf(stage) === step);
      const isUsed = stepOf(stage) === step || READS[step].includes(stage);
      panel.node.classList.toggle("lmbh-used", isUsed);
    }
    mixture.paint(all);
    mixture.node.classList.toggle("lmbh-used", step === "output");
    data.set(
      Object.keys(panels).flatMap((stage) => [
        [stage],
        ...all[stage].map((row, i) => [tokens[i], ...row]),
        [],
      ]),
    );
    explainHere();
  }

  function explainHere() {
    const now = state();
    const number = model.get("step");
    const text = describe(STEPS[number], d);
    const formula = complaint || explain(here.stage, here.i, here.j, now);
    const pins = Object.keys(now.pins);
    const isPin = pins.includes(pinName(here.stage, here.i, here.j));
    guide.show({ number, text, formula, isPin, pins });
    // The sentence is told once for each step, the formula whenever it changes.
    live.say(number === told || complaint ? formula : `${text} ${formula}`);
    told = number;
  }

  const events = [...SHARED, "step"].map((name) => [`change:${name}`, paint]);
  for (const [name, listener] of events) model.on(name, listener);
  const stopWatching = watchTheme(paint);
  paint();
  el.append(root);
  return () => {
    for (const [name, listener] of events) model.off(name, listener);
    stopWatching();
    live.stop();
  };
}

const stepOf = (stage) => (INPUTS.includes(stage) ? "inputs" : stage);
const clamp = (n, length) => Math.max(0, Math.min(length - 1, n));

function replaced(table, i, j, value) {
  return table.map((row, n) =>
    n === i ? row.map((x, m) => (m === j ? value : x)) : row,
  );
}

// What stands before the tables: where we are, why, and how this number comes about.
function buildGuide({ go, release, releaseAll, reset, maskAll }) {
  const button = (text, click) => make("button", { type: "button", click }, text);
  const back = button("← Back", () => go(-1));
  const next = button("Next →", () => go(1));
  const count = make("span", { class: "lmbh-count" });
  const text = make("p", { class: "lmbh-text" });
  const formula = make("p", { class: "lmbh-formula" });
  const free = button("Release this number", release);
  const freeAll = button("Release all", releaseAll);
  const tools = make(
    "div",
    { class: "lmbh-tools" },
    make("span", {}, "Mask"),
    button("none", () => maskAll(false)),
    button("causal", () => maskAll(true)),
    button("Reset all", reset),
    free,
    freeAll,
  );
  return {
    node: make(
      "div",
      { class: "lmbh-guide" },
      make("div", { class: "lmbh-walk" }, back, count, next),
      text,
      formula,
      tools,
    ),
    show({ number, text: words, formula: sum, isPin, pins }) {
      // aria-disabled keeps the keyboard where it is; disabled would throw it out.
      back.setAttribute("aria-disabled", number === 0);
      next.setAttribute("aria-disabled", number === STEPS.length - 1);
      count.textContent = `Step ${number} of ${STEPS.length - 1}: ${STEPS[number]}`;
      text.textContent = words;
      formula.textContent = sum;
      free.hidden = !isPin;
      freeAll.hidden = pins.length === 0;
      freeAll.textContent = `Release all (${pins.length})`;
    },
  };
}

export default { render };
