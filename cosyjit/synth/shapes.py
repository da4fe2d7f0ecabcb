"""Declares the tensors of the models of a configuration, by name and shape, for synthetic checkpoints.

`build_encoder` declares the encoders, `build_estimator` the estimators. The rest is declared by the few layers that
give the published names and shapes.
"""

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from torch import nn

from cosyjit.configuration.base_model import CONFIG, GENERATION
from cosyjit.configuration.config import Instance
from cosyjit.encoders.registry import build_encoder
from cosyjit.estimators.options import TABLES as ESTIMATORS
from cosyjit.estimators.registry import build_estimator
from cosyjit.synth.tokenizer import declare_tokenizer

_Options = dict[str, Any]


class _Qwen2(NamedTuple):
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    end: int


_QWEN2: Final = {
    64: _Qwen2(2, 4, 2, 128, 640, 352),
    128: _Qwen2(3, 4, 2, 256, 640, 352),
    896: _Qwen2(24, 14, 2, 4864, 151936, 151643),
}
"""By its width, which is all that the configuration of a language model gives. The last is Qwen2-0.5B. The tokens of
text are those before the end, two that follow it, and the special tokens of the family; all have rows."""


def declare_model(node: Instance) -> nn.Module:
    """A module on the default device with the tensors of a `!new:` node, by their published names and shapes."""
    if node.class_name in _MODELS:
        return _MODELS[node.class_name](node.options)
    build = build_estimator if node.class_name in ESTIMATORS else build_encoder
    return build(node.class_name, node.options)


def declare_base_model(node: Instance) -> dict[str, str]:
    """The contents of the files, by their names, that describe the base model of a language model.

    They are empty for a language model that does not have a base model.
    """
    if node.class_name not in _ON_QWEN2:
        return {}
    width = node.options["llm_input_size"]
    sizes = _QWEN2[width]
    ends = {"bos_token_id": sizes.end, "eos_token_id": sizes.end}
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        **ends,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": 131072,
        "max_window_layers": sizes.layers,
        "model_type": "qwen2",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_value_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": sizes.vocabulary,
    }
    generation = {**ends, "do_sample": False, "max_new_tokens": 2048, "transformers_version": "4.37.0"}
    configs = {CONFIG: config, GENERATION: generation}
    return {
        **{name: json.dumps(values, indent=2) + "\n" for name, values in configs.items()},
        **declare_tokenizer(sizes.end),
    }


def _parts(**parts: nn.Module) -> nn.Module:
    return nn.ModuleDict(parts)


def _transformer_lm(options: _Options) -> nn.Module:
    width, tokens = options["llm_input_size"], options["speech_token_size"]
    return _parts(
        text_embedding=nn.Embedding(options["text_token_size"], options["text_encoder_input_size"]),
        text_encoder=declare_model(options["text_encoder"]),
        text_encoder_affine_layer=nn.Linear(options["text_encoder"].options["output_size"], width),
        llm_embedding=nn.Embedding(2, width),
        llm=declare_model(options["llm"]),
        llm_decoder=nn.Linear(options["llm_output_size"], tokens + 1),
        speech_embedding=nn.Embedding(tokens, width),
        spk_embed_affine_layer=nn.Linear(options["spk_embed_dim"], width),
    )


def _qwen2_lm(options: _Options) -> nn.Module:
    width, tokens = options["llm_input_size"], options["speech_token_size"]
    return _parts(
        llm_embedding=nn.Embedding(2, width),
        llm=_parts(model=_qwen2(width, _QWEN2[width], with_head=True)),
        llm_decoder=nn.Linear(options["llm_output_size"], tokens + 3),
        speech_embedding=nn.Embedding(tokens + 3, width),
    )


def _cosyvoice3_lm(options: _Options) -> nn.Module:
    width, rows = options["llm_input_size"], options["speech_token_size"] + 200
    return _parts(
        llm=_parts(model=_qwen2(width, _QWEN2[width], with_head=False)),
        llm_decoder=nn.Linear(options["llm_output_size"], rows, bias=False),
        speech_embedding=nn.Embedding(rows, width),
    )


