"""The model families as data: what each consists of. No other module asks for a family by its name."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from cosyjit.errors import ConfigError

DEFAULT_PRECISIONS: Final = ("fp32", "fp16")
"""The two precisions whose zips the public runtime reads."""

LANGUAGE_MODEL: Final = "llm"
"""The node of a configuration whose class identifies the family."""

Kind = Literal["zip", "vllm", "hf", "onnx"]
"""What a component becomes: a TorchScript zip, the folder from which vLLM decodes a language model, the folder of a
language model with its tokenizer, or an ONNX file."""


class Tolerance(NamedTuple):
    """How far an artifact may be from its network; see `cosyjit.metrics.Metrics`.

    The absolute error applies to outputs with a root mean square of 1 or less; for larger ones it is in units of that.
    """

    absolute: float
    relative: float
    cosine: float


class Tokens(NamedTuple):
    """The tokens that a language model has besides those of its base model's tokenizer.

    Attributes:
        text: the special tokens of text, in the order in which they get their ids; the base model has the first ones.
        ends: how many rows the embedding of speech has behind those of the speech tokens. The public runtime stops
            at each of them.
        named: the names of the first of these rows; the others are named as speech tokens are.
        marks: the names of the rows of `llm_embedding.weight`.
        sampling: how the public conversion lets it be sampled, as `generation_config.json` has it.
    """

    text: tuple[str, ...]
    ends: int
    named: tuple[str, ...]
    marks: tuple[str, ...]
    sampling: Mapping[str, Any]


_NO_TOKENS: Final = Tokens((), 0, (), (), {})


@dataclass(frozen=True)
class Component:
    """A part of a model that is exported by itself.

    Attributes:
        name: as users write it. Unless `at` is given, it is also the path of the component's node in the configuration
            and the first part of its artifacts' names. A folder does not have a node of its own.
        class_name: the class that the node names; for a folder, the class of the language model.
        weights: the file that holds its tensors.
        prefix: the beginning of their names in that file.
        methods: the methods that its artifacts keep beside `forward`.
        tolerances: those of the precisions that it can be exported at, by their names.
        kind: what it becomes.
        published: the name of what is published, where it is the same at every precision.
        defaults: the precisions that it is exported at unless others are requested.
        configs: the files that it is made from besides the configuration and the weights.
        either: further files that it is made from: the first of these sets that is complete.
        extra_tensors: what the weights file of a folder has besides the language model, the embedding of speech and the
            head.
        at: the path of its node, where another component has that path as its name.
        on_request: whether it is exported only where its name is given.
        overrides: options of its encoder that replace those of the configuration, by their names in
            `cosyjit.encoders.options.EncoderOptions`.
        plans: what runtimes make of its artifacts and then use in their place, by the names of precisions: file names
            behind that of the node, in which `*` stands for one part, such as that of a device.
        loading: what whoever loads its artifacts has to know, by the names of precisions.
        tokens: of a folder with a tokenizer, the tokens that the language model has.
    """

    name: str
    class_name: str
    weights: str
    prefix: str
    methods: tuple[str, ...] = ()
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict, hash=False)
    kind: Kind = "zip"
    published: str | None = None
    defaults: tuple[str, ...] = DEFAULT_PRECISIONS
    configs: tuple[str, ...] = ()
    either: tuple[tuple[str, ...], ...] = ()
    extra_tensors: tuple[str, ...] = ()
    at: str = ""
    on_request: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)
    plans: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    loading: Mapping[str, str] = field(default_factory=dict, hash=False)
    tokens: Tokens = field(default=_NO_TOKENS, hash=False)

    @property
    def is_folder(self) -> bool:
        """Whether its artifacts are folders; others are files, each made from the network of a node."""
        return self.kind in {"vllm", "hf"}

    @property
    def node(self) -> str:
        """The path of the configuration's node that describes it; for a folder, the node of the language model."""
        return self.at or (LANGUAGE_MODEL if self.is_folder else self.name)

    def file_name(self, precision: str) -> str:
        """The name under which the runtime looks for the artifact of a precision."""
        return self.published or f"{self.node}.{precision}.{self.kind}"


@dataclass(frozen=True)
class Family:
    """A model family, identified by the class of the configuration's `llm` node, or without one by its components.

    Attributes:
        name: as its publishers write it.
        language_model: the class that the top-level node `llm` names.
        components: what is exported.
    """

    name: str
    language_model: str
    components: tuple[Component, ...]


