"""Published weights: read the models of others, and write ours for their tools.

Chapter 10 of the book. A folder of the Hugging Face layout holds ``config.json`` and
the weights in ``model.safetensors``, or in several such files with an index. This
module says, for every family, what its configuration and its tensors are called there.

Known are GPT-2, Llama, Qwen2 and Mixtral (`model.GPT`), BERT (`bert.BERT`) and T5
(`t5.T5`). Left out: stretched rotary positions, sliding windows, heads of other tasks,
and weights in pickled files, which could run any code.

What differs between the layouts: GPT-2 stores its matrices as (in, out), and queries,
keys and values as one; T5 has the factor √D of its scores in the query weights.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from . import bert, model, t5

# --- One tensor of a file -----------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """How a tensor of a file is made of parameters of ours.

    >>> stored = Stored("attn.weight", ("query", "key"), transposed=True)
    >>> ours = {"query": torch.ones(1, 2), "key": torch.zeros(1, 2)}
    >>> stored.pack(ours)
    tensor([[1., 0.],
            [1., 0.]])
    """

    theirs: str  # its name in the file
    ours: tuple[str, ...]  # the parameters that it holds, one below the other
    transposed: bool = False  # whether it is stored as (in, out)
    factor: float = 1.0  # ours = theirs · factor

    def pack(self, parameters: dict[str, Tensor]) -> Tensor:
        """Make the tensor of the file."""
        whole = torch.cat([parameters[name] for name in self.ours])
        whole = whole / self.factor if self.factor != 1.0 else whole
        return (whole.T if self.transposed else whole).contiguous()

    def shape(self, parameters: dict[str, Tensor]) -> tuple[int, ...]:
        """Say the shape of the tensor in the file."""
        n_rows = sum(len(parameters[name]) for name in self.ours)
        shape = (n_rows, *parameters[self.ours[0]].shape[1:])
        return shape[::-1] if self.transposed else shape

    def unpack(self, tensor: Tensor, parameters: dict[str, Tensor]) -> None:
        """Copy the tensor of a file into our parameters."""
        whole = tensor.T if self.transposed else tensor
        sizes = [len(parameters[name]) for name in self.ours]
        for name, part in zip(self.ours, whole.split(sizes), strict=True):
            parameters[name].copy_(part)
            if self.factor != 1.0:
                parameters[name].mul_(self.factor)


def _both(theirs: str, ours: str, bias: bool, **how: object) -> list[Stored]:
    """A weight, and its bias if there is one; ``ours`` may be several, by spaces."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [
        Stored(
            f"{theirs}.{kind}", tuple(f"{name}.{kind}" for name in ours.split()), **how
        )
        for kind in kinds
    ]


def _transposed(theirs: str, ours: str) -> list[Stored]:
    weight, bias = _both(theirs, ours, bias=True)
    return [replace(weight, transposed=True), bias]


ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation {name!r} is unknown, expected one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _their_activation(config: model.ModelConfig) -> str:
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return names.get(config.feed_forward, config.feed_forward)


def _demand(config: dict, **expected: object) -> None:
    """Refuse what our models cannot do; a missing entry is the usual case."""
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"{name}={config[name]!r} is not supported, expected {value!r}"
            )


# --- GPT-2 --------------------------------------------------------------------------


def _read_gpt2(config: dict) -> model.ModelConfig:
    _demand(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    _demand(config, add_cross_attention=False)
    return model.ModelConfig(
        vocab_size=config["vocab_size"],
        max_len=config["n_positions"],
        d_model=config["n_embd"],
        n_layers=config["n_layer"],
        n_heads=config["n_head"],
        d_ff=config.get("n_inner"),
        feed_forward=_activation(config.get("activation_function", "gelu_new")),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tied=config.get("tie_word_embeddings", True),
    )


def _write_gpt2(config: model.ModelConfig) -> dict:
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_len,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.hidden_width,
        "activation_function": _their_activation(config),
        "layer_norm_epsilon": config.norm_eps,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout),
    }