def _qwen2(width: int, sizes: _Qwen2, *, with_head: bool) -> nn.Module:
    embedding = nn.Embedding(sizes.vocabulary, width)
    layers = nn.ModuleList([_qwen2_layer(width, sizes) for _ in range(sizes.layers)])
    body = _parts(embed_tokens=embedding, layers=layers, norm=nn.LayerNorm(width, bias=False))
    if not with_head:
        return _parts(model=body)
    head = nn.Linear(width, sizes.vocabulary, bias=False)
    head.weight = embedding.weight  # tied in Qwen2-0.5B: two names, one tensor in the file
    return _parts(model=body, lm_head=head)


def _qwen2_layer(width: int, sizes: _Qwen2) -> nn.Module:
    key_value_width = width // sizes.heads * sizes.key_value_heads
    return _parts(
        self_attn=_parts(
            q_proj=nn.Linear(width, width),
            k_proj=nn.Linear(width, key_value_width),
            v_proj=nn.Linear(width, key_value_width),
            o_proj=nn.Linear(width, width, bias=False),
        ),
        mlp=_parts(
            gate_proj=nn.Linear(width, sizes.intermediate, bias=False),
            up_proj=nn.Linear(width, sizes.intermediate, bias=False),
            down_proj=nn.Linear(sizes.intermediate, width, bias=False),
        ),
        input_layernorm=nn.LayerNorm(width, bias=False),
        post_attention_layernorm=nn.LayerNorm(width, bias=False),
    )


def _flow(options: _Options) -> nn.Module:
    mel = options["output_size"]
    regulator = (
        {"length_regulator": declare_model(options["length_regulator"])} if "length_regulator" in options else {}
    )
    return _parts(
        input_embedding=nn.Embedding(options["vocab_size"], options["input_size"]),
        spk_embed_affine_layer=nn.Linear(options["spk_embed_dim"], mel),
        encoder=declare_model(options["encoder"]),
        encoder_proj=nn.Linear(options["encoder"].options["output_size"], mel),
        decoder=_parts(estimator=declare_model(options["decoder"].options["estimator"])),
        **regulator,
    )


def _dit_flow(options: _Options) -> nn.Module:
    mel = options["output_size"]
    return _parts(
        input_embedding=nn.Embedding(options["vocab_size"], options["input_size"]),
        spk_embed_affine_layer=nn.Linear(options["spk_embed_dim"], mel),
        pre_lookahead_layer=declare_model(options["pre_lookahead_layer"]),
        decoder=_parts(estimator=declare_model(options["decoder"].options["estimator"])),
    )


def _pre_lookahead(options: _Options) -> nn.Module:
    inputs, channels = options["in_channels"], options["channels"]
    ahead = nn.Conv1d(inputs, channels, options["pre_lookahead_len"] + 1)
    return _parts(conv1=ahead, conv2=nn.Conv1d(channels, inputs, 3))


def _length_regulator(options: _Options) -> nn.Module:
    channels = options["channels"]
    layers: list[nn.Module] = []
    for _ in options["sampling_ratios"]:
        layers += [nn.Conv1d(channels, channels, 3), nn.GroupNorm(1, channels), nn.Identity()]
    return _parts(model=nn.Sequential(*layers, nn.Conv1d(channels, channels, 1)))


_MODELS: Final[dict[str, Callable[[_Options], nn.Module]]] = {
    "cosyvoice.llm.llm.TransformerLM": _transformer_lm,
    "cosyvoice.llm.llm.Qwen2LM": _qwen2_lm,
    "cosyvoice.llm.llm.CosyVoice3LM": _cosyvoice3_lm,
    "cosyvoice.flow.flow.MaskedDiffWithXvec": _flow,
    "cosyvoice.flow.flow.CausalMaskedDiffWithXvec": _flow,
    "cosyvoice.flow.flow.CausalMaskedDiffWithDiT": _dit_flow,
    "cosyvoice.transformer.upsample_encoder.PreLookaheadLayer": _pre_lookahead,
    "cosyvoice.flow.length_regulator.InterpolateRegulator": _length_regulator,
}
"""The functions that declare the tensors of a node, by its class; encoders and estimators declare their own."""

_ON_QWEN2: Final = {"cosyvoice.llm.llm.Qwen2LM", "cosyvoice.llm.llm.CosyVoice3LM"}
"""The classes of language models whose base model is a Qwen2, with a configuration of its own."""
