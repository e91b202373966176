// What the live figures of chapter 08 compute. No page, no widget: plain functions of
// plain data, so that Node can run them next to the Python twins and compare.
//
// Shapes: V words, T tokens, C model width, H heads, D head width.

// --- Words -------------------------------------------------------------------------

const SPACE = /[ \t\n\r\f\v\u00a0\u2000-\u200a\u2028\u2029\u202f\u3000]+/u;
// One Chinese character, or a word with apostrophes and hyphens inside, or a sign.
const IDEOGRAPH =
  "[\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff\\u{20000}-\\u{3ffff}]";
const LETTER = `(?:(?!${IDEOGRAPH})[\\p{L}\\p{N}\\p{M}])`;
const WORD = new RegExp(`${IDEOGRAPH}|${LETTER}+(?:[-'’]${LETTER}+)*|.`, "gsu");

/** Cut a text into words; ids holds each word's number in the vocabulary, or null. */
export function splitWords(text, vocab) {
  const number = new Map(vocab.map((word, i) => [word, i]));
  const find = (word) => number.get(word) ?? number.get(word.toLowerCase()) ?? null;
  const chunks = text.split(SPACE).filter((chunk) => chunk !== "");
  const words = chunks.flatMap((chunk) =>
    find(chunk) === null ? chunk.match(WORD) : [chunk],
  );
  return { words, ids: words.map(find) };
}

// --- The model ---------------------------------------------------------------------

export const FORMAT = "lmbh-attention-1";

/** Read a safetensors file with float32 arrays; `bytes` is a DataView or an ArrayBuffer. */
export function readCheckpoint(bytes) {
  const view = ArrayBuffer.isView(bytes)
    ? new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    : new DataView(bytes);
  const { header, start } = readHeader(view);
  const { __metadata__: metadata = {}, ...places } = header;
  if (metadata.format !== FORMAT) {
    throw new Error(`its format is ${metadata.format ?? "not named"}, not ${FORMAT}`);
  }
  const arrays = {};
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(places)) {
    const [begin, end] = data_offsets;
    const size = 4 * shape.reduce((product, n) => product * n, 1);
    if (dtype !== "F32") throw new Error(`${name} has type ${dtype}, not F32`);
    if (begin < 0 || end - begin !== size || start + end > view.byteLength) {
      throw new Error(`${name} has shape ${shape}, which does not fit its bytes`);
    }
    // slice copies: a Float32Array must begin at a multiple of four bytes.
    const from = view.byteOffset + start + begin;
    arrays[name] = {
      shape,
      data: new Float32Array(view.buffer.slice(from, from + size)),
    };
  }
  return checkModel({
    vocab: JSON.parse(metadata.vocab),
    nHeads: Number(metadata.n_heads),
    nKvHeads: Number(metadata.n_kv_heads),
    arrays,
  });
}

function readHeader(view) {
  try {
    const start = 8 + Number(view.getBigUint64(0, true));
    const text = new Uint8Array(view.buffer, view.byteOffset + 8, start - 8);
    return { header: JSON.parse(new TextDecoder().decode(text)), start };
  } catch {
    throw new Error("it is not a safetensors file: its header cannot be read");
  }
}

function checkModel(model) {
  const { vocab, nHeads, nKvHeads, arrays } = model;
  if (!Array.isArray(vocab)) throw new Error("its vocab is not a list of words");
  const width = arrays.embedding?.shape[1];
  const keyWidth = (width / nHeads) * nKvHeads;
  if (!(nHeads >= 1 && nKvHeads >= 1) || width % nHeads || nHeads % nKvHeads) {
    throw new Error(`${nHeads} heads and ${nKvHeads} key heads do not fit C=${width}`);
  }
  const expect = (name, shape) => {
    const found = arrays[name]?.shape;
    if (String(found) !== String(shape)) {
      throw new Error(`${name} has shape (${found ?? "none"}), expected (${shape})`);
    }
    if (!arrays[name].data.every(Number.isFinite)) {
      throw new Error(`${name} has a number that is NaN or infinite`);
    }
  };
  expect("embedding", [vocab.length, width]);
  expect("positions", [arrays.positions?.shape[0] ?? "T_max", width]);
  for (const [name, n] of [
    ["project_query", width],
    ["project_key", keyWidth],
  ]) {
    expect(`${name}.weight`, [n, width]);
    if (arrays[`${name}.bias`]) expect(`${name}.bias`, [n]);
  }
  return { ...model, width, tMax: arrays.positions.shape[0] };
}

