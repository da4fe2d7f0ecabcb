"""The tokenizer beside a language model: what is read of it in either form, and how what is wrong is said."""

import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from cosyjit.configuration.base_tokenizer import BYTES, BaseTokenizer, read_tokenizer
from cosyjit.errors import ConfigError
from tests.support.base_tokenizers import BASE, edit, make_whole, only_base, read, whole

FILES = ("tokenizer_config.json", "vocab.json", "merges.txt")


@pytest.fixture
def folder(tiny3: Path, tmp_path: Path) -> Path:
    """The base model of a stand-in, for a test to change."""
    return only_base(tiny3, tmp_path) / BASE


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_tokenizer(folder.parent)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    assert message.startswith(f"{folder}/")
    return message.removeprefix(f"{folder}/")


def content(tokenizer: BaseTokenizer) -> tuple[Any, ...]:
    return tokenizer.vocabulary, tokenizer.merges, tokenizer.added, tokenizer.model_max_length


def added(number: int, text: str, **flags: bool) -> dict[str, Any]:
    return {str(number): {"content": text, "special": True, "normalized": False, **flags}}


# What is read.


def test_bytes_are_written_as_gpt2_writes_them() -> None:
    assert len(set(BYTES)) == 256
    assert (BYTES[0], BYTES[32], BYTES[65], BYTES[10], BYTES[127], BYTES[173], BYTES[255]) == tuple("ĀĠAĊġŃÿ")


def test_the_files_of_a_stand_in_are_read(folder: Path) -> None:
    tokenizer = read_tokenizer(folder.parent)
    vocabulary = read(folder / "vocab.json")
    assert {token: number for number, token in enumerate(tokenizer.vocabulary)} == vocabulary
    assert tokenizer.merges == tuple((folder / "merges.txt").read_text().splitlines()[1:])
    assert (len(vocabulary), len(tokenizer.merges), len(tokenizer)) == (352, 96, 355)
    assert [(number, each.content) for number, each in tokenizer.added.items()] == [
        (352, "<|endoftext|>"),
        (353, "<|im_start|>"),
        (354, "<|im_end|>"),
    ]
    assert {(each.special, each.normalized) for each in tokenizer.added.values()} == {(True, False)}
    assert tokenizer.ids == vocabulary | {"<|endoftext|>": 352, "<|im_start|>": 353, "<|im_end|>": 354}
    assert tokenizer.path == folder / "vocab.json"
    assert tokenizer.digests == {
        f"{BASE}/{name}": hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES
    }


def test_both_forms_give_the_same_tokenizer(folder: Path) -> None:
    wanted = read_tokenizer(folder.parent)
    pairs = whole(folder, pairs=True)
    path = make_whole(folder)
    found = read_tokenizer(folder.parent)
    assert content(found) == content(wanted)
    assert (found.path, list(found.digests)) == (path, [f"{BASE}/{FILES[0]}", f"{BASE}/tokenizer.json"])
    path.write_text(json.dumps(pairs))
    assert content(read_tokenizer(folder.parent)) == content(wanted)


def test_the_order_of_entries_and_the_ends_of_lines_do_not_count(folder: Path) -> None:
    wanted = content(read_tokenizer(folder.parent))
    numbers = read(folder / "vocab.json")
    (folder / "vocab.json").write_text(json.dumps(dict(reversed(numbers.items())), indent=1))
    listed = read(folder / FILES[0])["added_tokens_decoder"]
    edit(folder / FILES[0], added_tokens_decoder=dict(reversed(listed.items())))
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    (folder / "merges.txt").write_bytes("\r\n".join([*lines, "", ""]).encode())
    assert content(read_tokenizer(folder.parent)) == wanted


def test_of_both_forms_that_which_transformers_takes_counts(folder: Path) -> None:
    document = whole(folder)
    document["model"]["merges"] = document["model"]["merges"][:7]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    assert len(read_tokenizer(folder.parent).merges) == 7


