"""The rules of the merged folder: which ids tokens get, which rows stand there, and what fits no rule."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from cosyjit.configuration.base_model import CONFIG, GENERATION
from cosyjit.configuration.base_tokenizer import SETTINGS, WHOLE, read_tokenizer
from cosyjit.errors import CheckpointError, ConfigError, CosyjitError
from cosyjit.families import COSYVOICE2_HF, COSYVOICE3_HF, PRECISIONS
from cosyjit.folders.content import Filled, Rows
from cosyjit.hf.rules import NOTE, Folder, padded
from cosyjit.hf.vocabulary import CHAT_TEMPLATE, merged
from cosyjit.synth.tokenizer import declare_tokenizer
from cosyjit.weights.tensors import Entries, StoredTensor
from tests.support.base_tokenizers import edit, make_whole, read
from tests.support.language_models import refused
from tests.support.merged_folders import BASE, planned
from tests.support.weights_index import indexed_file

TEXT: Final = "llm.model.model.embed_tokens.weight"
HEAD: Final = "llm.model.lm_head.weight"

BaseOf = Callable[..., Path]


@pytest.fixture
def base_of(tmp_path: Path) -> BaseOf:
    """Copies a stand-in without its weights, and changes what its base configuration says."""

    def change(directory: Path, **options: Any) -> Path:
        copy = tmp_path / directory.name
        shutil.copytree(directory / BASE, copy / BASE)
        (yaml,) = directory.glob("*.yaml")
        shutil.copy(yaml, copy)
        edit(copy / BASE / CONFIG, **options)
        return copy

    return change


def entries_of(directory: Path) -> Entries:
    return indexed_file(directory / "llm.pt")


def resized(entries: Entries, *, text: int | None = None, speech: int | None = None) -> Entries:
    """Entries with other numbers of rows of text and of speech."""
    rows = {TEXT: text, HEAD: text, "speech_embedding.weight": speech, "llm_decoder.weight": speech}
    rows["llm_decoder.bias"] = speech
    found = dict(entries)
    for name, number in rows.items():
        entry = found.get(name)
        if isinstance(entry, StoredTensor) and number is not None:
            found[name] = entry._replace(shape=(number, *entry.shape[1:]))
    return found


refusal = partial(refused, planned)


def pieces(folder: Folder, name: str) -> tuple[Any, ...]:
    return next(tensor.pieces for tensor in folder.tensors if tensor.name == name)


def texts(folder: Folder, name: str) -> Any:
    return json.loads(folder.texts(PRECISIONS["bf16"])[name])


# Where rows stand.


def test_with_a_bias_all_but_speech_is_kept_out(tiny2: Path) -> None:
    folder = planned(tiny2)
    assert pieces(folder, "model.embed_tokens.weight") == (
        Rows(HEAD, 0, 372),
        Rows("speech_embedding.weight", 0, 67),
        Rows("llm_embedding.weight", 0, 2),
        Filled(0, 71),
    )
    assert pieces(folder, "lm_head.weight") == (Filled(0, 372), Rows("llm_decoder.weight", 0, 67), Filled(0, 73))
    assert pieces(folder, "lm_head.bias") == (
        Filled(-math.inf, 372),
        Rows("llm_decoder.bias", 0, 67),
        Filled(-math.inf, 73),
    )


def test_without_one_text_keeps_the_head_that_it_has(tiny3: Path) -> None:
    folder = planned(tiny3)
    assert pieces(folder, "model.embed_tokens.weight") == (
        Rows(TEXT, 0, 633),
        Rows("speech_embedding.weight", 0, 264),
        Filled(0, 127),
    )
    assert pieces(folder, "lm_head.weight") == (Rows(TEXT, 0, 633), Rows("llm_decoder.weight", 0, 264), Filled(0, 127))
    assert "lm_head.bias" not in {tensor.name for tensor in folder.tensors}


def test_a_head_of_the_texts_own_is_also_its_embedding_where_the_two_are_tied(tiny3: Path, base_of: BaseOf) -> None:
    entries = entries_of(tiny3)
    own = entries[TEXT]
    assert isinstance(own, StoredTensor)
    other = entries | {HEAD: own._replace(start=own.start + 64)}
    tied = planned(tiny3, other)
    assert pieces(tied, "model.embed_tokens.weight")[0] == pieces(tied, "lm_head.weight")[0] == Rows(HEAD, 0, 633)
    untied = planned(base_of(tiny3, tie_word_embeddings=False), other)
    assert pieces(untied, "model.embed_tokens.weight")[0] == Rows(TEXT, 0, 633)
    assert pieces(untied, "lm_head.weight")[0] == Rows(HEAD, 0, 633)


@pytest.mark.parametrize("model", ["tiny2", "tiny3"])
def test_each_other_tensor_is_copied_whole(model: str, request: pytest.FixtureRequest) -> None:
    folder = planned(request.getfixturevalue(model))
    others = [tensor for tensor in folder.tensors if tensor.name.startswith(("model.layers.", "model.norm."))]
    assert len(others) == 25
    assert {tensor.pieces for tensor in others} == {
        (Rows(f"llm.model.{tensor.name}", 0, tensor.shape[0]),) for tensor in others
    }
    assert all(sum(piece.rows for piece in tensor.pieces) == tensor.shape[0] for tensor in folder.tensors)
    assert {piece.source for tensor in folder.tensors for piece in tensor.pieces if isinstance(piece, Rows)} == set(
        folder.shapes
    )


def test_a_vocabulary_of_a_multiple_of_128_has_no_padding(tiny2: Path) -> None:
    folder = planned(tiny2, resized(entries_of(tiny2), speech=138))
    assert folder.config["vocab_size"] == 512
    assert pieces(folder, "model.embed_tokens.weight")[-1] == Rows("llm_embedding.weight", 0, 2)
    assert pieces(folder, "lm_head.weight")[-1] == Filled(0, 2)


def test_offsets_follow_from_the_checkpoint_and_its_tokenizer(tiny2: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny2, vocab_size=700)
    listed = read(directory / BASE / SETTINGS)["added_tokens_decoder"]
    more = {str(number): {"content": f"[more {number}]"} for number in range(355, 365)}
    edit(directory / BASE / SETTINGS, added_tokens_decoder={**listed, **more})
    folder = planned(directory, resized(entries_of(tiny2), text=700, speech=103))
    note = texts(folder, NOTE)
    assert (note["original_vocab_size"], note["speech_token_offset"], note["base_speech_token_size"]) == (365, 382, 100)
    assert note["stop_token_ids"] == [482, 483, 484]
    assert note["special_token_ids"]["<|task_id|>"] == 486


@pytest.mark.slow
def test_of_the_published_sizes_the_ids_are_those_that_public_code_has_as_constants(tmp_path: Path) -> None:
    (tmp_path / BASE).mkdir()
    for name, text in declare_tokenizer(151643).items():
        (tmp_path / BASE / name).write_text(text, encoding="utf-8")
    base = read_tokenizer(tmp_path)
    assert (len(base), base.ids["<|im_end|>"]) == (151646, 151645)
    two = merged(base, COSYVOICE2_HF.tokens, 6564, 151936, "llm.pt")
    three = merged(base, COSYVOICE3_HF.tokens, 6761, 151936, "llm.pt")
    assert (two.offset, three.offset) == (151663, 151924)
    assert two.text[0] == three.text[0] == "<|endofprompt|>"  # 151646 in the public runtime
    assert (padded(two), padded(three)) == (158336, 158720)
    assert (two.stop_ids, three.stop_ids[1]) == ([158224, 158225, 158226], 151924 + 6562)
    assert two.ids_behind_text()["<|task_id|>"] == 158228
    assert [three.speech[number] for number in (6560, 6561, 6563)] == ["<|s_6560|>", "<|sos|>", "<|task_id|>"]


# What tokens are called.


def test_tokens_follow_each_other_as_their_rows_do(tiny2: Path, tiny3: Path) -> None:
    two, three = planned(tiny2), planned(tiny3)
    assert two.vocabulary.speech[62:] == ("<|s_62|>", "<|s_63|>", "<|eos1|>", "<|eos2|>", "<|eos3|>")
    assert two.vocabulary.marks == ("<|sos|>", "<|task_id|>")
    names = ("<|s_63|>", "<|sos|>", "<|eos1|>", "<|task_id|>", "<|fill|>", "<|s_68|>")
    assert (three.vocabulary.speech[63:69], three.vocabulary.speech[-1]) == (names, "<|s_263|>")
    assert two.vocabulary.text[:2] == three.vocabulary.text[:2] == ("<|endofprompt|>", "[breath]")
    assert (len(two.vocabulary.text), len(three.vocabulary.text)) == (17, 278)
    added = {each["content"]: each for each in texts(two, WHOLE)["added_tokens"]}
    assert [added["<|im_end|>"]["id"], added["<|endofprompt|>"]["id"], added["[mn]"]["id"]] == [354, 355, 371]
    assert [each["id"] for each in added.values()] == list(range(352, 441))
    special = [name for name, each in added.items() if each["special"]]
    assert special == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *two.vocabulary.text]


def test_special_tokens_that_are_there_in_their_order_stay(tiny2: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny2)
    wanted = planned(tiny2)
    listed = read(directory / BASE / SETTINGS)["added_tokens_decoder"]
    saved = {
        str(number): {"content": token, "special": True, "normalized": False}
        for number, token in enumerate(wanted.vocabulary.text, 355)
    }
    edit(directory / BASE / SETTINGS, added_tokens_decoder={**listed, **saved})
    folder = planned(directory, entries_of(tiny2))
    assert folder.vocabulary.text == ()
    assert texts(folder, WHOLE) == texts(wanted, WHOLE)
    assert {**texts(folder, NOTE), "original_vocab_size": 355} == texts(wanted, NOTE)


def test_special_tokens_are_special_whatever_the_base_says_of_them(tiny2: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny2)
    listed = read(directory / BASE / SETTINGS)["added_tokens_decoder"]
    odd = {number: {**each, "special": False, "lstrip": True, "normalized": True} for number, each in listed.items()}
    edit(directory / BASE / SETTINGS, added_tokens_decoder=odd)
    assert texts(planned(directory, entries_of(tiny2)), WHOLE) == texts(planned(tiny2), WHOLE)


def test_either_form_of_a_tokenizer_gives_the_same_folder(tiny3: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny3)
    wanted = planned(tiny3)
    make_whole(directory / BASE)
    folder = planned(directory, entries_of(tiny3))
    assert folder.texts(PRECISIONS["fp32"]) == wanted.texts(PRECISIONS["fp32"])
    assert folder.tensors == wanted.tensors
    assert folder.options != wanted.options


# The files beside the tensors.


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp32", "float32")])
def test_the_configuration_is_the_base_one_but_for_the_rules(tiny2: Path, precision: str, dtype: str) -> None:
    base = read(tiny2 / BASE / CONFIG)
    changed = {"vocab_size": 512, "eos_token_id": 436, "tie_word_embeddings": False, "use_bias": True}
    folder = planned(tiny2)
    assert json.loads(folder.texts(PRECISIONS[precision])[CONFIG]) == base | changed | {"torch_dtype": dtype}


def test_generation_stops_at_each_row_behind_speech_and_is_sampled_as_publicly(tiny2: Path, tiny3: Path) -> None:
    base = read(tiny2 / BASE / GENERATION)
    sampled = {"do_sample": True, "temperature": 1.0, "top_p": 0.8, "top_k": 25}
    ends = {"eos_token_id": [436, 437, 438], "pad_token_id": 436}
    assert texts(planned(tiny2), GENERATION) == base | sampled | ends
    found = texts(planned(tiny3), GENERATION)
    assert (found["eos_token_id"], found["pad_token_id"]) == ([*range(697, 897)], 698)
    assert (found["temperature"], found["top_p"], found["repetition_penalty"]) == (0.8, 0.95, 1.1)


def test_the_note_says_what_consumers_have_to_know(tiny3: Path) -> None:
    assert texts(planned(tiny3), NOTE) == {
        "schema": 1,
        "family": "CosyVoice3",
        "original_vocab_size": 355,
        "text_vocab_size": 633,
        "speech_token_offset": 633,
        "base_speech_token_size": 64,
        "embedding_size": 264,
        "vocab_size": 897,
        "padded_vocab_size": 1024,
        "eos_token_id": 698,
        "stop_token_ids": [*range(697, 897)],
        "special_token_ids": {"<|sos|>": 697, "<|eos1|>": 698, "<|task_id|>": 699, "<|fill|>": 700},
        "head_has_bias": False,
        "prompt": "<|sos|>{text}<|task_id|>{speech}",
    }


def test_the_settings_have_nothing_of_the_base_but_its_length(tiny3: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny3)
    edit(directory / BASE / SETTINGS, auto_map={"AutoTokenizer": "evil.py"}, chat_template="{{ x }}", errors=[1])
    found = texts(planned(directory, entries_of(tiny3)), SETTINGS)
    assert found == texts(planned(tiny3), SETTINGS)
    assert (found["model_max_length"], found["chat_template"]) == (32768, CHAT_TEMPLATE)
    assert found["additional_special_tokens"] == list(COSYVOICE3_HF.tokens.text)


def test_options_have_what_decides_the_bytes_beside_tensors(tiny3: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny3)
    before = planned(tiny3).options
    assert {"tokenizer_config.json", "vocab.json", "merges.txt", "config.json: rope_theta"} < before.keys()
    assert not [name for name in before if name.endswith("_token_id") and "bos" not in name]
    edit(directory / BASE / GENERATION, max_new_tokens=7)
    edit(directory / BASE / SETTINGS, model_max_length=7)
    after = planned(directory, entries_of(tiny3)).options
    assert {name for name in after if after[name] != before.get(name)} == {
        "generation_config.json: max_new_tokens",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("model", ["tiny2", "tiny3"])
def test_a_plan_survives_the_way_to_another_process(model: str, request: pytest.FixtureRequest) -> None:
    folder = planned(request.getfixturevalue(model))
    assert pickle.loads(pickle.dumps(folder)) == folder


# What does not fit.


def test_more_tokens_than_rows_are_refused(tiny2: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny2, vocab_size=371)
    assert refusal(ConfigError, directory, resized(entries_of(tiny2), text=371)) == (
        f"{directory / BASE / 'vocab.json'}: its 355 tokens and the 17 special ones that it lacks are more than the "
        f"371 rows that {directory / 'llm.pt'} has for text; export a matching pair"
    )
    edit(directory / BASE / CONFIG, vocab_size=372)
    assert planned(directory, resized(entries_of(tiny2), text=372)).vocabulary.offset == 372


@pytest.mark.parametrize(("model", "ends"), [("tiny2", 3), ("tiny3", 200)])
def test_an_embedding_without_speech_is_refused(model: str, ends: int, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(model)
    assert refusal(CheckpointError, directory, resized(entries_of(directory), speech=ends)) == (
        f"{directory / 'llm.pt'}: the embedding of speech has {ends} rows, of which {ends} would end speech; "
        "export a checkpoint of this family"
    )
    assert planned(directory, resized(entries_of(directory), speech=ends + 1)).vocabulary.speech[0] == "<|s_0|>"


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (["<|s_0|>"], "has <|s_0|> already, as 355, and the model has it as 373; restore the tokenizer that was"),
        (["<|task_id|>"], "has <|task_id|> already, as 355, and the model has it as 441;"),
        (["<|endofprompt|>", "<|eos1|>"], "has <|eos1|> already, as 356, and the model has it as 437;"),
        (["[breath]"], "has [breath] already, as 355, and the model has it as 356;"),
        (["[breath]", "<|endofprompt|>"], "has [breath] already, as 355, and the model has it as 357;"),
        (["<|endofprompt|>", "<strong>"], "has <strong> already, as 356, and the model has it as 357;"),
    ],
    ids=str,
)
def test_tokens_that_are_there_with_other_ids_are_refused(
    tokens: list[str], says: str, tiny2: Path, base_of: BaseOf
) -> None:
    directory = base_of(tiny2)
    listed = read(directory / BASE / SETTINGS)["added_tokens_decoder"]
    more = {str(number): {"content": token} for number, token in enumerate(tokens, 355)}
    edit(directory / BASE / SETTINGS, added_tokens_decoder={**listed, **more})
    message = refusal(ConfigError, directory, entries_of(tiny2))
    assert message.startswith(f"{directory / BASE / 'vocab.json'}: {says}")


def test_a_tokenizer_without_an_end_of_text_is_refused(tiny2: Path, base_of: BaseOf) -> None:
    directory = base_of(tiny2)
    only = {"352": {"content": "<|im_start|>"}}
    unnamed = dict.fromkeys(["eos_token", "pad_token", "additional_special_tokens"])
    edit(directory / BASE / SETTINGS, added_tokens_decoder=only, **unnamed)
    assert refusal(ConfigError, directory, entries_of(tiny2)).endswith(
        "vocab.json: has no <|endoftext|>; restore the published file"
    )


def test_the_tensors_are_held_to_what_those_of_vllm_are(tiny2: Path, base_of: BaseOf) -> None:
    entries = entries_of(tiny2)
    del entries["llm_embedding.weight"]
    with pytest.raises(CosyjitError, match=r"llm\.hf: the tensors do not fit .*1 missing: llm_embedding\.weight"):
        planned(tiny2, entries)
    directory = base_of(tiny2, hidden_size=96)
    assert "hidden_size is 96, not 64" in refusal(ConfigError, directory, entries_of(tiny2))