class Precision(NamedTuple):
    """A number format of an artifact's weights; of an ONNX file, its form as well.

    Attributes:
        name: as users write it; of an ONNX file, a key of `cosyjit.onnx.forms.FORMS`.
        dtype: the torch type that is computed with.
        item_size: the size of a weight, in bytes.
        hint: what messages tell users to do where the precision fails.
        quantized: whether only the weights of linear layers, those of positions excepted, have that size. The others
            are float32.
    """

    name: str
    dtype: str
    item_size: int
    hint: str
    quantized: bool = False

    def size(self, name: str, shape: Sequence[int]) -> int:
        """The size of a tensor in bytes, by its name in a checkpoint."""
        narrow = len(shape) == 2 and name.endswith(".weight") and not name.endswith("linear_pos.weight")  # noqa: PLR2004
        return math.prod(shape) * (_FLOAT32_BYTES if self.quantized and not narrow else self.item_size)


_FLOAT32_BYTES: Final = 4

_CONFORMER: Final = "cosyvoice.transformer.encoder.ConformerEncoder"
_TRANSFORMER: Final = "cosyvoice.transformer.encoder.TransformerEncoder"
_UPSAMPLE: Final = "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder"

# Measured with torch 2.13 on full-size weights of random numbers: the largest absolute error, the largest relative one
# and the smallest cosine. What is allowed is some six times the error; of int8, what its use demands.
#                               fp32, 1 thread   fp16                        bf16
#   llm.text_encoder            0, 0, 1          6.1e-3, 9.2e-4, 0.9999996   0.088, 7.6e-3, 0.99997
#   llm.llm                     0, 0, 1          1.7e-2, 1.6e-3, 0.9999988   0.20, 1.3e-2, 0.99992
#   flow.encoder                0, 0, 1          6.0e-3, 9.7e-4, 0.9999995   0.088, 8.4e-3, 0.99997
#   flow.encoder of CosyVoice2  0, 0, 1          6.7e-3, 1.3e-3, 0.9999992   0.10, 1.1e-2, 0.99994
#   llm.llm in int8: 0.18, 0.026, 0.99968
# Golden vectors, other processors and other numbers of threads make some 1e-5 of the zeros.
_FP32: Final = Tolerance(1e-4, 2e-5, 0.9999999)
_TOLERANCES: Final = {"fp32": _FP32, "fp16": Tolerance(0.04, 0.008, 0.99997), "bf16": Tolerance(0.6, 0.06, 0.998)}
_LLM_TOLERANCES: Final = {
    "fp32": _FP32,
    "fp16": Tolerance(0.1, 0.01, 0.9999),
    "bf16": Tolerance(1.2, 0.08, 0.997),
    "int8": Tolerance(1.1, 0.045, 0.999),
}
# Of a folder's logits in transformers; its tensors are compared bit for bit. Measured with random numbers:
#          tiny                       full
#   fp32   1.9e-6, 4.8e-7, 1          6.1e-6, 1.3e-6, 1
#   fp16   5.9e-3, 1.4e-3, 0.9999990  1.1e-2, 2.5e-3, 0.999997
#   bf16   0.049, 0.012, 0.99993      0.098, 0.019, 0.99981
_FOLDER_TOLERANCES: Final = {
    "fp32": _FP32,
    "fp16": Tolerance(0.02, 0.005, 0.99999),
    "bf16": Tolerance(0.15, 0.036, 0.9995),
}