def test_an_added_token_may_be_one_of_the_vocabulary(folder: Path) -> None:
    numbers = read(folder / "vocab.json")
    listed = read(folder / FILES[0])["added_tokens_decoder"]
    edit(folder / FILES[0], added_tokens_decoder={**listed, **added(numbers["Ġt"], "Ġt", special=False)})
    tokenizer = read_tokenizer(folder.parent)
    assert (len(tokenizer), list(tokenizer.added)) == (355, [numbers["Ġt"], 352, 353, 354])
    edit(folder / FILES[0], added_tokens_decoder={**listed, **added(355, "Ġt")})
    assert refusal(folder).startswith(f'{FILES[0]}: "\\u0120t" has the id 355, and in the vocabulary it has ')


def test_a_token_without_flags_has_those_of_the_library(folder: Path) -> None:
    listed = read(folder / FILES[0])["added_tokens_decoder"]
    edit(folder / FILES[0], added_tokens_decoder={**listed, "355": {"content": "x y"}}, model_max_length=None)
    tokenizer = read_tokenizer(folder.parent)
    assert (tokenizer.added[355].special, tokenizer.added[355].normalized) == (False, True)
    assert tokenizer.model_max_length is None


def test_what_transformers_5_saves_is_read(folder: Path) -> None:
    wanted = content(read_tokenizer(folder.parent))
    a, b = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    adds_nothing = {"type": "TemplateProcessing", "single": [a], "pair": [a, b], "special_tokens": {}}
    make_whole(folder, post_processor=adds_nothing)
    names = ["<|im_start|>", "<|im_end|>"]
    edit(folder / FILES[0], added_tokens_decoder=None, additional_special_tokens=None, extra_special_tokens=names)
    assert content(read_tokenizer(folder.parent)) == wanted