def _stored_gpt2(config: model.ModelConfig) -> list[Stored]:
    stored = [
        Stored("transformer.wte.weight", ("embedding.weight",)),
        Stored("transformer.wpe.weight", ("position.weight",)),
        *_both("transformer.ln_f", "decoder.final_norm", bias=True),
    ]
    for n in range(config.n_layers):
        their, our = f"transformer.h.{n}", f"decoder.layers.{n}"
        heads = f"{our}.self_attention.heads"
        asks = " ".join(f"{heads}.project_{x}" for x in ("query", "key", "value"))
        stored += [
            *_transposed(f"{their}.attn.c_attn", asks),
            *_transposed(f"{their}.attn.c_proj", f"{heads}.project_output"),
            *_transposed(f"{their}.mlp.c_fc", f"{our}.feed_forward.project_up"),
            *_transposed(f"{their}.mlp.c_proj", f"{our}.feed_forward.project_down"),
            *_both(f"{their}.ln_1", f"{our}.around_self_attention.norm", bias=True),
            *_both(f"{their}.ln_2", f"{our}.around_feed_forward.norm", bias=True),
        ]
    return stored


# --- Llama, Qwen2, Mixtral ----------------------------------------------------------


def _read_llama(config: dict) -> model.ModelConfig:
    _demand(config, hidden_act="silu", mlp_bias=False, attention_bias=False)
    _demand(config, sliding_window=None, use_sliding_window=False)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} is not supported, expected 'default'")
    is_mixture = config["model_type"] == "mixtral"
    return model.ModelConfig(
        vocab_size=config["vocab_size"],
        max_len=config["max_position_embeddings"],
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config.get("num_key_value_heads"),
        d_head=config.get("head_dim"),
        d_ff=config["intermediate_size"],
        feed_forward="swiglu",
        norm="rms",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        bias=False,
        qkv_bias=config["model_type"] == "qwen2",
        position="rope",
        rope_base=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        tied=config.get("tie_word_embeddings", False),
        n_experts=config.get("num_local_experts", 0) if is_mixture else 0,
        top_k=config.get("num_experts_per_tok", 2),
    )


def _write_llama(config: model.ModelConfig) -> dict:
    written = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
        "rope_theta": config.rope_base,  # for older readers
        "attention_dropout": config.dropout,
    }
    if config.n_experts:
        written["num_local_experts"] = config.n_experts
        written["num_experts_per_tok"] = config.top_k
        written["sliding_window"] = None
    return written


def _stored_llama(config: model.ModelConfig) -> list[Stored]:
    stored = [
        Stored("model.embed_tokens.weight", ("embedding.weight",)),
        Stored("model.norm.weight", ("decoder.final_norm.weight",)),
    ]
    for n in range(config.n_layers):
        their, our = f"model.layers.{n}", f"decoder.layers.{n}"
        looks, thinks = f"{our}.self_attention.heads", f"{our}.feed_forward"
        for letter, name in zip("qkv", ("query", "key", "value"), strict=True):
            theirs = f"{their}.self_attn.{letter}_proj"
            stored += _both(theirs, f"{looks}.project_{name}", config.key_bias)
        stored += [
            *_both(f"{their}.self_attn.o_proj", f"{looks}.project_output", False),
            *_both(
                f"{their}.input_layernorm", f"{our}.around_self_attention.norm", False
            ),
            *_both(
                f"{their}.post_attention_layernorm",
                f"{our}.around_feed_forward.norm",
                False,
            ),
        ]
        if config.n_experts == 0:
            for name in ("gate", "up", "down"):
                theirs = f"{their}.mlp.{name}_proj"
                stored += _both(theirs, f"{thinks}.project_{name}", False)
            continue
        mixture = f"{their}.block_sparse_moe"
        stored += _both(f"{mixture}.gate", f"{thinks}.router.project_experts", False)
        for e in range(config.n_experts):
            for number, name in (("1", "gate"), ("2", "down"), ("3", "up")):
                ours = f"{thinks}.experts.{e}.project_{name}"
                stored += _both(f"{mixture}.experts.{e}.w{number}", ours, False)
    return stored


