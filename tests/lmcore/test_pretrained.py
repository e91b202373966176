"""Tests of lmcore.pretrained: logits equal those of transformers, both ways.

The models are small and random, so nothing is downloaded.
"""

import dataclasses
import json
import sys
import types
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmcore import bert, model, pretrained, t5
from lmcore.model import ModelConfig

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, V = 2, 9, 37
GPT2 = {
    "vocab_size": V,
    "n_positions": 16,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LLAMA = {
    "vocab_size": V,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
}
BERT = {
    "vocab_size": V,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
T5 = {"vocab_size": V, "d_model": 12, "d_ff": 20, "num_layers": 2, "num_heads": 3}
DECODERS = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 wide relu": ("GPT2", GPT2 | {"n_inner": 17, "activation_function": "relu"}),
    "gpt2 untied": ("GPT2", GPT2 | {"tie_word_embeddings": False}),
    "llama": ("Llama", LLAMA | {"rope_theta": 500_000.0, "rms_norm_eps": 1e-3}),
    "llama tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "head_dim": 10}),
    "qwen2": ("Qwen2", LLAMA | {"rope_theta": 1000.0}),
    "qwen2 tied": ("Qwen2", LLAMA | {"tie_word_embeddings": True}),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 3}),
}


def make(kind, head, options):
    """A random model of theirs, every parameter away from its first value."""
    config = getattr(transformers, f"{kind}Config")(**options)
    theirs = getattr(transformers, f"{kind}{head}")(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs.eval()


def draw_ids(n_tokens=T):
    return torch.randint(V, (B, n_tokens))


def some_padding(n_tokens=T):
    mask = torch.ones(B, n_tokens, dtype=torch.bool)
    mask[1, 5:] = False
    return mask


# --- Logits equal -------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_equal_theirs(name, tmp_path, device):
    """Logits, gradient, and logits of what we save for them."""
    kind, options = DECODERS[name]
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    theirs = make(kind, head, options)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.from_pretrained(tmp_path, device=device)
    assert type(ours) is model.GPT
    assert not ours.training
    ids = draw_ids()
    expected, logits = theirs(ids).logits, ours(ids.to(device))
    close(logits.cpu(), expected)

    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(
        expected, theirs.get_input_embeddings().weight, upstream
    )
    got = torch.autograd.grad(logits, ours.embedding.weight, upstream.to(device))
    close(got[0].cpu(), wanted[0], atol=5e-5)

    pretrained.save_pretrained(ours, tmp_path / "back")
    again = type(theirs).from_pretrained(tmp_path / "back").train()
    close(again(ids).logits, expected)  # and what we do not drop, they do not either
    same = pretrained.from_pretrained(tmp_path / "back")
    close(same(ids), expected)


@pytest.mark.parametrize("head", ["ForPreTraining", "ForMaskedLM"])
def test_bert_equals_theirs(head, tmp_path):
    """With two segments and padding; both heads where there are two."""
    theirs = make("Bert", head, BERT)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.from_pretrained(tmp_path)
    assert type(ours) is bert.BERT
    ids, segments, mask = draw_ids(), draw_ids() % 2, some_padding()
    options = {"attention_mask": mask.long(), "token_type_ids": segments}
    expected = theirs(ids, **options)
    features = ours.features(ids, mask, segments)
    close(ours.logits(features)[mask], expected[0][mask])
    if head == "ForPreTraining":
        close(ours.next_sentence_logits(features), expected[1])
    pretrained.save_pretrained(ours, tmp_path / "back")
    again = type(theirs).from_pretrained(tmp_path / "back").eval()
    close(again(ids, **options)[0], expected[0])


@pytest.mark.parametrize(
    "options",
    [
        {"d_kv": 4},
        {"d_kv": 7, "relative_attention_num_buckets": 8},
        {"d_kv": 4, "relative_attention_max_distance": 20},
        {"d_kv": 5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ],
)
def test_t5_equals_theirs(options, tmp_path):
    """Texts longer than the buckets of single distances; heads of any width."""
    theirs = make("T5", "ForConditionalGeneration", T5 | options)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.from_pretrained(tmp_path)
    assert type(ours) is t5.T5
    source, target, mask = draw_ids(30), draw_ids(19), some_padding(30)
    call = {"attention_mask": mask.long(), "decoder_input_ids": target}
    expected = theirs(input_ids=source, **call).logits
    close(ours(source, target, mask), expected)
    pretrained.save_pretrained(ours, tmp_path / "back")
    again = type(theirs).from_pretrained(tmp_path / "back").eval()
    close(again(input_ids=source, **call).logits, expected)


def test_t5_with_an_output_of_its_own(tmp_path):
    config = ModelConfig.preset("t5-small", vocab_size=V, d_model=12, n_heads=3)
    ours = t5.T5(dataclasses.replace(config, tied=False, feed_forward="geglu")).eval()
    pretrained.save_pretrained(ours, tmp_path)
    source, target = draw_ids(), draw_ids(4)
    close(pretrained.from_pretrained(tmp_path)(source, target), ours(source, target))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected = theirs(input_ids=source, decoder_input_ids=target).logits
    close(ours(source, target), expected)


def test_left_padding_equals_theirs_with_positions(tmp_path):
    """Their model has to be told the positions, ours sees them in the mask."""
    theirs = make("GPT2", "LMHeadModel", GPT2)
    theirs.save_pretrained(tmp_path)
    ours = pretrained.from_pretrained(tmp_path)
    ids, mask = draw_ids(), some_padding().flip(1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=places).logits
    close(ours(ids, mask)[mask], expected[mask])


# --- Other forms of the same files --------------------------------------------------


@pytest.fixture
def gpt2_folder(tmp_path):
    gpt = model.GPT(dataclasses.replace(ModelConfig.preset("tiny"), vocab_size=V))
    pretrained.save_pretrained(gpt, tmp_path)
    return tmp_path


def change(folder, edit):
    """Read the tensors of a folder, let ``edit`` change them, and write them."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_names_without_prefix_and_old_buffers(gpt2_folder):
    """As OpenAI's own file has them."""
    expected = pretrained.from_pretrained(gpt2_folder)

    def edit(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)

    change(gpt2_folder, edit)
    ids = draw_ids()
    close(pretrained.from_pretrained(gpt2_folder)(ids), expected(ids))


def test_old_names_of_bert(tmp_path):
    config = ModelConfig.preset("bert-base", vocab_size=V, d_model=24, n_layers=1)
    reader = bert.BERT(config).eval()
    pretrained.save_pretrained(reader, tmp_path)

    def edit(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["cls.predictions.decoder.weight"] = torch.zeros(V, 24)

    change(tmp_path, edit)
    ids = draw_ids()
    close(pretrained.from_pretrained(tmp_path)(ids), reader(ids))


def test_several_files(gpt2_folder):
    expected = pretrained.from_pretrained(gpt2_folder)
    tensors = load_file(gpt2_folder / "model.safetensors")
    (gpt2_folder / "model.safetensors").unlink()
    where = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in names}, gpt2_folder / file)
        where |= dict.fromkeys(names, file)
    index = gpt2_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    ids = draw_ids()
    close(pretrained.from_pretrained(gpt2_folder)(ids), expected(ids))
    (gpt2_folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model-1\.safetensors"):
        pretrained.from_pretrained(gpt2_folder)


def test_tied_output_may_be_repeated(gpt2_folder):
    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    change(gpt2_folder, repeat)
    pretrained.from_pretrained(gpt2_folder)
    change(gpt2_folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"lm_head\.weight, though tied and not the"):
        pretrained.from_pretrained(gpt2_folder)


def test_type_and_changes(gpt2_folder):
    gpt = pretrained.from_pretrained(
        gpt2_folder, dtype=torch.bfloat16, dropout=0.25, fused=False
    )
    assert gpt(draw_ids()).dtype == torch.bfloat16
    assert (gpt.config.dropout, gpt.config.fused) == (0.25, False)
    pretrained.save_pretrained(gpt, gpt2_folder)
    assert json.loads((gpt2_folder / "config.json").read_text())["dtype"] == "bfloat16"
    same = pretrained.from_pretrained(gpt2_folder, dtype=torch.bfloat16)
    assert torch.equal(same.embedding.weight, gpt.embedding.weight)


# --- Refusals -----------------------------------------------------------------------

QUERY = "transformer.h.1.attn.c_attn.weight"


def test_missing_extra_and_wrong_tensors_are_named(gpt2_folder):
    tensors = load_file(gpt2_folder / "model.safetensors")
    whole = tensors.pop(QUERY)
    for edited, message in (
        (tensors, rf"misses {QUERY} \(1 tensors in all\)"),
        (
            tensors | {QUERY: whole, "transformer.h.7.ln_1.bias": whole[0].clone()},
            r"more than is known: transformer\.h\.7\.ln_1\.bias",
        ),
        (
            tensors | {QUERY: whole.T.contiguous()},
            rf"{QUERY} has shape \(96, 32\), expected \(32, 96\)",
        ),
    ):
        save_file(edited, gpt2_folder / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            pretrained.from_pretrained(gpt2_folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "mamba"}, "model_type='mamba' .* expected one of gpt2"),
        ({"activation_function": "tanh"}, "activation 'tanh' is unknown"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True is not supported, expected False",
        ),
        ({"n_head": 5}, "d_model=32 is not divisible by n_heads=5"),
    ],
)
def test_wrong_architecture_names_itself(gpt2_folder, entries, message):
    change_config(gpt2_folder, **entries)
    with pytest.raises(ValueError, match=message):
        pretrained.from_pretrained(gpt2_folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"sliding_window": 7}, "sliding_window=7 is not supported, expected None"),
        ({"attention_bias": True}, "attention_bias=True"),
    ],
)
def test_wrong_llama_names_itself(tmp_path, entries, message):
    gpt = model.GPT(ModelConfig.preset("llama-tiny"))
    pretrained.save_pretrained(gpt, tmp_path)
    pretrained.from_pretrained(tmp_path)
    change_config(tmp_path, **entries)
    with pytest.raises(ValueError, match=message):
        pretrained.from_pretrained(tmp_path)