# What is missing, or is not a file of JSON.


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_to_be_there(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert refusal(folder) == f"{name}: does not exist; copy or download it again"
    (folder / name).mkdir()
    assert refusal(folder) == f"{name}: cannot be read (Is a directory); make it readable"
    (folder / name).rmdir()
    (folder / name).symlink_to("/dev/zero")
    assert refusal(folder) == f"{name}: is not a file; copy or download it again"
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert refusal(folder) == f"{name}: is not a file; copy or download it again"


@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
def test_links_that_lead_elsewhere_are_held_to_the_same(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("missing")
    assert refusal(folder) == f"{name}: does not exist; copy or download it again"
    (folder / name).unlink()
    (tmp_path / "secret").write_text("root:x:0:0")
    (folder / name).symlink_to(tmp_path / "secret")
    assert refusal(folder).startswith(
        f"{name}: "
        + ('"root:x:0:0" does not merge' if name == "merges.txt" else "is not JSON (Expecting value: line 1")
    )


@pytest.mark.parametrize("name", [*FILES[:2], "tokenizer.json"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("{", "is not JSON (Expecting property name"),
        ("[]", "holds a list instead of an object"),
        ('{"a": NaN}', "is not JSON ("),
        ("<!DOCTYPE html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ('{"a": ' * 100_000, "is not JSON ("),
        ("[" * 1_100_000, "has more values than a tokenizer has; restore the published file"),
        ("[" + "0," * 4_200_000, None),
    ],
    ids=lambda each: str(each)[:12],
)
def test_what_is_not_an_object_of_bounded_size_is_refused(name: str, text: str, says: str | None, folder: Path) -> None:
    (folder / name).write_text(text)
    message = refusal(folder)
    assert message.startswith(f"{name}: ")
    assert says is None or says in message


@pytest.mark.parametrize("name", [*FILES, "tokenizer.json"])
def test_a_file_that_is_huge_is_not_read(name: str, folder: Path) -> None:
    with (folder / name).open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)
    tracemalloc.start()
    assert ": has more than " in refusal(folder)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


# What is JSON, and not a tokenizer of Qwen2.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, 'tokenizer_class is "LlamaTokenizer"; supported: Qwen2Tokenizer, Qw'),
        ({"tokenizer_class": ["Qwen2Tokenizer"]}, "tokenizer_class is a list; supported"),
        ({"add_prefix_space": True}, "add_prefix_space is set; supported: false"),
        ({"pad_token": "<|pad|>"}, 'pad_token has "<|pad|>", which the tokenizer does not have; restore the'),
        ({"bos_token": {"content": "<|bos|>"}}, 'bos_token has "<|bos|>", which the tokenizer does not have; rest'),
        ({"eos_token": ["<|endoftext|>", 5]}, "eos_token has 5, which the tokenizer does not have"),
        ({"additional_special_tokens": ["<|im_end|>", "[x]"]}, 'additional_special_tokens has "[x]", which the toke'),
        ({"additional_special_tokens": [[]]}, "additional_special_tokens has a list, which the tokenizer does not"),
        ({"extra_special_tokens": {"x_token": "[x]"}}, 'extra_special_tokens has "[x]", which the tokenizer does'),
        ({"added_tokens_decoder": None}, "has no added_tokens_decoder; restore the published file"),
        ({"added_tokens_decoder": {}}, "has no added_tokens_decoder"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder is not an object of objects"),
        ({"added_tokens_decoder": {"352": "x"}}, "added_tokens_decoder is not an object of objects"),
        ({"added_tokens_decoder": {"-1": {"content": "x"}}}, "a key of added_tokens_decoder is not an id"),
        ({"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, "a key of added_tokens_decoder is not an id"),
        ({"added_tokens_decoder": {"352": {}}}, "an added token is a dict, without a text in content"),
        ({"added_tokens_decoder": {"352": {"content": ""}}}, "an added token is a dict, without a text in content"),
        ({"added_tokens_decoder": {"352": {"content": "x" * 1001}}}, "an added token is a dict, without a text"),
        ({"added_tokens_decoder": {"352": {"content": 5}}}, "an added token is a dict, without a text in content"),
        ({"added_tokens_decoder": added(353, "<|endoftext|>")}, "has the id 353, and the next free one is 352; restor"),
        ({"added_tokens_decoder": added(7, "<|endoftext|>")}, "has the id 7, and the next free one is 352"),
        ({"added_tokens_decoder": added(352, "x", special=1)}, 'the added token "x" has a flag that is not true'),  # type: ignore[arg-type]
        ({"added_tokens_decoder": added(352, "x") | added(353, "x")}, "an added token has two ids"),
        (
            {"added_tokens_decoder": {str(number): {"content": str(number)} for number in range(352, 20_000)}},
            "adds 19,648 tokens, more than 16,384",
        ),
    ],
    ids=lambda each: str(each)[:40],
)
def test_settings_that_are_not_those_of_qwen2_are_refused(settings: dict[str, Any], says: str, folder: Path) -> None:
    edit(folder / FILES[0], **settings)
    message = refusal(folder)
    assert message.startswith(f"{FILES[0]}: ")
    assert says in message


def test_half_a_character_is_not_a_token(folder: Path) -> None:
    (folder / FILES[0]).write_text('{"added_tokens_decoder": {"352": {"content": "\\ud800"}}}')
    assert "without a text in content" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"a": 351}, "has the id 351; its 352 tokens need the ids from 0 on, each once"),
        ({"a": 352}, '"a" has the id 352; its 352 tokens'),
        ({"a": -1}, '"a" has the id -1; its'),
        ({"a": 97.0}, '"a" has the id 97.0; its'),
        ({"a": True}, '"a" has the id true; its'),
        ({"a": "97"}, '"a" has the id "97"; its'),
        ({"a": None}, "its 351 tokens need the ids from 0 on"),
        ({"a": None, "new": 64}, "has no token for 1 of the 256 bytes"),
        ({"ƀ": 352}, 'has tokens with "\\u0180", which does not stand for a byte'),
        ({"\ud800": 352}, 'has tokens with "\\ud800", which does not stand for a byte'),
    ],
    ids=str,
)
def test_a_vocabulary_of_other_ids_or_letters_is_refused(changes: dict[str, Any], says: str, folder: Path) -> None:
    path = folder / "vocab.json"
    numbers = {name: value for name, value in {**read(path), **changes}.items() if value is not None}
    if "new" in changes:
        numbers["new"] = read(path)["a"]
    path.write_text(json.dumps(numbers))
    message = refusal(folder)
    assert message.startswith("vocab.json: ")
    assert says in message


