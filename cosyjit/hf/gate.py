"""Verifies the tokenizer of a merged folder, as the tokenizers library has it.

The numbers of a folder are compared with the planned ones in `cosyjit.folders.folder`. Here the names of tokens decide
which row each id has to have, so that rows are not accounted for by the same counts from which they were planned.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from tokenizers import Tokenizer

from cosyjit.configuration.base_model import CONFIG, GENERATION
from cosyjit.configuration.base_tokenizer import WHOLE
from cosyjit.errors import VerificationError, line
from cosyjit.folders.content import Rows
from cosyjit.folders.language_model import (
    BIAS,
    EMBEDDING,
    HEAD,
    MARKS,
    PREFIX,
    SPEECH_BIAS,
    SPEECH_EMBEDDING,
    SPEECH_HEAD,
)
from cosyjit.hf.rules import NOTE, Folder, Merged
from cosyjit.hf.vocabulary import END, SOS, TASK

_UNFIT: Final = "restore the tokenizer that was published with the weights; if it is that one, report this"
"""What messages advise: the file has the planned bytes, so it is how the library takes them that does not fit."""

_SAMPLES: Final = (
    "Each row of the embedding stands where its token's id says, isn't it so? 3.14 + 2,718 = 5,858.",
    "Zwölf Boxkämpfer jagen Eva quer über den Sylter Deich. Ça, où ? ¿Dónde?",
    "你好，今天的天气怎么样？我们明天去北京。 こんにちは、世界。 안녕하세요",  # noqa: RUF001
    "  two spaces,\ta tab,\n\na line; Привет, мир! مرحبا \U0001f600\u200d",
)
"""Texts in the normal form in which the tokenizer of Qwen2 gives them back."""

_Part = Literal["text", "speech", "marks", "padding"]
"""A part of the vocabulary."""

_Row = tuple[str | float, int]
"""Where a row is from: the name of a tensor and the number of its row, or a number that fills it."""


def check_tokenizer(folder: Folder, directory: Path) -> None:
    """Check that a folder's tokenizer gives the ids at which its rows stand, and the text that it was given.

    Args:
        folder: the planned content.
        directory: the folder.

    Raises:
        VerificationError: it does not.
    """
    path = directory / WHOLE
    try:
        tokenizer = Tokenizer.from_file(str(path))
        fault = _fault(folder, tokenizer, directory)
    except Exception as error:  # noqa: BLE001  (the library has no class for its errors)
        fault = f"the library refuses it ({line(error)})"
    if fault:
        raise VerificationError(f"{path}: {fault}; {_UNFIT}")


def _fault(folder: Folder, tokenizer: Tokenizer, directory: Path) -> str | None:
    """In words, where a tokenizer is not the one that the folder's rows need; None if it is."""
    rows = list(_rows_by_name(folder, tokenizer))
    tensors = {tensor.name: tensor for tensor in folder.tensors}
    for name, sources in _sources(folder).items():
        if list(_rows_of(tensors[name])) != [_row(sources[part], number) for part, number in rows]:
            return f"the rows of {name} do not stand at the ids of their tokens"
    documents = {name: json.loads((directory / name).read_bytes()) for name in (CONFIG, GENERATION, NOTE)}
    return _wrong_token(folder, tokenizer) or _wrong_text(tokenizer) or _wrong_id(folder, tokenizer, documents)


def _rows_by_name(folder: Folder, tokenizer: Tokenizer) -> Iterator[tuple[_Part, int]]:
    """For each id, of which part of the vocabulary its token is by its name, and the number of its row there."""
    tokens, speech = folder.tokens, folder.shapes[SPEECH_EMBEDDING][0]
    base = folder.vocabulary.base.ids
    missing = [token for token in tokens.text if token not in base]
    text = {**base, **{token: len(base) + number for number, token in enumerate(missing)}}
    named = {name: speech - tokens.ends + number for number, name in enumerate(tokens.named)}
    marks = {name: number for number, name in enumerate(tokens.marks)}
    for number in range(folder.config["vocab_size"]):
        token = tokenizer.id_to_token(number)
        if token is None:
            yield "padding", 0
        elif token in text:
            yield "text", text[token]
        elif token in marks:
            yield "marks", marks[token]
        else:
            yield "speech", named[token] if token in named else int(token[len("<|s_") : -len("|>")])