// --- Attention ---------------------------------------------------------------------

/** May query i look at key j? */
export function mayLook(mask, window, i, j) {
  if (mask === "causal") return j <= i;
  if (mask === "window") return j <= i && j > i - window;
  return true;
}

/** Share out one unit over the scores; -Infinity gets nothing, and so does an empty row. */
export function softmax(scores) {
  const largest = Math.max(...scores);
  if (largest === -Infinity) return scores.map(() => 0);
  // Measured against the largest, so that no exponential is too big for a number.
  const parts = scores.map((score) => Math.exp(score - largest));
  const total = parts.reduce((sum, part) => sum + part, 0);
  return parts.map((part) => part / total);
}

/** The weights of all heads, H tables of T rows; ids may hold null for unknown words. */
export function attentionWeights(model, ids, { mask, window, temperature, scaled }) {
  const { width, nHeads, nKvHeads } = model;
  const headWidth = width / nHeads;
  const x = ids.map((id, t) => embed(model, id, t));
  const queries = x.map((row) => project(model, row, "project_query"));
  const keys = x.map((row) => project(model, row, "project_key"));
  const factor = 1 / (temperature * (scaled ? Math.sqrt(headWidth) : 1));
  return Array.from({ length: nHeads }, (_, head) => {
    const queryStart = head * headWidth;
    // Neighbouring query heads share one key head.
    const keyStart = Math.floor((head * nKvHeads) / nHeads) * headWidth;
    return queries.map((query, i) =>
      softmax(
        keys.map((key, j) => {
          if (!mayLook(mask, window, i, j)) return -Infinity;
          let sum = 0;
          for (let d = 0; d < headWidth; d++)
            sum += query[queryStart + d] * key[keyStart + d];
          return sum * factor;
        }),
      ),
    );
  });
}

/** The average of several tables of one shape. */
export function average(tables) {
  return tables[0].map((row, i) =>
    row.map(
      (_, j) => tables.reduce((sum, table) => sum + table[i][j], 0) / tables.length,
    ),
  );
}

/** Over how many words would an equal share be spread as widely? exp of the entropy. */
export function spread(weights) {
  return Math.exp(weights.reduce((sum, w) => (w > 0 ? sum - w * Math.log(w) : sum), 0));
}

function embed({ vocab, width, arrays }, id, t) {
  const row = id ?? vocab.indexOf("<unknown>"); // -1 without <unknown>: then zeros
  return Array.from({ length: width }, (_, c) => {
    const word = row < 0 ? 0 : arrays.embedding.data[row * width + c];
    return word + arrays.positions.data[t * width + c];
  });
}

function project({ width, arrays }, row, name) {
  const { data, shape } = arrays[`${name}.weight`];
  const bias = arrays[`${name}.bias`]?.data;
  return Array.from({ length: shape[0] }, (_, out) => {
    let sum = bias ? bias[out] : 0;
    for (let c = 0; c < width; c++) sum += data[out * width + c] * row[c];
    return sum;
  });
}

// --- Step by step ------------------------------------------------------------------

/** All stages; a number in `pins`, such as {"scores[3,1]": 2}, replaces the computed one. */
export function attentionSteps({ query, key, value, mask, pins = {} }) {
  const pinned = (stage, table) =>
    table.map((row, i) => row.map((x, j) => pins[`${stage}[${i},${j}]`] ?? x));
  const scale = Math.sqrt(query[0].length);
  const scores = pinned(
    "scores",
    query.map((q) => key.map((k) => dot(q, k))),
  );
  const scaled = pinned(
    "scaled",
    scores.map((row) => row.map((x) => x / scale)),
  );
  const masked = scaled.map((row, i) =>
    row.map((x, j) => (mask[i][j] ? x : -Infinity)),
  );
  const weights = pinned("weights", masked.map(softmax));
  const output = weights.map((row) =>
    value[0].map((_, d) =>
      dot(
        row,
        value.map((v) => v[d]),
      ),
    ),
  );
  return { scores, scaled, masked, weights, output };
}

