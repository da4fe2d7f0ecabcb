"""The tokenizer of a base model: the byte-level BPE of Qwen2, from the files beside the base model's configuration.

A folder has it in one of two forms: as `tokenizer.json`, or as `vocab.json` and `merges.txt`. Beside either stands
`tokenizer_config.json`. The files are read as inert data, in bounded time and memory, and without the library that
makes a tokenizer of them. What is checked is that each id is one token's, and that all of it is Qwen2's but the
vocabulary: how text is normalized, split and written as bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.configuration import json_files
from cosyjit.configuration.base_model import BASE
from cosyjit.errors import ConfigError

SETTINGS: Final = "tokenizer_config.json"
WHOLE: Final = "tokenizer.json"
VOCABULARY: Final = "vocab.json"
MERGES: Final = "merges.txt"

_CLASSES: Final = {"Qwen2Tokenizer", "Qwen2TokenizerFast"}
"""The classes of transformers that the settings may name."""

_LARGEST: Final = 24 << 20
"""In bytes; a published `tokenizer.json` has 7 million."""
_LARGEST_SETTINGS: Final = 4 << 20
_MOST_NESTED: Final = 1 << 20
_MOST_VALUES: Final = 4 << 20
"""The most brackets and commas of a file, those in strings included: each is a value in memory at most."""
_MOST_TOKENS: Final = 1 << 20
_MOST_ADDED: Final = 1 << 14
_LONGEST_ADDED: Final = 1000
_SHOWN: Final = 40

SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The expression by which Qwen2 splits text before pairs are merged."""

PARTS: Final = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    },
}
"""What a `tokenizer.json` has to have of Qwen2, part by part."""

_NOTHING_ADDED: Final = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
"""The post-processor that transformers 5 writes of a tokenizer that adds no tokens to a text."""
_TYPES: Final[Mapping[str, Sequence[Any]]] = {
    "decoder": ("ByteLevel",),
    "post_processor": (None, "ByteLevel", _NOTHING_ADDED),
}
"""Further parts, and what each may be: a whole part, or the type of one."""