# --- BERT ---------------------------------------------------------------------------


def _read_bert(config: dict) -> model.ModelConfig:
    _demand(config, position_embedding_type="absolute", type_vocab_size=2)
    _demand(config, is_decoder=False, tie_word_embeddings=True)
    return model.ModelConfig(
        vocab_size=config["vocab_size"],
        max_len=config["max_position_embeddings"],
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        d_ff=config["intermediate_size"],
        feed_forward=_activation(config.get("hidden_act", "gelu")),
        norm_first=False,
        norm_eps=config.get("layer_norm_eps", 1e-12),
    )


def _write_bert(config: model.ModelConfig) -> dict:
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.hidden_width,
        "hidden_act": _their_activation(config),
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": 2,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def _stored_bert(config: model.ModelConfig) -> list[Stored]:
    table, head = "bert.embeddings", "cls.predictions"
    stored = [
        Stored(f"{table}.word_embeddings.weight", ("embedding.weight",)),
        Stored(f"{table}.position_embeddings.weight", ("position.weight",)),
        Stored(f"{table}.token_type_embeddings.weight", ("segment.weight",)),
        Stored(f"{head}.bias", ("logits_bias",)),
        *_both(f"{table}.LayerNorm", "embedding_norm", True),
        *_both(f"{head}.transform.dense", "transform", True),
        *_both(f"{head}.transform.LayerNorm", "transform_norm", True),
    ]
    for n in range(config.n_layers):
        their, our = f"bert.encoder.layer.{n}", f"encoder.layers.{n}"
        heads = f"{our}.self_attention.heads"
        for name, ours in (
            ("attention.self.query", f"{heads}.project_query"),
            ("attention.self.key", f"{heads}.project_key"),
            ("attention.self.value", f"{heads}.project_value"),
            ("attention.output.dense", f"{heads}.project_output"),
            ("attention.output.LayerNorm", f"{our}.around_self_attention.norm"),
            ("intermediate.dense", f"{our}.feed_forward.project_up"),
            ("output.dense", f"{our}.feed_forward.project_down"),
            ("output.LayerNorm", f"{our}.around_feed_forward.norm"),
        ):
            stored += _both(f"{their}.{name}", ours, True)
    return stored


STORED_NEXT_SENTENCE = [
    *_both("bert.pooler.dense", "pool", True),
    *_both("cls.seq_relationship", "project_next", True),
]


# --- T5 -----------------------------------------------------------------------------


def _read_t5(config: dict) -> model.ModelConfig:
    _demand(config, num_decoder_layers=config["num_layers"])
    tied = config.get("tie_word_embeddings", True)
    kind = config.get("feed_forward_proj", "relu")
    is_gated = kind in ("gated-gelu", "gated-gelu_new")
    return model.ModelConfig(
        vocab_size=config["vocab_size"],
        max_len=config.get("n_positions", 512),
        d_model=config["d_model"],
        n_layers=config["num_layers"],
        n_heads=config["num_heads"],
        d_head=config["d_kv"],
        d_ff=config["d_ff"],
        feed_forward="geglu" if is_gated else _activation(kind),
        norm="rms",
        norm_eps=config.get("layer_norm_epsilon", 1e-6),
        bias=False,
        position="none",
        # Since version 1.1 the output is neither scaled nor, as a rule, tied.
        tied=config.get("scale_decoder_outputs", tied),
        n_buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
    )


