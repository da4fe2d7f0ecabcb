"""Declares the tokenizer of a base model: a byte-level BPE of any size, whose merges follow from a rule.

A token is a byte, a pair of bytes, or a pair and a byte. Pairs of letters that are frequent in English come first.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

from cosyjit.configuration.base_tokenizer import BYTES, MERGES, SETTINGS, VOCABULARY

_FREQUENT: Final = [BYTES[byte] for byte in b" etaoinshrdlu"]
_OTHERS: Final = [symbol for symbol in BYTES if symbol not in _FREQUENT]

_ADDED: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def declare_tokenizer(size: int) -> dict[str, str]:
    """The contents of the files, by their names, of a tokenizer in the form in which Qwen2 was published first.

    Args:
        size: the number of tokens that text is merged to; at least 256. Three special tokens follow.
    """
    pairs = list(itertools.islice(_pairs(), size - len(BYTES)))
    tokens = [*BYTES, *("".join(pair) for pair in pairs)]
    numbers = {token: number for number, token in enumerate(tokens)}
    added = {str(size + number): _added(token) for number, token in enumerate(_ADDED)}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(_ADDED[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": _ADDED[0],
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": _ADDED[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {
        SETTINGS: json.dumps(settings, indent=2) + "\n",
        VOCABULARY: json.dumps(numbers, ensure_ascii=False, separators=(",", ":")),
        MERGES: "".join(f"{line}\n" for line in ("#version: 0.2", *map(" ".join, pairs))),
    }


def _pairs() -> Iterator[tuple[str, str]]:
    """What is merged, the first ones first; no two give the same token."""
    letters = set(_FREQUENT)
    symbols = [*_FREQUENT, *_OTHERS]
    yield from itertools.product(_FREQUENT, repeat=2)
    doubles = ((one, other) for one, other in itertools.product(symbols, repeat=2) if not {one, other} <= letters)
    yield from doubles
    yield from ((one + other, third) for one, other, third in itertools.product(symbols, repeat=3))


def _added(token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": token, **flags, "special": True}