# Of an estimator's ONNX file, by the type of its weights, which are compared bit for bit. Measured with torch 2.13 and
# onnxruntime 1.32 on full-size weights of random numbers, over all calls of the gate: the largest absolute error, the
# largest relative one and the smallest cosine. What is allowed of float32 is what zips are allowed; of half precision,
# some eight times the errors.
#   CosyVoice, fp32             7.7e-6, 2.6e-6, 1
#   CosyVoice2, fp32            4.4e-6, 1.7e-6, 1
#   CosyVoice3, fp32            2.2e-5, 4.1e-6, 1
#   CosyVoice, autocast_fp16    3.1e-3, 1.0e-3, 0.9999994
#   CosyVoice2, autocast_fp16   3.5e-3, 1.1e-3, 0.9999994
#   CosyVoice3, autocast_fp16   3.0e-3, 6.5e-4, 0.9999998
# ONNX Runtime computes most of that in float32. Where the result of each node is rounded to the type that the graph
# gives it, the relative errors over 24 frames are 8.9e-4, 1.0e-3 and 1.5e-3; those of a graph that is in half precision
# throughout, 2.9e-2, 1.5e-2 and 4.9e-2.
ESTIMATOR_TOLERANCES: Final = {"float32": _FP32, "float16": Tolerance(0.03, 0.01, 0.99998)}
_OFFLINE: Final = {
    "fp32": ESTIMATOR_TOLERANCES["float32"],
    "autocast_fp16": ESTIMATOR_TOLERANCES["float16"],
    "fp32.dynamic_batch": ESTIMATOR_TOLERANCES["float32"],
}
_STREAMING: Final = {
    "streaming.fp32": ESTIMATOR_TOLERANCES["float32"],
    "streaming.autocast_fp16": ESTIMATOR_TOLERANCES["float16"],
}
_PLANS: Final = {
    "fp32": ("fp32.*.plan", "fp16.*.plan"),
    "autocast_fp16": ("autocast_fp16.*.plan",),
    "streaming.fp32": ("streaming.fp32.*.plan",),
    "streaming.autocast_fp16": ("streaming.autocast_fp16.*.plan",),
    "fp32.dynamic_batch": ("fp32.dynamic_batch.*.plan", "fp16.dynamic_batch.*.plan"),
}
"""What TensorRT makes of each form. Read of FunAudioLLM/CosyVoice at ace7c47: cosyvoice/cli/model.py for the first, of
which it makes plans of both types, and runtime/triton_trtllm for the others. A plan is used unseen from then on."""


def _estimator(class_name: str, tolerances: Mapping[str, Tolerance]) -> Component:
    """The network in the flow decoder of a family as an ONNX file; by default in the form of the public runtime."""
    return Component(
        name="flow.decoder.estimator",
        class_name=class_name,
        weights="flow.pt",
        prefix="decoder.estimator.",
        tolerances=tolerances,
        kind="onnx",
        defaults=("fp32",),
        on_request=True,
        plans={name: _PLANS[name] for name in tolerances},
    )


_BASE_CONFIGS: Final = ("CosyVoice-BlankEN/config.json", "CosyVoice-BlankEN/generation_config.json")


def _folder(class_name: str, extra_tensors: tuple[str, ...]) -> Component:
    """The language model of a family as the folder `vllm`; by default at the precision that the public runtime uses."""
    return Component(
        name="llm.vllm",
        class_name=class_name,
        weights="llm.pt",
        prefix="",
        tolerances=_FOLDER_TOLERANCES,
        kind="vllm",
        published="vllm",
        configs=_BASE_CONFIGS,
        defaults=("bf16",),
        extra_tensors=extra_tensors,
        loading={"fp32": 'vLLM casts it to bf16 as it loads it, unless it is given dtype="float32"'},
    )


def _merged(vllm: Component, tokens: Tokens) -> Component:
    """The language model of a family's `llm.vllm` as the folder `hf_merged`, over text and speech, with a tokenizer."""
    base = "CosyVoice-BlankEN"
    return replace(
        vllm,
        name="llm.hf",
        kind="hf",
        published="hf_merged",
        configs=(*_BASE_CONFIGS, f"{base}/tokenizer_config.json"),
        either=((f"{base}/tokenizer.json",), (f"{base}/vocab.json", f"{base}/merges.txt")),
        on_request=True,
        tokens=tokens,
    )


