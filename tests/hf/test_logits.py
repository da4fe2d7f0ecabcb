"""Merged folders in the hands of transformers: what is text there and what is speech is that of the checkpoint.

The tokens of a prompt are those of the public tokenizer, which transformers makes of the base model's files.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cosyjit.families import PRECISIONS
from tests.support.language_models import PREFIX, check_logits, hidden, load, loaded
from tests.support.merged_folders import BASE, component_of, planned, write

TEXTS = (
    "The sos, then text.[breath] 你好, <strong>x</strong> e\u0301 don't\n\n  12 [laughter]<|endofprompt|>",
    "[AA0][iàng] <|im_end|> <|s_1> <|s_70000|>",
)


def tokenizer_in(directory: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415  (it takes seconds, and each worker collects this file)

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


@functools.cache
def public_tokenizer(directory: Path, *, with_speech: bool = False) -> Any:
    """The base model's tokenizer with the special tokens of the family, as the public runtime makes it.

    Args:
        directory: the model directory.
        with_speech: whether the tokens of speech are added, as the public conversions add them.
    """
    tokenizer, tokens = tokenizer_in(directory / BASE), component_of(directory).tokens
    end = "<|endoftext|>"
    special = {"eos_token": end, "pad_token": end, "additional_special_tokens": list(tokens.text)}
    tokenizer.add_special_tokens(special)
    if with_speech:
        rows = load(directory)["speech_embedding.weight"].size(0)
        speech = [f"<|s_{number}|>" for number in range(rows)]
        speech[64 : 64 + len(tokens.named)] = tokens.named
        tokenizer.add_tokens([*speech, *tokens.marks])
    return tokenizer


@pytest.fixture(params=["tiny2", "tiny3"])
def directory(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def composition(directory: Path, text: str, speech: list[int]) -> Tensor:
    """The embedded prompt as the public runtime makes it: (T, D)."""
    state = load(directory)
    # CosyVoice3 has its marks among the extra rows behind the 64 tokens.
    begin, task = state.get("llm_embedding.weight", state["speech_embedding.weight"][[64, 66]])
    ids = public_tokenizer(directory).encode(text)
    return torch.cat(
        [begin[None], state[f"{PREFIX}embed_tokens.weight"][ids], task[None], state["speech_embedding.weight"][speech]]
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_text_and_speech_give_the_logits_of_the_checkpoints_own_tensors(
    directory: Path, precision: str, tmp_path: Path
) -> None:
    write(planned(directory), directory, tmp_path / "hf", precision)
    model, loading = loaded(tmp_path / "hf")
    tokenizer = tokenizer_in(tmp_path / "hf")
    assert {name: found for name, found in loading.items() if found} == {}
    assert {tensor.dtype for tensor in model.parameters()} == {getattr(torch, PRECISIONS[precision].dtype)}
    state = load(directory)
    rows = state["speech_embedding.weight"].size(0)
    first = len(public_tokenizer(directory))
    for text in TEXTS:
        speech = [5, 0, 63, 17, 17, 3]
        messages = [
            {"role": "system", "content": "left out"},
            {"role": "user", "content": text},
            {"role": "assistant", "content": "".join(f"<|s_{token}|>" for token in speech)},
        ]
        ids = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found = model(input_ids=ids).logits[0].double()
        x = hidden(directory, composition(directory, text, speech))
        expected = F.linear(x, state["llm_decoder.weight"], state.get("llm_decoder.bias"))
        tolerance = component_of(directory).tolerances[precision]
        check_logits(found[:, first : first + rows], expected, tolerance)
        rest = found[:, first + rows :]
        if "llm_decoder.bias" in state:
            assert (found[:, :first] == -torch.inf).all()
            assert (rest == -torch.inf).all()
        else:
            check_logits(found[:, :first], F.linear(x, state[f"{PREFIX}embed_tokens.weight"][:first]), tolerance)
            assert (rest == 0).all()


@pytest.mark.slow
def test_of_a_tied_head_and_embedding_that_differ_the_one_counts_that_the_public_runtime_loads_last(
    tiny2: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    copy = copy_of(tiny2)
    state = torch.load(copy / "llm.pt", weights_only=True)
    state["llm.model.lm_head.weight"] = state["llm.model.lm_head.weight"] + 1
    torch.save(state, copy / "llm.pt")
    public = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(copy / BASE, local_files_only=True)).float()
    own = "llm.model."
    public.load_state_dict({name.removeprefix(own): each for name, each in state.items() if name.startswith(own)})
    write(planned(copy), copy, tmp_path / "hf", "fp32")
    model, _ = loaded(tmp_path / "hf")
    first = len(public_tokenizer(tiny2))
    assert torch.equal(model.get_input_embeddings().weight[:first], public.get_input_embeddings().weight[:first])


def test_the_tokenizer_is_the_one_that_the_public_conversions_make(directory: Path, tmp_path: Path) -> None:
    write(planned(directory), directory, tmp_path / "hf")
    found = tokenizer_in(tmp_path / "hf")
    wanted = public_tokenizer(directory, with_speech=True)
    assert found.get_vocab() == wanted.get_vocab()
    assert (found.eos_token, found.pad_token, found.model_max_length) == ("<|endoftext|>", "<|endoftext|>", 32768)
    texts = [*TEXTS, "<|s_3|>\u0338<|s_63|><|s_64|> <|eos1|><|task_id|>x", "".join(map(chr, range(1, 3000)))]
    for text in texts:
        ids = wanted.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids) == wanted.decode(ids)
        assert found.decode(ids, skip_special_tokens=True) == wanted.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_transformers_takes_how_it_is_sampled_and_where_it_stops(directory: Path, tmp_path: Path) -> None:
    write(planned(directory), directory, tmp_path / "hf")
    from transformers import GenerationConfig  # noqa: PLC0415

    generation = GenerationConfig.from_pretrained(tmp_path / "hf", local_files_only=True)
    generation.validate(strict=True)
    tokenizer = tokenizer_in(tmp_path / "hf")
    stops = tokenizer.convert_ids_to_tokens(generation.eos_token_id)
    assert stops[:3] == (
        ["<|eos1|>", "<|eos2|>", "<|eos3|>"] if len(stops) == 3 else ["<|sos|>", "<|eos1|>", "<|task_id|>"]
    )
    assert len(stops) == component_of(directory).tokens.ends
    assert tokenizer.convert_ids_to_tokens(generation.pad_token_id) == "<|eos1|>"
    assert (generation.do_sample, generation.top_k, generation.max_new_tokens) == (True, 25, 2048)