_OFF: Final = (
    *("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
    *("fuse_unk", "byte_fallback", "ignore_merges"),
)
"""Options of the model that Qwen2 does not use."""

_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_SPECIAL: Final = ("additional_special_tokens", "extra_special_tokens")
"""The settings that name a special token, and those that name several, in an array or by names of their own."""

_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _byte_symbols() -> tuple[str, ...]:
    """The characters by which a byte-level BPE writes the bytes 0 to 255.

    A byte that is a printable character of Latin-1 stands for itself; the others get characters from U+0100 on. It is
    the mapping of GPT-2, Radford et al., Language Models are Unsupervised Multitask Learners.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    moved = {byte: 256 + number for number, byte in enumerate(others)}
    return tuple(chr(moved.get(byte, byte)) for byte in range(256))


BYTES: Final = _byte_symbols()


class Added(NamedTuple):
    """A token that is looked for in text before the text is split.

    Attributes:
        content: its text.
        special: whether decoding may leave it out.
        normalized: whether it is looked for in normalized text.
        single_word, lstrip, rstrip: how it is looked for; see the tokenizers library.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class BaseTokenizer:
    """A tokenizer, checked.

    Attributes:
        path: the file with its vocabulary.
        vocabulary: the tokens that text is merged to; each has its index as its id.
        merges: the pairs that are merged, the first ones first; a space is between the two.
        added: the tokens that are looked for first, in the order of their ids. Those that the vocabulary does not have
            follow it without a gap.
        model_max_length: the most tokens of a text; None where the settings do not say.
        digests: the SHA-256 of its files, by their names in a model directory.
    """

    path: Path
    vocabulary: tuple[str, ...] = field(repr=False)
    merges: tuple[str, ...] = field(repr=False)
    added: Mapping[int, Added] = field(hash=False)
    model_max_length: int | None
    digests: Mapping[str, str] = field(hash=False)

    def __len__(self) -> int:
        """The number of its tokens; their ids are smaller."""
        return max([len(self.vocabulary), *(number + 1 for number in self.added)])

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The ids of all tokens."""
        behind = {added.content: number for number, added in self.added.items()}
        return {token: number for number, token in enumerate(self.vocabulary)} | behind


def read_tokenizer(directory: Path) -> BaseTokenizer:
    """Read and check the base model's tokenizer in a model directory; of both forms, `tokenizer.json`.

    Raises:
        ConfigError: a file is missing, too large, not JSON, or not that of a tokenizer of Qwen2; or two tokens have one
            id, or an id has no token.
    """
    folder = directory / BASE
    contents = {folder / SETTINGS: json_files.content(folder / SETTINGS, _LARGEST_SETTINGS)}
    settings = _parsed(contents[folder / SETTINGS], folder / SETTINGS)
    _check_settings(folder / SETTINGS, settings)
    is_whole = os.path.lexists(folder / WHOLE)
    names = (WHOLE,) if is_whole else (VOCABULARY, MERGES)
    contents |= {folder / name: json_files.content(folder / name, _LARGEST) for name in names}
    digests = {f"{BASE}/{path.name}": hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    path = folder / names[0]
    document = _parsed(contents[path], path)
    listed = _listed(folder / SETTINGS, settings)
    if is_whole:
        model = _model(path, document)
        numbers, merges = model.get("vocab"), tuple(_joined(path, model.get("merges")))
        added = _added(path, _array(path, document, "added_tokens"))
        _check_listed(folder / SETTINGS, listed, path, added)
    else:
        numbers, merges, added = document, _lines(folder / MERGES, contents[folder / MERGES]), listed
        if not added:
            raise ConfigError(f"{folder / SETTINGS}: has no added_tokens_decoder; restore the published file")
    vocabulary = _vocabulary(path, numbers)
    _check_merges(folder / names[-1], vocabulary, merges)
    by_id = _by_id(folder / (WHOLE if is_whole else SETTINGS), vocabulary, added)
    longest = settings.get("model_max_length")
    found = BaseTokenizer(path, vocabulary, merges, by_id, longest if type(longest) is int else None, digests)
    _check_special(folder / SETTINGS, settings, found)
    return found


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    nested = content.count(b"[") + content.count(b"{")
    if nested > _MOST_NESTED or content.count(b",") > _MOST_VALUES:
        raise ConfigError(f"{path}: has more values than a tokenizer has; restore the published file")
    return json_files.parsed(content, path)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    name = settings.get("tokenizer_class", "Qwen2Tokenizer")
    if not isinstance(name, str) or name not in _CLASSES:
        raise _wrong(path, f"tokenizer_class is {_short(name)}; supported: {', '.join(sorted(_CLASSES))}")
    if settings.get("add_prefix_space"):
        raise _wrong(path, "add_prefix_space is set; supported: false")


def _listed(path: Path, settings: Mapping[str, Any]) -> dict[int, Added]:
    """The added tokens that the settings list, by their ids."""
    listed = settings.get("added_tokens_decoder", {})
    if not isinstance(listed, dict) or not all(isinstance(each, dict) for each in listed.values()):
        raise _wrong(path, "added_tokens_decoder is not an object of objects")
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in listed):  # noqa: PLR2004
        raise _wrong(path, "a key of added_tokens_decoder is not an id")
    return _added(path, [{**each, "id": int(number)} for number, each in listed.items()])


def _added(path: Path, entries: Sequence[Any]) -> dict[int, Added]:
    if len(entries) > _MOST_ADDED:
        raise _wrong(path, f"adds {len(entries):,} tokens, more than {_MOST_ADDED:,}")
    found: dict[int, Added] = {}
    for entry in entries:
        content, number = (entry.get(name) for name in ("content", "id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(content, str) or not 0 < len(content) <= _LONGEST_ADDED or not _is_text(content):
            raise _wrong(path, f"an added token is {_short(entry)}, without a text in content")
        if type(number) is not int or number in found:
            raise _wrong(path, f"the added token {_short(content)} has the id {_short(number)}, which is another's")
        flags = {name: entry.get(name, False) for name in _FLAGS}
        flags["normalized"] = entry.get("normalized", not flags["special"])
        if not all(type(flag) is bool for flag in flags.values()):
            raise _wrong(path, f"the added token {_short(content)} has a flag that is not true or false")
        found[number] = Added(content, **flags)
    if len({added.content for added in found.values()}) != len(found):
        raise _wrong(path, "an added token has two ids")
    return found


def _check_listed(path: Path, listed: Mapping[int, Added], whole: Path, added: Mapping[int, Added]) -> None:
    """Check that the settings list no other added tokens, or other ids, than the tokenizer has."""
    for number, each in listed.items():
        if number not in added or added[number].content != each.content:
            raise _wrong(path, f"{_short(each.content)} has the id {number}, which it does not have in {whole}")


def _check_special(path: Path, settings: Mapping[str, Any], tokenizer: BaseTokenizer) -> None:
    """Check that a tokenizer has each special token that the settings name: transformers adds those that it lacks."""
    known = tokenizer.ids.keys()
    for name in (*_SPECIAL, *_MORE_SPECIAL):
        value = settings.get(name)
        if name in _MORE_SPECIAL and isinstance(value, dict):
            value = list(value.values())
        for each in value if isinstance(value, list) else [value]:
            token = each.get("content") if isinstance(each, dict) else each
            if each is not None and (not isinstance(token, str) or token not in known):
                raise _wrong(path, f"{name} has {_short(token)}, which the tokenizer does not have")


def _model(path: Path, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model in a `tokenizer.json`; all else in it has to be Qwen2's.

    Raises:
        ConfigError: text is normalized, split, merged or written in another way.
    """
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _wrong(path, "its model is not a BPE")
    parts = {name: _without_offsets(document.get(name)) for name in ("normalizer", "pre_tokenizer")}
    others = [
        *(name for name, part in parts.items() if part != _without_offsets(PARTS[name])),
        *(name for name, known in _TYPES.items() if not _is_one_of(document.get(name), known)),
        *(f"model: {name}" for name in _OFF if model.get(name)),
    ]
    if others:
        raise _wrong(path, f"is not a tokenizer as Qwen2 has it (by its {', '.join(others)})")
    return model


def _without_offsets(part: Any) -> Any:
    """A part of a tokenizer without what decides offsets in text alone, at most as deep as that of Qwen2 is."""
    if isinstance(part, dict) and isinstance(part.get("pretokenizers"), list):
        return {**part, "pretokenizers": [_without_offsets(each) for each in part["pretokenizers"][:3]]}
    return {name: value for name, value in part.items() if name != "trim_offsets"} if isinstance(part, dict) else part


def _is_one_of(part: Any, known: Sequence[Any]) -> bool:
    """Whether a part of a tokenizer is known, as a whole or by its type."""
    kind = part.get("type") if isinstance(part, dict) else None
    return part in known or (kind is not None and kind in known)


def _joined(path: Path, merges: Any) -> Iterator[str]:
    """The merges of a `tokenizer.json`, each as one text; it has texts or pairs of texts."""
    for merge in merges if isinstance(merges, list) else [None]:
        texts = [each for each in (merge if isinstance(merge, list) else [merge]) if isinstance(each, str)]
        if len(texts) != (len(merge) if isinstance(merge, list) else 1):
            raise _wrong(path, f"{_short(merge)} is not a merge")
        yield " ".join(texts)


def _lines(path: Path, content: bytes) -> tuple[str, ...]:
    """The merges of a `merges.txt`, which begins with a line about its version."""
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _wrong(path, f"is not UTF-8 text (at byte {error.start:,})") from None
    return tuple(line for line in map(str.rstrip, lines[lines[0].startswith("#version:") :]) if line)


def _vocabulary(path: Path, numbers: Any) -> tuple[str, ...]:
    """The tokens of a vocabulary by their ids."""
    if not isinstance(numbers, dict) or not len(BYTES) <= len(numbers) <= _MOST_TOKENS:
        raise _wrong(path, f"its vocabulary is not an object of {len(BYTES)} to {_MOST_TOKENS:,} tokens")
    tokens: list[str | None] = [None] * len(numbers)
    for token, number in numbers.items():
        if type(number) is not int or not 0 <= number < len(tokens) or tokens[number] is not None:
            raise _wrong(
                path,
                f"{_short(token)} has the id {_short(number)}; its {len(tokens):,} tokens need the ids from 0 on, "
                "each once",
            )
        tokens[number] = token
    missing = [symbol for symbol in BYTES if symbol not in numbers]
    if missing:
        raise _wrong(path, f"has no token for {len(missing)} of the {len(BYTES)} bytes")
    strange = set().union(*numbers) - set(BYTES)
    if strange:
        raise _wrong(path, f"has tokens with {_short(min(strange))}, which does not stand for a byte")
    return tuple(token for token in tokens if token is not None)


def _check_merges(path: Path, vocabulary: Sequence[str], merges: Sequence[str]) -> None:
    """Check that each merge is of two tokens, and gives one."""
    known = set(vocabulary)
    for merge in merges:
        one, _, other = merge.partition(" ")
        if one not in known or other not in known or one + other not in known:
            raise _wrong(path, f"{_short(merge)} does not merge two tokens of the vocabulary to a third")


def _by_id(path: Path, vocabulary: Sequence[str], added: Mapping[int, Added]) -> dict[int, Added]:
    """The added tokens in the order of their ids: those of the vocabulary, and those behind it, without a gap.

    Raises:
        ConfigError: an added token has an id that is not its own.
    """
    known = {token: number for number, token in enumerate(vocabulary)}
    free = len(vocabulary)
    for number, each in sorted(added.items()):
        wanted = known.get(each.content, free)
        if number != wanted:
            where = "in the vocabulary it has" if each.content in known else "the next free one is"
            raise _wrong(path, f"{_short(each.content)} has the id {number}, and {where} {wanted}")
        free += each.content not in known
    return dict(sorted(added.items()))


def _array(path: Path, document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name, [])
    if not isinstance(value, list):
        raise _wrong(path, f"{name} is not an array")
    return value


def _is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON can have half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _short(value: Any) -> str:
    shown = json.dumps(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _wrong(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path}: {what}; restore the published file")