def test_missing_files(gpt2_folder):
    with pytest.raises(FileNotFoundError, match="there is no folder /no/where"):
        pretrained.from_pretrained("/no/where")
    (gpt2_folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        pretrained.from_pretrained(gpt2_folder)
    (gpt2_folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        pretrained.from_pretrained(gpt2_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": "alibi"}, "position='learned' instead of 'alibi'"),
        ({"feed_forward": "swiglu"}, "feed_forward='relu' instead|activation 'swiglu'"),
        ({"n_kv_heads": 1}, "n_kv_heads=2 instead of 1"),
        ({"bias": False}, "bias=True instead of False"),
    ],
)
def test_what_cannot_be_said_is_not_saved(tmp_path, changes, message):
    gpt = model.GPT(dataclasses.replace(ModelConfig.preset("tiny"), **changes))
    with pytest.raises(ValueError, match=f"no known architecture.*({message})"):
        pretrained.save_pretrained(gpt, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_known_classes_are_saved(tmp_path):
    with pytest.raises(TypeError, match="Linear has no published layout"):
        pretrained.save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    prefix = model.PrefixLM(ModelConfig.preset("tiny"))
    with pytest.raises(TypeError, match="PrefixLM has no published layout"):
        pretrained.save_pretrained(prefix, tmp_path)


# --- The hub ------------------------------------------------------------------------


def test_hub_name(gpt2_folder, monkeypatch):
    """The hub's own library downloads; only weights and configuration are asked for."""
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(gpt2_folder)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert type(pretrained.from_pretrained("someone/gpt2-tiny")) is model.GPT
    assert asked[0][0] == "someone/gpt2-tiny"
    assert not any("bin" in pattern for pattern in asked[0][1])


def test_hub_out_of_reach(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise OSError("no route to host")

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(FileNotFoundError, match=r"no route to host\. Go online, or"):
        pretrained.from_pretrained("someone/gpt2-tiny")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        pretrained.from_pretrained("someone/gpt2-tiny")