def _write_t5(config: model.ModelConfig) -> dict:
    is_gated = config.feed_forward == "geglu"
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_len,
        "d_model": config.d_model,
        "num_layers": config.n_layers,
        "num_decoder_layers": config.n_layers,
        "num_heads": config.n_heads,
        "d_kv": config.head_width,
        "d_ff": config.hidden_width,
        "feed_forward_proj": "gated-gelu" if is_gated else _their_activation(config),
        "layer_norm_epsilon": config.norm_eps,
        "dropout_rate": config.dropout,
        "scale_decoder_outputs": config.tied,
        "relative_attention_num_buckets": config.n_buckets,
        "relative_attention_max_distance": config.max_distance,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def _stored_t5(config: model.ModelConfig) -> list[Stored]:
    stored = [Stored("shared.weight", ("embedding.weight",))]
    for stack in ("encoder", "decoder"):
        theirs = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        stored += _both(theirs, f"{stack}_position", False)
        stored += _both(f"{stack}.final_layer_norm", f"{stack}.final_norm", False)
        for n in range(config.n_layers):
            stored += _t5_layer(config, stack, n)
    return stored


def _t5_layer(config: model.ModelConfig, stack: str, n: int) -> list[Stored]:
    their, our = f"{stack}.block.{n}.layer", f"{stack}.layers.{n}"
    steps = [("SelfAttention", "self_attention")]
    if stack == "decoder":
        steps.append(("EncDecAttention", "cross_attention"))
    stored = []
    for i, (attends, looks) in enumerate(steps):
        stored += _both(f"{their}.{i}.layer_norm", f"{our}.around_{looks}.norm", False)
        for letter, name in zip(
            "qkvo", ("query", "key", "value", "output"), strict=True
        ):
            theirs, ours = f"{their}.{i}.{attends}.{letter}", f"{our}.{looks}.heads"
            factor = math.sqrt(config.head_width) if letter == "q" else 1.0
            stored += _both(theirs, f"{ours}.project_{name}", False, factor=factor)
    i, thinks = len(steps), f"{our}.feed_forward"
    names = [("wi", "up"), ("wo", "down")]
    if config.feed_forward == "geglu":
        names = [("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")]
    stored += _both(f"{their}.{i}.layer_norm", f"{our}.around_feed_forward.norm", False)
    for theirs, ours in names:
        theirs = f"{their}.{i}.DenseReluDense.{theirs}"
        stored += _both(theirs, f"{thinks}.project_{ours}", False)
    return stored