function dot(a, b) {
  return a.reduce((sum, x, i) => sum + x * b[i], 0);
}

/** A number for the eye: at most `digits` decimals, a real minus, no empty zeros. */
export function show(x, digits = 2) {
  if (x === -Infinity) return "−∞";
  const text = Number(x.toFixed(digits)).toString();
  return (text === "-0" ? "0" : text).replace("-", "−");
}

/** How number [i, j] of a stage comes about, in numbers: a name and what it equals. */
export function explain(stage, i, j, state) {
  const { query, key, value, mask, tokens, pins = {} } = state;
  const { scores, scaled, masked, weights, output } = attentionSteps(state);
  const place = `[${tokens[i]}, ${tokens[j]}]`;
  const column = `[${tokens[i]}, ${j}]`;
  const sum = (a, b) => a.map((x, n) => `${factor(x)}·${factor(b[n])}`).join(" + ");
  const pin = pins[`${stage}[${i},${j}]`];
  if (pin !== undefined) {
    const name = { scores: "score", weights: "weight" }[stage] ?? stage;
    return `${name}${place} = ${show(pin)}, put by you`;
  }
  if (stage === "scores") {
    return `score${place} = ${sum(query[i], key[j])} = ${show(scores[i][j])}`;
  }
  if (stage === "scaled") {
    const d = query[0].length;
    return `scaled${place} = ${show(scores[i][j])} / √${d} = ${show(scaled[i][j])}`;
  }
  if (stage === "masked") {
    return mask[i][j]
      ? `masked${place} = ${show(scaled[i][j])}: “${tokens[i]}” may look at “${tokens[j]}”`
      : `masked${place} = −∞: “${tokens[i]}” may not look at “${tokens[j]}”`;
  }
  if (stage === "weights") {
    if (!mask[i].includes(true))
      return `weight${place} = 0: “${tokens[i]}” may look at nobody`;
    const parts = masked[i].map((x) => (x === -Infinity ? "0" : `e^${factor(x)}`));
    const result = show(weights[i][j], 3);
    return `weight${place} = ${parts[j]} / (${parts.join(" + ")}) = ${result}`;
  }
  if (stage === "output") {
    const values = value.map((row) => row[j]);
    return `output${column} = ${sum(weights[i], values)} = ${show(output[i][j])}`;
  }
  const table = { query, key, value }[stage];
  return `${stage}${column} = ${show(table[i][j])}`;
}

function factor(x) {
  return x < 0 ? `(${show(x)})` : show(x);
}

// --- Colours -----------------------------------------------------------------------

const RAMPS = {
  light: [
    [246, 249, 252],
    [107, 174, 214],
    [8, 64, 129],
  ],
  dark: [
    [28, 36, 46],
    [27, 98, 158],
    [203, 232, 255],
  ],
};

/** The colour of a weight between 0 and 1, and black or white, whichever reads better. */
export function heatColour(weight, dark) {
  const ramp = RAMPS[dark ? "dark" : "light"];
  const place = 2 * Math.min(1, Math.max(0, weight));
  const n = Math.min(1, Math.floor(place));
  const rgb = ramp[n].map((from, c) =>
    Math.round(from + (ramp[n + 1][c] - from) * (place - n)),
  );
  const text =
    contrast(rgb, [255, 255, 255]) > contrast(rgb, [0, 0, 0]) ? "#fff" : "#000";
  return { background: `rgb(${rgb.join(", ")})`, text, rgb };
}

/** The contrast ratio of two colours, from 1 to 21 (WCAG 2.2). */
export function contrast(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const x = value / 255;
    return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
