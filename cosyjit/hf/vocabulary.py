"""The rules that give each token its id: those of text, and behind them those of speech.

    ids                                  tokens
    0 to len(base) - 1                   those of the base model's tokenizer
    to offset - 1                        the special tokens of text that the base model does not have
    offset to offset + rows - 1          the rows of the embedding of speech: <|s_0|>, <|s_1|>, …, and those that end it
    behind these                         the rows of llm_embedding.weight, where the family has it

So each id is computed from the tokenizer and from the shapes in the weights file. The public runtime looks text up in
the first `offset` rows of the embedding of text, with the ids that it gives to the special tokens in this same order.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Final

from cosyjit.configuration.base_tokenizer import PARTS, Added, BaseTokenizer
from cosyjit.errors import CheckpointError, ConfigError
from cosyjit.families import Tokens

END_OF_TEXT: Final = "<|endoftext|>"
END: Final = "<|eos1|>"
"""The token that ends speech, at which the public conversions let servers stop."""
SOS: Final = "<|sos|>"
TASK: Final = "<|task_id|>"

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    f"{{{{ '{SOS}' + message['content'] + '{TASK}' }}}}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
)
"""A user's message is text, an assistant's message is speech that continues behind it; others are left out."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a folder, by their ids.

    Attributes:
        base: the tokenizer of the base model.
        text: the special tokens of text that are added to it, in the order of their ids.
        speech: the tokens of the rows of the embedding of speech.
        marks: those of the rows of `llm_embedding.weight`.
        ends: how many of the rows of speech end it; they are the last ones.
    """

    base: BaseTokenizer
    text: tuple[str, ...]
    speech: tuple[str, ...]
    marks: tuple[str, ...]
    ends: int

    @property
    def offset(self) -> int:
        """The id of the first speech token; the number of tokens of text."""
        return len(self.base) + len(self.text)

    def __len__(self) -> int:
        return self.offset + len(self.speech) + len(self.marks)

    def ids_behind_text(self) -> dict[str, int]:
        """The ids of the tokens of speech and of the marks."""
        return {token: self.offset + number for number, token in enumerate((*self.speech, *self.marks))}

    @property
    def stop_ids(self) -> list[int]:
        """The ids at which the public runtime stops."""
        first = self.offset + len(self.speech) - self.ends
        return list(range(first, first + self.ends))

    def tokenizer(self) -> bytes:
        """The content of `tokenizer.json`."""
        special = dict(enumerate((Added(token) for token in self.text), len(self.base)))
        # Decoding leaves out what is special: of speech nothing may be, since servers that give text give it so.
        plain = (Added(token, normalized=True, special=False) for token in (*self.speech, *self.marks))
        added = {**self.base.added, **special, **dict(enumerate(plain, self.offset))}
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, **each._asdict()} for number, each in added.items()],
            **PARTS,
            "post_processor": _BYTES,
            "decoder": _BYTES,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {token: number for number, token in enumerate(self.base.vocabulary)},
                "merges": self.base.merges,
            },
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    def settings(self, special: tuple[str, ...]) -> dict[str, Any]:
        """The content of `tokenizer_config.json`.

        Args:
            special: all special tokens of text.
        """
        longest = self.base.model_max_length
        return {
            "add_prefix_space": False,
            "additional_special_tokens": list(special),
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "errors": "replace",
            **({} if longest is None else {"model_max_length": longest}),
            "pad_token": END_OF_TEXT,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }


_BYTES: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def merged(base: BaseTokenizer, tokens: Tokens, rows: int, text_rows: int, where: str) -> Vocabulary:
    """The vocabulary of a folder.

    Args:
        base: the tokenizer of the base model.
        tokens: those that the language model has besides.
        rows: the number of rows of the embedding of speech.
        text_rows: that of the embedding of text.
        where: the weights file, as messages name it.

    Raises:
        ConfigError: the tokenizer has more tokens than the embedding of text has rows, or has tokens already that would
            get other ids.
        CheckpointError: the embedding of speech has no rows but those that end speech.
    """
    if rows <= tokens.ends:
        raise CheckpointError(
            f"{where}: the embedding of speech has {rows} rows, of which {tokens.ends} would end speech; "
            "export a checkpoint of this family"
        )
    speech = [f"<|s_{number}|>" for number in range(rows)]
    speech[rows - tokens.ends : rows - tokens.ends + len(tokens.named)] = tokens.named
    text = _check_text(base, tokens.text)
    special = {END_OF_TEXT, *tokens.text}
    added = {number: Added(each.content) if each.content in special else each for number, each in base.added.items()}
    found = Vocabulary(replace(base, added=added), text, tuple(speech), tokens.marks, tokens.ends)
    if found.offset > text_rows:
        more = f" and the {len(text)} special ones that it lacks" if text else ""
        raise ConfigError(
            f"{base.path}: its {len(base):,} tokens{more} are more than the {text_rows:,} rows that {where} has for "
            "text; export a matching pair"
        )
    ids = base.ids
    for token, number in found.ids_behind_text().items():
        if token in ids:
            raise _other_id(base, token, ids[token], number)
    return found


def _check_text(base: BaseTokenizer, special: tuple[str, ...]) -> tuple[str, ...]:
    """The special tokens that a tokenizer lacks. Those that it has are the first ones, in their order.

    Raises:
        ConfigError: it has others, or they are in another order: then tokens would get other ids than the model has.
    """
    ids = base.ids
    if END_OF_TEXT not in ids:
        raise ConfigError(f"{base.path}: has no {END_OF_TEXT}; restore the published file")
    known = [token for token in special if token in ids]
    before = END_OF_TEXT
    for number, token in enumerate(known):
        if token != special[number] or ids[token] < ids[before]:
            raise _other_id(base, token, ids[token], ids[before] + special.index(token) - number + 1)
        before = token
    return special[len(known) :]


def _other_id(base: BaseTokenizer, token: str, number: int, wanted: int) -> ConfigError:
    return ConfigError(
        f"{base.path}: has {token} already, as {number:,}, and the model has it as {wanted:,}; "
        "restore the tokenizer that was published with the weights"
    )
