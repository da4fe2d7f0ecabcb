"""The rules that derive the merged folder of a language model from its weights, its base model and its tokenizer.

The folder is a language model over text and speech, in Hugging Face's layout and of one vocabulary, which is padded
with rows of zeros to a multiple of 128:

    weights file                                 folder
    the embedding of text                    ┐
    speech_embedding.weight                  ├▶  model.embed_tokens.weight
    llm_embedding.weight                     ┘
    llm.model.model.layers.*                 ──▶ model.layers.*
    llm.model.model.norm.weight              ──▶ model.norm.weight
    the head over text                       ┐
    llm_decoder.weight, llm_decoder.bias     ┴▶  lm_head.weight, lm_head.bias

`vocabulary.py` says which ids the rows have. The rules are those of the public conversions: where the head over speech
has a bias, that of every other token is minus infinity, and its weight is 0; where it has none, the tokens of text keep
the base model's own head. The padding never has a logit but 0 or minus infinity.

The folder is planned here from names, types and shapes alone, without torch and without reading a number.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from cosyjit.configuration.base_model import CONFIG, GENERATION, Qwen2Config, read_qwen2_config
from cosyjit.configuration.base_tokenizer import SETTINGS, WHOLE, BaseTokenizer, read_tokenizer
from cosyjit.families import Component, Precision, Tokens, family_having
from cosyjit.folders.content import Filled, FolderNeed, Rows, as_text, typed, with_types
from cosyjit.folders.language_model import (
    BIAS,
    EMBEDDING,
    HEAD,
    MARKS,
    PREFIX,
    SPEECH_BIAS,
    SPEECH_EMBEDDING,
    SPEECH_HEAD,
    Shapes,
    body,
    checked_shapes,
)
from cosyjit.hf.vocabulary import END, Vocabulary, merged
from cosyjit.weights.fit import Known

VERSION: Final = 1
"""The version of these rules and of the form of the files. It is raised when equal inputs give other bytes."""

NOTE: Final = "speech_tokens.json"
"""The name of the file that tells consumers which ids are whose."""

_IDS: Final = {"eos_token_id", "pad_token_id", "vocab_size"}
_MULTIPLE: Final = 128
_OUT: Final = -math.inf
"""The bias of tokens that may not come out."""


class Merged(NamedTuple):
    """A tensor of the folder: its name and shape, and the pieces that it consists of."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Rows | Filled, ...]