# --- All families -------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """What one kind of folder is called, and how it is read and written.

    >>> FAMILIES["bert"].architecture, FAMILIES["bert"].build.__name__
    ('BertForPreTraining', 'BERT')
    """

    architecture: str  # as config.json names it
    build: type[nn.Module]  # our class
    read: Callable[[dict], model.ModelConfig]
    write: Callable[[model.ModelConfig], dict]
    stored: Callable[[model.ModelConfig], list[Stored]]
    prefix: str = ""  # what some files leave out before the names
    output: str = "lm_head.weight"  # the name of the scores, if not tied
    copies: tuple[str, ...] = ()  # tensors that repeat others or hold no weights


_OLD_BUFFERS = (r".*\.attn\.(masked_)?bias", r".*rotary_emb\.inv_freq")
_LLAMA = (_read_llama, _write_llama, _stored_llama, "model.", "lm_head.weight")
FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        model.GPT,
        _read_gpt2,
        _write_gpt2,
        _stored_gpt2,
        "transformer.",
        copies=_OLD_BUFFERS,
    ),
    "llama": Family("LlamaForCausalLM", model.GPT, *_LLAMA, _OLD_BUFFERS),
    "qwen2": Family("Qwen2ForCausalLM", model.GPT, *_LLAMA, _OLD_BUFFERS),
    "mixtral": Family("MixtralForCausalLM", model.GPT, *_LLAMA, _OLD_BUFFERS),
    "bert": Family(
        "BertForPreTraining",
        bert.BERT,
        _read_bert,
        _write_bert,
        _stored_bert,
        "bert.",
        copies=(r"cls\.predictions\.decoder\.(weight|bias)", r".*\.position_ids"),
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        t5.T5,
        _read_t5,
        _write_t5,
        _stored_t5,
        copies=(r"(en|de)coder\.embed_tokens\.weight",),
    ),
}


def from_pretrained(
    name: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **changes: object,
) -> model.GPT | bert.BERT | t5.T5:
    """Load a published model.

    Args:
        name: a folder with ``config.json`` and safetensors files, or the name of a
            model on the Hugging Face hub, which is then downloaded by its own library
        device: where the parameters are put; torch's default if not given
        dtype: their floating type; torch's default if not given, whatever the file has
        changes: fields of `model.ModelConfig` that do not change the weights, such as
            ``dropout`` or ``fused``

    Returns:
        A `model.GPT`, `bert.BERT` or `t5.T5`, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such folder or file, and no hub to ask.
        ValueError: if the architecture is not known, or a tensor is missing, is not
            expected, or has another shape; the message names it.

    >>> import tempfile
    >>> gpt = model.GPT(model.ModelConfig.preset("tiny"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(gpt, folder)
    ...     same = from_pretrained(folder)
    >>> torch.equal(same.embedding.weight, gpt.embedding.weight)
    True
    """
    folder = _find_folder(name)
    config = json.loads(_existing(folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"model_type={kind!r} in {folder / 'config.json'} is not known, expected "
            f"one of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    tensors = _clean(_load_tensors(folder), family)
    ours = replace(family.read(config), **changes)
    options = {}
    if kind == "bert":
        options["next_sentence"] = "cls.seq_relationship.weight" in tensors
    if kind == "t5" and "lm_head.weight" not in tensors and not ours.tied:
        tensors["lm_head.weight"] = tensors.get("shared.weight")  # not scaled, but tied
    built = family.build(ours, device="meta", dtype=dtype, **options)
    built.to_empty(device=torch.get_default_device() if device is None else device)
    _fill(built, tensors, _stored(family, built))
    return built.eval()


def save_pretrained(built: nn.Module, folder: str | Path) -> None:
    """Write a model so that `from_pretrained` and ``transformers`` can load it.

    Args:
        built: a `model.GPT` with the parts of GPT-2, Llama, Qwen2 or Mixtral, a
            `bert.BERT` or a `t5.T5`
        folder: made if it does not exist; gets ``config.json`` and
            ``model.safetensors``

    Raises:
        TypeError: if it is another kind of module.
        ValueError: if no known architecture has these parts; the message says what the
            nearest one has instead.

    >>> config = model.ModelConfig.preset("tiny", position="alibi")
    >>> save_pretrained(model.GPT(config), "somewhere")
    Traceback (most recent call last):
    ...
    ValueError: no known architecture is built like this; GPT2LMHeadModel has position='learned' instead of 'alibi'
    """  # noqa: E501
    kind = _kind_of(built)
    family = FAMILIES[kind]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {name: p.detach().cpu() for name, p in built.named_parameters()}
    tensors = {s.theirs: s.pack(parameters) for s in _stored(family, built)}
    architecture = family.architecture
    if kind == "bert" and built.pool is None:
        architecture = "BertForMaskedLM"
    config = {
        "architectures": [architecture],
        "model_type": kind,
        "dtype": str(built.embedding.weight.dtype).removeprefix("torch."),
        "tie_word_embeddings": built.config.tied,
        **family.write(built.config),
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    safetensors_torch.save_file(
        tensors, folder / "model.safetensors", metadata={"format": "pt"}
    )


def _kind_of(built: nn.Module) -> str:
    """The family that says all of a model's configuration."""
    candidates = [k for k, family in FAMILIES.items() if type(built) is family.build]
    if not candidates:
        raise TypeError(
            f"{type(built).__name__} has no published layout, expected GPT, BERT or T5"
        )
    wanted = _comparable(built.config)
    differences = {}
    for kind in candidates:
        differences[kind] = _unsaid(kind, built.config, wanted)
        if not differences[kind]:
            return kind
    nearest = min(differences, key=lambda kind: len(differences[kind]))
    said = ", ".join(differences[nearest])
    raise ValueError(
        "no known architecture is built like this; "
        f"{FAMILIES[nearest].architecture} has {said}"
    )


def _unsaid(kind: str, config: model.ModelConfig, wanted: dict) -> list[str]:
    """What would be lost if this configuration were written as one of this kind."""
    family = FAMILIES[kind]
    written = {
        "model_type": kind,
        "tie_word_embeddings": config.tied,
        **family.write(config),
    }
    try:
        got = _comparable(family.read(written))
    except ValueError as error:
        return [str(error)]
    return [
        f"{name}={got.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if got.get(name) != value
    ]


def _comparable(config: model.ModelConfig) -> dict:
    """The fields on which weights and results depend."""
    fields = asdict(config) | {
        "n_kv_heads": config.key_heads,
        "d_head": config.head_width,
        "d_ff": config.hidden_width,
        "qkv_bias": config.key_bias,
    }
    unimportant = {"dropout", "init_std", "fused", "n_buckets", "max_distance"}
    if config.position != "rope":
        unimportant.add("rope_base")
    if config.n_experts == 0:
        unimportant.add("top_k")
    return {name: v for name, v in fields.items() if name not in unimportant}


def _stored(family: Family, built: nn.Module) -> list[Stored]:
    stored = family.stored(built.config)
    if getattr(built, "project_logits", None) is not None:
        stored.append(Stored(family.output, ("project_logits.weight",)))
    if getattr(built, "pool", None) is not None:
        stored += STORED_NEXT_SENTENCE
    return stored


def _clean(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Bring the names of older files into today's form, and leave copies out."""
    heads = (family.prefix, "cls.", "lm_head.")
    is_bare = not any(name.startswith(family.prefix) for name in tensors)
    cleaned = {}
    for name, tensor in tensors.items():
        if is_bare and not name.startswith(heads):
            name = family.prefix + name
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if not any(re.fullmatch(pattern, name) for pattern in family.copies):
            cleaned[name] = tensor
    return cleaned


@torch.no_grad()
def _fill(
    built: nn.Module, tensors: dict[str, Tensor], all_stored: list[Stored]
) -> None:
    parameters = dict(built.named_parameters())
    expected = {stored.theirs for stored in all_stored}
    missing = [name for name in expected if tensors.get(name) is None]
    extra = [name for name in tensors if name not in expected]
    if extra == ["lm_head.weight"] and built.config.tied:
        extra = _unless_tied(tensors, all_stored)
    for what, names in (("misses", missing), ("has more than is known:", extra)):
        if names:
            raise ValueError(
                f"the file {what} {', '.join(sorted(names)[:5])} "
                f"({len(names)} tensors in all)"
            )
    for stored in all_stored:
        have, want = tuple(tensors[stored.theirs].shape), stored.shape(parameters)
        if have != want:
            raise ValueError(f"{stored.theirs} has shape {have}, expected {want}")
        stored.unpack(tensors[stored.theirs], parameters)


def _unless_tied(tensors: dict[str, Tensor], all_stored: list[Stored]) -> list[str]:
    """The output's weights may be repeated, as long as they are the input's."""
    theirs = [s.theirs for s in all_stored if s.ours == ("embedding.weight",)]
    inputs = tensors.get(theirs[0])
    same = inputs is not None and torch.equal(tensors["lm_head.weight"], inputs)
    return [] if same else ["lm_head.weight, though tied and not the same,"]


# --- Files --------------------------------------------------------------------------


def _find_folder(name: str | Path) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name)):
        raise FileNotFoundError(f"there is no folder {folder}")
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"there is no folder {folder}, and the hub cannot be asked for it: "
            "pip install huggingface_hub, or download the model and pass its folder"
        ) from None
    patterns = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        found = huggingface_hub.snapshot_download(str(name), allow_patterns=patterns)
    except Exception as error:
        raise FileNotFoundError(
            f"there is no folder {folder}, and the hub did not give it: {error}. "
            "Go online, or download the model elsewhere and pass its folder"
        ) from error
    return Path(found)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    return path


def _load_tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(where.values()))
    tensors = {}
    for file in files:
        tensors |= safetensors_torch.load_file(_existing(folder / file))
    return tensors