def _sources(folder: Folder) -> dict[str, dict[_Part, str | float]]:
    """By tensor, where the rows of each part of the vocabulary are from: a tensor, or a number that fills them."""
    names = [f"{PREFIX}{name}" for name in (EMBEDDING, HEAD) if f"{PREFIX}{name}" in folder.shapes]
    text, own = names[0], names[-1]  # of two that are tied, one goes in
    found: dict[str, dict[_Part, str | float]] = {
        EMBEDDING: {"text": text, "speech": SPEECH_EMBEDDING, "marks": MARKS, "padding": 0}
    }
    if SPEECH_BIAS in folder.shapes:
        found[HEAD] = {"text": 0, "speech": SPEECH_HEAD, "marks": 0, "padding": 0}
        found[BIAS] = {"text": -math.inf, "speech": SPEECH_BIAS, "marks": -math.inf, "padding": -math.inf}
    else:
        found[HEAD] = {"text": own, "speech": SPEECH_HEAD, "marks": 0, "padding": 0}
    return found


def _row(source: str | float, number: int) -> _Row:
    return (source, number) if isinstance(source, str) else (source, 0)


def _rows_of(tensor: Merged) -> Iterator[_Row]:
    """For each row of a tensor, the one that it is made from."""
    for piece in tensor.pieces:
        if isinstance(piece, Rows):
            yield from ((piece.source, number) for number in range(piece.first, piece.first + piece.rows))
        else:
            yield from itertools.repeat((piece.value, 0), piece.rows)


def _wrong_token(folder: Folder, tokenizer: Tokenizer) -> str | None:
    """In words, a special token or one of speech that has another id, by itself or beside others."""
    text, behind = folder.tokens.text, (*folder.vocabulary.speech, *folder.vocabulary.marks)
    names = [*text, *behind]
    numbers = [_id(tokenizer, name) for name in names]
    for name, number in zip(names, numbers, strict=True):
        if _encoded(tokenizer, name) != [number]:
            return f"{name} does not become {number}"
    if _encoded(tokenizer, "".join(names)) != numbers:
        return "its special tokens and those of speech have other ids side by side"
    # Special tokens are left out. The library would not give those back whose letters also stand for bytes.
    for number, name in zip(numbers[len(text) :], behind, strict=True):
        if tokenizer.decode([number]) != name:
            return f"{number} does not become {name}"
    if tokenizer.decode(numbers) != "".join(behind):
        return "decoding leaves tokens of speech out, or special ones in"
    return None


def _wrong_text(tokenizer: Tokenizer) -> str | None:
    """In words, a text that does not come back, or has other ids in a prompt."""
    sos, task, speech = (_id(tokenizer, name) for name in (SOS, TASK, "<|s_0|>"))
    space = _encoded(tokenizer, " ")
    for text in _SAMPLES:
        if tokenizer.decode(_encoded(tokenizer, text)) != text:
            return f"{text!r} does not come back"
        prompt = [*space, sos, *_encoded(tokenizer, f" {text} "), task, *space, speech, *space]
        if _encoded(tokenizer, f" {SOS} {text} {TASK} <|s_0|> ") != prompt:
            return f"{text!r} has other ids in a prompt"
    return None


def _wrong_id(folder: Folder, tokenizer: Tokenizer, documents: Mapping[str, Any]) -> str | None:
    """In words, what a file of the folder says of ids that the tokenizer does not have so."""
    config, generation, note = (documents[name] for name in (CONFIG, GENERATION, NOTE))
    first, end = (_id(tokenizer, name) for name in ("<|s_0|>", END))
    speech = folder.shapes[SPEECH_EMBEDDING][0]
    stops = list(range(first + speech - folder.tokens.ends, first + speech))
    named = {name: _id(tokenizer, name) for name in (*folder.tokens.named, *folder.tokens.marks)}
    wanted = {
        CONFIG: (config["vocab_size"], config["eos_token_id"]) == (folder.tensors[0].shape[0], end),
        GENERATION: (generation["eos_token_id"], generation["pad_token_id"]) == (stops, end),
        NOTE: (note["speech_token_offset"], note["stop_token_ids"], note["special_token_ids"]) == (first, stops, named),
    }
    return next((f"{name} has other ids than it" for name, fits in wanted.items() if not fits), None)


def _id(tokenizer: Tokenizer, name: str) -> int:
    number = tokenizer.token_to_id(name)
    if number is None:
        raise LookupError(f"it has no {name}")
    return number


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