@dataclass(frozen=True)
class Folder:
    """The planned content of a folder.

    Attributes:
        config, generation: the contents of `config.json` and `generation_config.json`, except the type of the weights.
        note: that of `speech_tokens.json`.
        settings: that of `tokenizer_config.json`.
        vocabulary: the tokens by their ids.
        tokens: those that the language model has besides those of its base model.
        tensors: those of `model.safetensors`, in the order of their bytes.
        shapes: those of the tensors that they are made from, by their names in the weights file.
        options: see `cosyjit.folders.content.Content`.
    """

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    note: Mapping[str, Any]
    settings: Mapping[str, Any]
    vocabulary: Vocabulary
    tokens: Tokens
    tensors: tuple[Merged, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def options(self) -> dict[str, Any]:
        """The values that decide the folder's bytes besides tensors and precision, as JSON has them.

        The ids follow from the tokenizer's files and the shapes of the tensors.
        """
        values = {f"{CONFIG}: {name}": value for name, value in self.config.items() if name not in _IDS}
        values |= {f"{GENERATION}: {name}": value for name, value in self.generation.items() if name not in _IDS}
        return values | {Path(name).name: digest for name, digest in self.vocabulary.base.digests.items()}

    def texts(self, precision: Precision) -> dict[str, bytes]:
        """The contents of the files beside the tensors, by their names."""
        return {
            CONFIG: as_text(typed(self.config, precision)),
            GENERATION: as_text(self.generation),
            NOTE: as_text(self.note),
            WHOLE: self.vocabulary.tokenizer(),
            SETTINGS: as_text(self.settings),
        }


def need_of(component: Component, directory: Path) -> FolderNeed:
    """What the folder of a model directory is made from.

    Raises:
        ConfigError: the base model's configuration or its tokenizer cannot be read, or is not that of a Qwen2 model.
    """
    base, tokenizer = read_qwen2_config(directory), read_tokenizer(directory)
    key = f"{component.name} {json.dumps(base.config, sort_keys=True)} {json.dumps(tokenizer.digests)}"
    plan = partial(plan_folder, component, base, tokenizer)
    return FolderNeed(component, base, plan, {**base.digests, **tokenizer.digests}, key)


def plan_folder(
    component: Component, base: Qwen2Config, tokenizer: BaseTokenizer, weights: Path, entries: Known
) -> Folder:
    """Plan the folder of a weights file.

    Args:
        component: that of the folder; its `extra_tensors` are required as well.
        base: the configuration of the base model.
        tokenizer: that of the base model.
        weights: the weights file, as messages name it.
        entries: all entries of the weights file, by the names of the reading, or their digests.

    Raises:
        ConfigError, TensorMismatchError, CheckpointError: the entries do not fit; see `checked_shapes` and
            `cosyjit.hf.vocabulary.merged`.
    """
    tokens = component.tokens
    shapes = checked_shapes(component, base, weights, entries)
    vocabulary = merged(tokenizer, tokens, shapes[SPEECH_EMBEDDING][0], base.vocab_size, str(weights))
    tensors = tuple(_tensors(base, shapes, vocabulary))
    sources = {piece.source for tensor in tensors for piece in tensor.pieces if isinstance(piece, Rows)}
    config = _config(base, vocabulary, bias=SPEECH_BIAS in shapes)
    return Folder(
        config=config,
        generation=_generation(base, vocabulary, tokens),
        note=_note(component, vocabulary, config),
        settings=vocabulary.settings(tokens.text),
        vocabulary=vocabulary,
        tokens=tokens,
        tensors=tensors,
        shapes={name: shape for name, shape in shapes.items() if name in sources},
    )


def padded(vocabulary: Vocabulary) -> int:
    """The number of rows of the embedding and of the head."""
    return -(-len(vocabulary) // _MULTIPLE) * _MULTIPLE


def _tensors(base: Qwen2Config, shapes: Shapes, vocabulary: Vocabulary) -> Iterator[Merged]:
    offset, speech, marks = vocabulary.offset, len(vocabulary.speech), len(vocabulary.marks)
    rows, width = padded(vocabulary), base.hidden_size
    own = f"{PREFIX}{HEAD}" if f"{PREFIX}{HEAD}" in shapes else f"{PREFIX}{EMBEDDING}"
    # Where the head is tied to the embedding, the public runtime loads both into one tensor, the head last.
    text = own if base.tie_word_embeddings else f"{PREFIX}{EMBEDDING}"
    padding = Filled(0, rows - len(vocabulary))
    yield _merged(
        EMBEDDING,
        (rows, width),
        Rows(text, 0, offset),
        Rows(SPEECH_EMBEDDING, 0, speech),
        Rows(MARKS, 0, marks),
        padding,
    )
    for name, shape in body(base).items():
        yield _merged(name, shape, Rows(f"{PREFIX}{name}", 0, shape[0]))
    has_bias = SPEECH_BIAS in shapes
    behind = rows - offset - speech
    before = Filled(0, offset) if has_bias else Rows(own, 0, offset)
    yield _merged(HEAD, (rows, width), before, Rows(SPEECH_HEAD, 0, speech), Filled(0, behind))
    if has_bias:
        yield _merged(BIAS, (rows,), Filled(_OUT, offset), Rows(SPEECH_BIAS, 0, speech), Filled(_OUT, behind))


def _merged(name: str, shape: tuple[int, ...], *pieces: Rows | Filled) -> Merged:
    return Merged(name, shape, tuple(piece for piece in pieces if piece.rows))


def _config(base: Qwen2Config, vocabulary: Vocabulary, *, bias: bool) -> dict[str, Any]:
    changed = {
        "vocab_size": padded(vocabulary),
        "eos_token_id": vocabulary.ids_behind_text()[END],
        "tie_word_embeddings": False,
        "use_bias": bias,
    }
    return with_types(base, {**base.config, **changed})


def _generation(base: Qwen2Config, vocabulary: Vocabulary, tokens: Tokens) -> dict[str, Any]:
    end = vocabulary.ids_behind_text()[END]
    return {**base.generation, **tokens.sampling, "eos_token_id": vocabulary.stop_ids, "pad_token_id": end}


def _note(component: Component, vocabulary: Vocabulary, config: Mapping[str, Any]) -> dict[str, Any]:
    """What consumers have to know of the ids. The names are those of the public conversion where it has the same."""
    ids = vocabulary.ids_behind_text()
    speech = len(vocabulary.speech) - vocabulary.ends
    named = {token: number for token, number in ids.items() if not token.startswith("<|s_")}
    return {
        "schema": 1,
        "family": family_having(component).name,
        "original_vocab_size": len(vocabulary.base),
        "text_vocab_size": vocabulary.offset,
        "speech_token_offset": vocabulary.offset,
        "base_speech_token_size": speech,
        "embedding_size": len(vocabulary.speech),
        "vocab_size": len(vocabulary),
        "padded_vocab_size": padded(vocabulary),
        "eos_token_id": ids[END],
        "stop_token_ids": vocabulary.stop_ids,
        "special_token_ids": named,
        "head_has_bias": config["use_bias"],
        "prompt": "<|sos|>{text}<|task_id|>{speech}",
    }