def test_a_vocabulary_of_too_few_tokens_is_refused(folder: Path) -> None:
    (folder / "vocab.json").write_text('{"a": 0}')
    assert refusal(folder) == (
        "vocab.json: its vocabulary is not an object of 256 to 1,048,576 tokens; restore the published file"
    )


@pytest.mark.parametrize("line", ["h", "Ġ", "q q", "Ġ t t", "Ġt e", " ", "ab cd"])
def test_a_merge_of_no_three_tokens_is_refused(line: str, folder: Path) -> None:
    with (folder / "merges.txt").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n" if line.strip() else "x y\n")
    message = refusal(folder)
    assert message.startswith("merges.txt: ")
    assert message.endswith("does not merge two tokens of the vocabulary to a third; restore the published file")


def test_merges_that_are_not_text_are_refused(folder: Path) -> None:
    (folder / "merges.txt").write_bytes(b"#version: 0.2\n\xff \xfe\n")
    assert refusal(folder) == "merges.txt: is not UTF-8 text (at byte 14); restore the published file"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": None}, "its model is not a BPE"),
        ({"model": {"type": "Unigram"}}, "its model is not a BPE"),
        ({"model__vocab": []}, "its vocabulary is not an object of"),
        ({"model__vocab": None}, "its vocabulary is not an object of"),
        ({"model__merges": "Ġ t"}, "null is not a merge"),
        ({"model__merges": [5]}, "5 is not a merge"),
        ({"model__merges": [["Ġ", 5]]}, "a list is not a merge"),
        ({"model__merges": [["Ġ", "t", "e"]]}, "does not merge two tokens of the vocabulary to a third"),
        ({"model__merges": [[]]}, '"" does not merge two tokens of the vocabulary to a third'),
        ({"model__dropout": 0.1}, "is not a tokenizer as Qwen2 has it (by its model: dropout)"),
        ({"model__ignore_merges": True}, "(by its model: ignore_merges)"),
        ({"model__byte_fallback": True, "model__unk_token": "x"}, "(by its model: unk_token, model: byte_fallback)"),
        ({"normalizer": None}, "(by its normalizer)"),
        ({"normalizer": {"type": "NFKC"}}, "(by its normalizer)"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "(by its pre_tokenizer)"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [[]] * 9}}, "(by its pre_tokenizer)"),
        ({"decoder": None}, "(by its decoder)"),
        ({"decoder": ["ByteLevel"]}, "(by its decoder)"),
        ({"decoder": {}}, "(by its decoder)"),
        ({"post_processor": {}}, "(by its post_processor)"),
        ({"post_processor": {"type": ["ByteLevel"]}}, "(by its post_processor)"),
        ({"post_processor": {"type": "TemplateProcessing"}}, "(by its post_processor)"),
        ({"added_tokens": {}}, "added_tokens is not an array"),
        ({"added_tokens": [5]}, "an added token is 5, without a text in content"),
        ({"added_tokens": [{"content": "x", "id": 1 << 70}]}, None),
        ({"added_tokens": [{"content": "x", "id": True}]}, "has the id true, which is another's"),
        ({"added_tokens": []}, None),
    ],
    ids=str,
)
def test_a_tokenizer_that_is_not_that_of_qwen2_is_refused(
    changes: dict[str, Any], says: str | None, folder: Path
) -> None:
    make_whole(folder, **changes)
    message = refusal(folder)
    if says is None:  # it is not the one that the settings list
        assert message.startswith('tokenizer_config.json: "<|endoftext|>" has the id 352, which it does not have in /')
    else:
        assert message.startswith("tokenizer.json: ")
        assert says in message


def test_settings_and_tokenizer_that_disagree_are_refused(folder: Path) -> None:
    path = make_whole(folder)
    listed = read(folder / FILES[0])["added_tokens_decoder"]
    edit(folder / FILES[0], added_tokens_decoder={**listed, **added(355, "[breath]")})
    assert refusal(folder) == (
        f'tokenizer_config.json: "[breath]" has the id 355, which it does not have in {path}; '
        "restore the published file"
    )
    edit(folder / FILES[0], added_tokens_decoder=None)
    assert len(read_tokenizer(folder.parent)) == 355