# Read of FunAudioLLM/CosyVoice at ace7c47: the special tokens in cosyvoice/tokenizer/tokenizer.py; the rows, and those
# that end speech, in cosyvoice/llm/llm.py; the names and how to sample in examples/grpo/cosyvoice2 and
# runtime/triton_trtllm/scripts/convert_cosyvoice3_to_hf.py.
_SOUNDS: Final = (
    *("<|im_start|>", "<|im_end|>", "<|endofprompt|>", "[breath]", "<strong>", "</strong>", "[noise]", "[laughter]"),
    *("[cough]", "[clucking]", "[accent]", "[quick_breath]", "<laughter>", "</laughter>", "[hissing]", "[sigh]"),
    *("[vocalized-noise]", "[lipsmack]", "[mn]"),
)
_ARPABET: Final = """
AA AA0 AA1 AA2 AE AE0 AE1 AE2 AH AH0 AH1 AH2 AO AO0 AO1 AO2 AW AW0 AW1 AW2 AY AY0 AY1 AY2 B CH D DH EH EH0 EH1 EH2 ER
ER0 ER1 ER2 EY EY0 EY1 EY2 F G HH IH IH0 IH1 IH2 IY IY0 IY1 IY2 JH K L M N NG OW OW0 OW1 OW2 OY OY0 OY1 OY2 P R S SH T
TH UH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH
"""
_PINYIN: Final = """
a ai an ang ao b c ch d e ei en eng f g h i ian in ing iu ià iàn iàng iào iá ián iáng iáo iè ié iòng ióng iù iú iā iān
iāng iāo iē iě iōng iū iǎ iǎn iǎng iǎo iǒng iǔ j k l m n o ong ou p q r s sh t u uang ue un uo uà uài uàn uàng uá uái
uán uáng uè ué uì uí uò uó uā uāi uān uāng uē uě uī uō uǎ uǎi uǎn uǎng uǐ uǒ vè w x y z zh à ài àn àng ào á ái án áng
áo è èi èn èng èr é éi én éng ér ì ìn ìng í ín íng ò òng òu ó óng óu ù ùn ú ún ā āi ān āng āo ē ēi ēn ēng ě ěi ěn ěng
ěr ī īn īng ō ōng ōu ū ūn ǎ ǎi ǎn ǎng ǎo ǐ ǐn ǐng ǒ ǒng ǒu ǔ ǔn ǘ ǚ ǜ
"""
_COSYVOICE2_TOKENS: Final = Tokens(
    text=_SOUNDS,
    ends=3,
    named=("<|eos1|>", "<|eos2|>", "<|eos3|>"),
    marks=("<|sos|>", "<|task_id|>"),
    sampling={"do_sample": True, "temperature": 1.0, "top_p": 0.8, "top_k": 25},
)
_COSYVOICE3_TOKENS: Final = Tokens(
    text=(*_SOUNDS, "<|endofsystem|>", *(f"[{phone}]" for phone in f"{_ARPABET} {_PINYIN}".split())),
    ends=200,
    named=("<|sos|>", "<|eos1|>", "<|task_id|>", "<|fill|>"),
    marks=(),
    sampling={"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 25, "repetition_penalty": 1.1},
)


COSYVOICE2_CHUNKED: Final = Component(
    name="flow.encoder.chunked",
    class_name=_UPSAMPLE,
    weights="flow.pt",
    prefix="encoder.",
    tolerances=_TOLERANCES,
    at="flow.encoder",
    on_request=True,
    overrides={"static_chunk_size": 50, "always_streaming": True},
)
"""The flow encoder as public runtimes of before April 2025 expect it: it attends in chunks at every call.

Read of FunAudioLLM/CosyVoice: from 94d6ce1 (December 16th, 2024) to 08312f4 (March 25th, 2025) `CosyVoice2Model` sets
`flow.encoder.static_chunk_size` to twice `flow.input_frame_rate`, which is 25 in the configuration of that family, and
the encoder is exported so. Its `forward` takes xs, xs_lens, decoding_chunk_size and num_decoding_left_chunks, of which
the runtime gives the first two, by position; there is no `streaming` and no `context`. From b56dfa2 (April 7th) the
runtime calls a `forward_chunk` of the encoder, which no artifact has; from 3c921da (May 23rd) it sets
`flow.encoder.streaming` before the export, and from b6c5f9d (May 27th) it passes `streaming`, as it does today.
"""

COSYVOICE_ESTIMATOR: Final = _estimator("cosyvoice.flow.decoder.ConditionalDecoder", _OFFLINE)
COSYVOICE2_ESTIMATOR: Final = _estimator("cosyvoice.flow.decoder.CausalConditionalDecoder", _OFFLINE | _STREAMING)
COSYVOICE3_ESTIMATOR: Final = _estimator("cosyvoice.flow.DiT.dit.DiT", _OFFLINE | _STREAMING)

COSYVOICE2_VLLM: Final = _folder("cosyvoice.llm.llm.Qwen2LM", ("llm_decoder.bias", "llm_embedding.weight"))
COSYVOICE3_VLLM: Final = _folder("cosyvoice.llm.llm.CosyVoice3LM", ())

COSYVOICE2_HF: Final = _merged(COSYVOICE2_VLLM, _COSYVOICE2_TOKENS)
COSYVOICE3_HF: Final = _merged(COSYVOICE3_VLLM, _COSYVOICE3_TOKENS)

FAMILIES: Final = (
    Family(
        name="CosyVoice",
        language_model="cosyvoice.llm.llm.TransformerLM",
        components=(
            Component("llm.text_encoder", _CONFORMER, "llm.pt", "text_encoder.", (), _TOLERANCES),
            Component("llm.llm", _TRANSFORMER, "llm.pt", "llm.", ("forward_chunk",), _LLM_TOLERANCES),
            Component("flow.encoder", _CONFORMER, "flow.pt", "encoder.", (), _TOLERANCES),
            COSYVOICE_ESTIMATOR,
        ),
    ),
    Family(
        name="CosyVoice2",
        language_model="cosyvoice.llm.llm.Qwen2LM",
        components=(
            Component("flow.encoder", _UPSAMPLE, "flow.pt", "encoder.", (), _TOLERANCES),
            COSYVOICE2_CHUNKED,
            COSYVOICE2_ESTIMATOR,
            COSYVOICE2_VLLM,
            COSYVOICE2_HF,
        ),
    ),
    Family(
        name="CosyVoice3",
        language_model="cosyvoice.llm.llm.CosyVoice3LM",
        components=(COSYVOICE3_ESTIMATOR, COSYVOICE3_VLLM, COSYVOICE3_HF),
    ),
)

CONFIG_FILES: Final = ("cosyvoice.yaml", "cosyvoice2.yaml", "cosyvoice3.yaml")
"""The names under which configurations are published. They do not identify the family: early CosyVoice2 repositories
used the first."""

_REPORT: Final = "this is a fault of cosyjit or of ONNX Runtime: report it"

PRECISIONS: Final = {
    precision.name: precision
    for precision in (
        Precision("fp32", "float32", 4, "this is a fault of cosyjit or of torch: report it"),
        Precision("fp16", "float16", 2, "export bf16 or fp32 instead"),
        Precision("bf16", "bfloat16", 2, "export fp16 or fp32 instead"),
        Precision("int8", "float32", 1, "export fp32 instead", quantized=True),
        Precision("autocast_fp16", "float16", 2, "export fp32 instead"),
        Precision("streaming.fp32", "float32", 4, _REPORT),
        Precision("streaming.autocast_fp16", "float16", 2, "export streaming.fp32 instead"),
        Precision("fp32.dynamic_batch", "float32", 4, _REPORT),
    )
}


def family_of(language_model: str, where: str) -> Family:
    """The family whose language model has a class.

    Raises:
        ConfigError: there is no such family; the message begins with `where`.
    """
    for family in FAMILIES:
        if family.language_model == language_model:
            return family
    known = ", ".join(f"{family.language_model} ({family.name})" for family in FAMILIES)
    raise ConfigError(f"{where}: llm is of an unknown class, {language_model}; known: {known}")


def family_having(component: Component) -> Family:
    """The family that a component is of."""
    return next(family for family in FAMILIES if component in family.components)


def nodes_of_components(*, on_request: bool = False) -> tuple[str, ...]:
    """The paths of the nodes, other than the language model's, that components of any family have.

    Args:
        on_request: the nodes that components on request alone have, instead of those of the others.
    """
    parts = [part for family in FAMILIES for part in family.components if part.node != LANGUAGE_MODEL]
    usual = dict.fromkeys(part.node for part in parts if not part.on_request)
    return tuple(dict.fromkeys(part.node for part in parts if part.node not in usual) if on_request else usual)


def plans_of(name: str) -> re.Pattern[str] | None:
    """What the names of the plans match that runtimes make of a published file; None if they make none.

    Args:
        name: of the published file.
    """
    for part in (part for family in FAMILIES for part in family.components):
        for precision, plans in part.plans.items():
            if part.file_name(precision) == name:
                names = (re.escape(f"{part.node}.{plan}").replace(r"\*", "[^.]+") for plan in plans)
                return re.compile("|".join(names))
    return None


def family_by_components(classes: Mapping[str, str], where: str) -> Family:
    """The one family that a configuration without a language model can belong to.

    Args:
        classes: the classes of the nodes of components that it has, by their paths.
        where: the beginning of the error's message.

    Raises:
        ConfigError: no family has a component of such a class at such a node, or several have.
    """
    if not classes:
        nodes = " nor ".join((LANGUAGE_MODEL, *nodes_of_components(), *nodes_of_components(on_request=True)))
        raise ConfigError(f"{where}: has neither {nodes}, which identify the family; restore the published file")
    fitting = [
        family for family in FAMILIES if any(classes.get(part.node) == part.class_name for part in family.components)
    ]
    if len(fitting) == 1:
        return fitting[0]
    given = " and ".join(f"{node} is a {class_name}" for node, class_name in classes.items())
    known = ", ".join(
        f"{part.class_name} ({family.name})"
        for family in FAMILIES
        for part in family.components
        if part.node in classes
    )
    raise ConfigError(f"{where}: has no {LANGUAGE_MODEL} node to identify the family, and {given}; known: {known}")
