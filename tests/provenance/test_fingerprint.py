"""Keys: any change of what decides an artifact's bytes gives another one, and nothing else does."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import torch
import xxhash
from hypothesis import assume, given
from hypothesis import strategies as st

from cosyjit import encoders
from cosyjit.configuration.config import Instance
from cosyjit.encoders.options import TABLES, parse_options
from cosyjit.encoders.registry import ENCODERS
from cosyjit.families import FAMILIES, PRECISIONS
from cosyjit.fs.digests import Digests
from cosyjit.planning.inputs import read_inputs
from cosyjit.planning.plan import find_targets
from cosyjit.provenance.fingerprint import Fingerprint, canonical, differences, fingerprint, key_of, plain
from cosyjit.sources.source import open_source
from cosyjit.store.store import Store
from cosyjit.weights.tensor_digests import TensorDigest
from tests.support.checkpoints import opened
from tests.support.processes import ROOT

Copy = Callable[[Path], Path]

GIVEN: Final = Fingerprint(
    tensors={
        "embed.weight": TensorDigest("float32", (2, 3), "0123456789abcdef0123456789abcdef"),
        "encoders.0.bias": TensorDigest("float16", (), "fedcba9876543210fedcba9876543210"),
        "epoch": TensorDigest("int", (), ""),
    },
    config={"class": "a.Encoder", "options": {"linear_units": 2048, "rate": 0.1, "é": None, "causal": True}},
    precision="fp16",
    device="cpu",
    recipe={"methods": ["forward_chunk"], "stages": ["script", "freeze"]},
    encoders=1,
    torch="2.12.1",
)


# Golden values: a store that was filled before has these keys. If one is to change, so does the number in the domain.

TENSORS: Final = (
    b'{"embed.weight":["float32",[2,3],"0123456789abcdef0123456789abcdef"],'
    b'"encoders.0.bias":["float16",[],"fedcba9876543210fedcba9876543210"],"epoch":["int",[],""]}'
)
PARTS: Final = (
    b'{"config":{"class":"a.Encoder","options":{"causal":true,"linear_units":2048,"rate":0.1,"\\u00e9":null}},'
    b'"device":"cpu","encoders":1,"precision":"fp16","recipe":{"methods":["forward_chunk"],'
    b'"stages":["script","freeze"]},"tensors":{"count":3,"xxh3_128":"TENSORS"},"torch":"2.12.1"}'
)


def test_the_canonical_forms_are_these() -> None:
    assert canonical(GIVEN.tensors) == TENSORS
    digest = GIVEN.parts["tensors"]["xxh3_128"]
    assert canonical(GIVEN.parts).replace(digest.encode(), b"TENSORS") == PARTS
    assert canonical({"b": [1, 1.0, -0.0, 1e300], "a": "\ud800\n"}) == b'{"a":"\\ud800\\n","b":[1,1.0,-0.0,1e+300]}'


def test_the_keys_are_these() -> None:
    assert GIVEN.parts["tensors"]["xxh3_128"] == "23ae7b2eaadcdea0f244396141f0e96c"
    assert GIVEN.key == "73cae4904dab4dca5e9653c9f7e41636"
    assert key_of(GIVEN.parts) == GIVEN.key
    assert xxhash.xxh3_128_hexdigest(TENSORS) == "23ae7b2eaadcdea0f244396141f0e96c"
    whole = b"cosyjit fingerprint 1\n" + PARTS.replace(b"TENSORS", b"23ae7b2eaadcdea0f244396141f0e96c")
    assert xxhash.xxh3_128_hexdigest(whole) == "73cae4904dab4dca5e9653c9f7e41636"


def test_the_key_of_a_component_is_this() -> None:
    made = fingerprint(
        FAMILIES[0].components[1], {"linear_units": 128, "nested": [1]}, PRECISIONS["fp32"], "cpu", TAKEN
    )
    assert replace(made, torch="2.12.1", encoders=1).key == "b87cfd5bd7a253817abc77af99923f15"


TAKEN: Final = {
    "llm.encoders.0.weight": TensorDigest("float32", (2,), "0" * 32),
    "llm.": TensorDigest("float32", (), "3" * 32),
}


def test_a_fingerprint_has_what_decides_the_bytes() -> None:
    component = FAMILIES[0].components[1]
    made = fingerprint(component, {"a": Instance("b.C", {"d": 1})}, PRECISIONS["bf16"], "cuda", TAKEN)
    assert made == Fingerprint(
        tensors={"encoders.0.weight": TAKEN["llm.encoders.0.weight"], "": TAKEN["llm."]},
        config={"class": component.class_name, "options": {"a": plain(Instance("b.C", {"d": 1}))}},
        precision="bf16",
        device="cuda",
        recipe={"methods": ["forward_chunk"], "stages": ["script", "freeze", "optimize_for_inference"]},
        encoders=2,
        torch=version("torch"),
    )


def test_what_a_component_overrides_is_a_part_of_its_fingerprint_apart_from_the_options() -> None:
    usual, chunked = FAMILIES[1].components[:2]
    taken = {"encoder.x": TAKEN["llm."]}
    given = {"static_chunk_size": 25}
    made = {part.name: fingerprint(part, given, PRECISIONS["fp16"], "cpu", taken) for part in (usual, chunked)}
    assert made["flow.encoder"].config == {"class": usual.class_name, "options": given}
    assert made["flow.encoder.chunked"].config == {
        "class": usual.class_name,
        "options": given,
        "overrides": {"static_chunk_size": 50, "always_streaming": True},
    }
    # What a configuration gives is never taken for it.
    forged = fingerprint(usual, dict(chunked.overrides), PRECISIONS["fp16"], "cpu", taken)
    assert forged.key != fingerprint(chunked, dict(chunked.overrides), PRECISIONS["fp16"], "cpu", taken).key
    assert differences(made["flow.encoder"], made["flow.encoder.chunked"]) == [
        "component: static_chunk_size 50 added",
        "component: always_streaming true added",
    ]
    assert differences(made["flow.encoder.chunked"], made["flow.encoder"]) == [
        "component: static_chunk_size 50 removed",
        "component: always_streaming true removed",
    ]


# What changes a key.

SCALARS: Final = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES: Final = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
NAMES: Final = st.text(min_size=1, max_size=8)
DIGESTS: Final = st.builds(
    TensorDigest,
    st.sampled_from(["float32", "float16", "int64"]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.text("0123456789abcdef", min_size=32, max_size=32),
)
FINGERPRINTS: Final = st.builds(
    Fingerprint,
    tensors=st.dictionaries(NAMES, DIGESTS, min_size=1, max_size=4),
    config=st.fixed_dictionaries({"class": NAMES, "options": st.dictionaries(NAMES, VALUES, min_size=1, max_size=4)}),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
    device=st.sampled_from(["cpu", "cuda"]),
    recipe=st.fixed_dictionaries({"methods": st.lists(NAMES, max_size=2), "stages": st.lists(NAMES, max_size=3)}),
    encoders=st.integers(1, 9),
    torch=st.sampled_from(["2.12.1", "2.13.0", "2.13.0+cpu"]),
)


class Strict(NamedTuple):
    """A value with the types of all in it, so that 1, 1.0 and True differ, and 0.0 and -0.0."""

    text: str


def strict(value: Any) -> Strict:
    """By another way than the code's: Python's own form, mappings in order of their keys."""
    if isinstance(value, Mapping):
        return Strict(repr(sorted((key, strict(each).text) for key, each in value.items())))
    if isinstance(value, list):
        return Strict(repr([strict(each).text for each in value]))
    return Strict(repr(value))


def test_an_option_of_the_name_of_the_class_does_not_hide_another_class() -> None:
    before = replace(GIVEN, config={"class": "a.A", "options": {"class": 1}})
    after = replace(before, config={"class": "a.B", "options": {"class": 1}})
    assert differences(before, after) == ["class a.A -> a.B"]


@given(FINGERPRINTS, st.data())
def test_any_single_change_of_an_input_changes_the_key(before: Fingerprint, data: st.DataObject) -> None:
    options: dict[str, Any] = before.config["options"]
    tensor = data.draw(st.sampled_from(sorted(before.tensors)))
    option = data.draw(st.sampled_from(sorted(options)))
    was, other = before.tensors[tensor], data.draw(DIGESTS)
    name = data.draw(NAMES)
    rest = {each: digest for each, digest in before.tensors.items() if each != tensor}
    other_options = {each: value for each, value in options.items() if each != option}
    changes: dict[str, tuple[Any, Any, Fingerprint]] = {
        "tensor name": (name in before.tensors, True, replace(before, tensors={**rest, name: was})),
        "tensor dtype": (
            was.dtype,
            other.dtype,
            replace(before, tensors={**rest, tensor: was._replace(dtype=other.dtype)}),
        ),
        "tensor shape": (
            was.shape,
            other.shape,
            replace(before, tensors={**rest, tensor: was._replace(shape=other.shape)}),
        ),
        "tensor digest": (
            was.digest,
            other.digest,
            replace(before, tensors={**rest, tensor: was._replace(digest=other.digest)}),
        ),
        "tensor gone": (0, 1, replace(before, tensors=rest)),
        "tensor more": (name in before.tensors, True, replace(before, tensors={**before.tensors, name: other})),
        "class": (before.config["class"], name, replace(before, config={"class": name, "options": options})),
        "option gone": (0, 1, replace(before, config={**before.config, "options": other_options})),
        "option more": (
            name in options,
            True,
            replace(before, config={**before.config, "options": {**options, name: None}}),
        ),
        "precision": (before.precision, name, replace(before, precision=name)),
        "device": (before.device, name, replace(before, device=name)),
        "methods": (0, 1, replace(before, recipe={**before.recipe, "methods": [*before.recipe["methods"], name]})),
        "stages": (0, 1, replace(before, recipe={**before.recipe, "stages": [name, *before.recipe["stages"]]})),
        "encoders": (0, 1, replace(before, encoders=before.encoders + 1)),
        "torch": (before.torch, name, replace(before, torch=name)),
    }
    value = data.draw(VALUES)
    valued = replace(before, config={**before.config, "options": {**other_options, option: value}})
    changes["option value"] = (strict(options[option]), strict(value), valued)
    keys = {before.key}
    for what, (old, new, after) in changes.items():
        if what in {"tensor name", "tensor more", "option more"}:
            if old:  # the name is taken: this is no such change
                continue
        elif old == new:
            continue
        assert after.key != before.key, what
        assert differences(before, after), what
        keys.add(after.key)
    assert len(keys) > 6


@given(FINGERPRINTS, st.randoms())
def test_the_order_of_names_does_not_count(before: Fingerprint, random: Any) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return [shuffled(each) for each in value] if isinstance(value, list) else value
        names = list(value)
        random.shuffle(names)
        return {name: shuffled(value[name]) for name in names}

    after = replace(before, tensors=shuffled(before.tensors), config=shuffled(before.config))
    assert after.key == before.key
    assert differences(before, after) == []


# Values of a configuration.

DIFFERENT: Final[list[Any]] = [
    None,
    "null",
    "None",
    True,
    "true",
    1,
    1.0,
    "1",
    0,
    0.0,
    -0.0,
    False,
    "",
    float("inf"),
    "Infinity",
    float("nan"),
    [],
    {},
    [[]],
    [{}],
    [1, 2],
    ["1", 2],
    {"1": 2},
    {1: 2},
    {1.0: 2},
    {True: 2},
    {None: 2},
    {"null": 2},
    {(1, 2): 3},
    {"a": 1},
    {"a": 1, 1: "a"},
    Instance("a", {}),
    Instance("a", {"a": 1}),
    Instance("b", {}),
    "!new:a",
    {"!new:a": {}},
    {"!new:a": {"a": 1}},
    {"!map": [[1, 2]]},
    {"!date": "2020-01-01"},
    date(2020, 1, 1),
    date(2020, 1, 2),
    b"2020",
]


def test_different_values_stay_different() -> None:
    forms: dict[bytes, Any] = {}
    for value in DIFFERENT:
        form = canonical(plain(value))
        assert form not in forms, f"{value!r} and {forms[form]!r} have the form {form!r}"
        forms[form] = value


KEYED: Final = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(SCALARS | st.sampled_from(["!new:a", "!map"]), inner, max_size=3)
        | st.builds(Instance, st.sampled_from(["a", "b"]), st.dictionaries(NAMES, inner, max_size=2))
    ),
)


def shape_of(value: Any) -> str:
    if isinstance(value, Instance):
        return f"Instance({value.class_name!r}, {shape_of(value.options)})"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{key!r}: {shape_of(each)}' for key, each in value.items()))}}}"
    return f"[{', '.join(map(shape_of, value))}]" if isinstance(value, list) else repr(value)


@given(KEYED, KEYED)
def test_two_values_have_one_form_only_if_they_are_equal(one: Any, other: Any) -> None:
    assert (canonical(plain(one)) == canonical(plain(other))) == (shape_of(one) == shape_of(other))


@given(KEYED)
def test_a_form_is_its_own_plain_form(value: Any) -> None:
    assert canonical(plain(value)) == canonical(plain(value))
    assert canonical(plain({1: value, 2: 3})) == canonical(plain({2: 3, 1: value}))


# A real model directory.


def keys(directory: Path) -> dict[str, str]:
    """The key of each component, at one precision."""
    checkpoint = opened(directory)
    memory = Digests(directory.parent / "memory")
    inputs = read_inputs(checkpoint, checkpoint.family.components, memory)
    return {
        part.name: fingerprint(part, each.options, PRECISIONS["fp16"], "cpu", each.tensors).key
        for part, each in inputs.items()
    }


def config_of(directory: Path) -> Path:
    (path,) = directory.glob("*.yaml")
    return path


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = config_of(directory)
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    return change


def saving(change: Callable[[dict[str, Any]], dict[str, Any]], name: str = "llm.pt") -> Callable[[Path], None]:
    def save(directory: Path) -> None:
        path = directory / name
        torch.save(change(torch.load(path, weights_only=True)), path)

    return save


def touch(directory: Path) -> None:
    for path in directory.iterdir():
        path.touch()


def comment(directory: Path) -> None:
    lines = config_of(directory).read_text().splitlines()
    config_of(directory).write_text("".join(f"{line}  # a comment\n\n" for line in lines))


def reorder(directory: Path) -> None:
    """The options of every `!new:` node the other way round, where they stand one below the other."""
    path = config_of(directory)
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("encoder.TransformerEncoder"))
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(8 * " "))
    assert end - start > 8
    lines[start + 1 : end] = lines[start + 1 : end][::-1]
    path.write_text("\n".join(lines) + "\n")


def anchor(directory: Path) -> None:
    path = config_of(directory)
    text = path.read_text()
    assert text.count("positional_dropout_rate: 0.1\n") >= 2
    text = text.replace("positional_dropout_rate: 0.1\n", "positional_dropout_rate: &rate 0.1\n", 1)
    head, _, tail = text.rpartition("positional_dropout_rate: 0.1\n")
    path.write_text(f"{head}positional_dropout_rate: *rate\n{tail}")


def to_cosyvoice_yaml(directory: Path) -> None:
    path = config_of(directory)
    path.rename(path.with_name("cosyvoice2.yaml"))


def turned(state: dict[str, Any]) -> dict[str, Any]:
    return {name: each.t().contiguous().t() if each.dim() == 2 else each for name, each in state.items()}


SAME: Final[dict[str, Callable[[Path], None]]] = {
    "touched": touch,
    "saved again in another order": saving(lambda state: dict(reversed(state.items()))),
    "saved transposed": saving(turned),
    "what training leaves": saving(lambda state: {"epoch": 7, **state, "step": 12_345}),
    "another component's tensors": saving(
        lambda state: {
            name: each if name.startswith(("llm.", "text_encoder.")) else each + 1 for name, each in state.items()
        }
    ),
    "the decoder's tensors": saving(lambda state: {**state, "decoder.more": torch.ones(2)}, "flow.pt"),
    "comments": comment,
    "options in another order": reorder,
    "anchors": anchor,
    "the sampler's settings": edit("top_k: 25", "top_k: 50"),
    "another sampler": edit("ras_sampling", "nucleus_sampling"),
    "a seed": edit("torch.manual_seed [1986]", "torch.manual_seed [1]"),
    "the name of the configuration": to_cosyvoice_yaml,
    "a number written otherwise": edit("sample_rate: 22050", "sample_rate: 22_050"),
    "a file beside": lambda directory: (directory / "README.md").touch(),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_does_not_decide_the_bytes_changes_no_key(
    change: Callable[[Path], None], tiny: Path, copy_of: Copy
) -> None:
    directory = copy_of(tiny)
    before = keys(directory)
    change(directory)
    assert keys(directory) == before


def test_a_directory_that_is_copied_or_moved_keeps_its_keys(tiny: Path, tmp_path: Path) -> None:
    before = keys(Path(shutil.copytree(tiny, tmp_path / "a" / "one")))
    assert keys((tmp_path / "a" / "one").rename(tmp_path / "a" / "two")) == before
    assert keys(Path(shutil.copytree(tmp_path / "a" / "two", tmp_path / "b"))) == before
    assert len(set(before.values())) == 4


def retrained(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def retrain(state: dict[str, Any]) -> dict[str, Any]:
        return {name: each + (1e-3 if name.startswith(prefix) else 0) for name, each in state.items()}

    return retrain


class Change(NamedTuple):
    """What is done to a directory, and the components that are others then."""

    change: Callable[[Path], None]
    components: set[str]


OTHER: Final = {
    "the language model retrained": Change(saving(retrained("llm.")), {"llm.llm"}),
    "the text encoder retrained": Change(saving(retrained("text_encoder.")), {"llm.text_encoder"}),
    "the flow encoder retrained": Change(saving(retrained("encoder."), "flow.pt"), {"flow.encoder"}),
    "the estimator retrained": Change(saving(retrained("decoder."), "flow.pt"), {"flow.decoder.estimator"}),
    "an option of the estimator": Change(edit("act_fn: 'gelu'", "act_fn: 'geglu'"), {"flow.decoder.estimator"}),
    "one number": Change(saving(lambda s: {**s, "llm.after_norm.bias": s["llm.after_norm.bias"] + 1}), {"llm.llm"}),
    "a type": Change(saving(lambda s: {**s, "llm.after_norm.bias": s["llm.after_norm.bias"].double()}), {"llm.llm"}),
    "a shape": Change(saving(lambda s: {**s, "llm.after_norm.bias": s["llm.after_norm.bias"][None]}), {"llm.llm"}),
    "a tensor more": Change(saving(lambda s: {**s, "llm.more": torch.ones(1)}), {"llm.llm"}),
    "what several nodes refer to": Change(edit("llm_input_size: 64\n", "llm_input_size: 65\n"), {"llm.llm"}),
    "an option": Change(edit("input_layer: 'linear_legacy'", "input_layer: 'linear'"), {"llm.llm"}),
    "the type of an option": Change(edit("input_layer: 'linear_legacy'", "input_layer: null"), {"llm.llm"}),
}


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER)
def test_what_decides_the_bytes_changes_the_keys_of_whom_it_concerns(other: Change, tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    before = keys(directory)
    other.change(directory)
    after = keys(directory)
    assert {name for name in before if after[name] != before[name]} == other.components


@pytest.mark.parametrize(
    ("precision", "device"), [(precision, device) for precision in PRECISIONS for device in ("cpu", "cuda")]
)
def test_precision_and_device_are_told_apart(precision: str, device: str) -> None:
    part = FAMILIES[0].components[1]
    made = fingerprint(part, {}, PRECISIONS[precision], device, TAKEN)
    others = [fingerprint(part, {}, PRECISIONS[p], d, TAKEN) for p in PRECISIONS for d in ("cpu", "cuda")]
    assert [other.key for other in others].count(made.key) == 1


def test_a_component_that_keeps_other_methods_has_another_key() -> None:
    part = FAMILIES[0].components[1]
    made = [
        fingerprint(each, {}, PRECISIONS["fp32"], "cpu", TAKEN).key
        for each in (part, replace(part, methods=()), replace(part, methods=("forward_chunk", "other")))
    ]
    assert len(set(made)) == 3
    # Its own name and the file's do not count: two that are alike share an artifact.
    assert fingerprint(replace(part, name="x", weights="y"), {}, PRECISIONS["fp32"], "cpu", TAKEN).key == made[0]


# Differences in words.


def tensors(**changes: str) -> dict[str, TensorDigest]:
    digests = {f"encoders.{i}": "0" for i in range(401)} | changes
    return {name: TensorDigest("float32", (1,), digest) for name, digest in digests.items()}


BEFORE: Final = replace(GIVEN, tensors=tensors())


def without(names: set[str]) -> dict[str, TensorDigest]:
    return {name: each for name, each in tensors().items() if name not in names}


def changed(*numbers: int) -> dict[str, TensorDigest]:
    return tensors(**{f"encoders.{i}": "1" for i in numbers})


def optioned(**options: object) -> dict[str, Any]:
    return {**GIVEN.config, "options": {**GIVEN.config["options"], **options}}


WORDS: Final[list[tuple[dict[str, Any], list[str]]]] = [
    ({}, []),
    ({"tensors": changed(5)}, ["1 of 401 tensors changed: encoders.5"]),
    ({"tensors": changed(7, 5, 6)}, ["3 of 401 tensors changed: encoders.5, encoders.6, encoders.7"]),
    ({"tensors": changed(5, 6, 7, 8)}, ["4 of 401 tensors changed: encoders.5, encoders.6, encoders.7, …"]),
    (
        {"tensors": changed(*range(401))},
        ["401 of 401 tensors changed: encoders.0, encoders.1, encoders.2, …"],
    ),
    ({"tensors": tensors(more="0")}, ["1 of 402 tensors added: more"]),
    ({"tensors": without({"encoders.3", "encoders.4"})}, ["2 of 401 tensors removed: encoders.3, encoders.4"]),
    (
        {"tensors": {**changed(1), **tensors(a="0", b="0", c="0", d="0", **{"encoders.1": "1"})}},
        ["1 of 405 tensors changed: encoders.1", "4 of 405 tensors added: a, b, c, …"],
    ),
    ({"config": optioned(linear_units=4096)}, ["linear_units 2048 -> 4096"]),
    ({"config": optioned(causal=False)}, ["causal true -> false"]),
    ({"config": optioned(linear_units=2048.0)}, ["linear_units 2048 -> 2048.0"]),
    ({"config": optioned(linear_units=[1, "a"])}, ['linear_units 2048 -> [1, "a"]']),
    ({"config": optioned(linear_units="many")}, ["linear_units 2048 -> many"]),
    ({"config": optioned(more=None)}, ["more null added"]),
    ({"config": {**GIVEN.config, "class": "b.Encoder"}}, ["class a.Encoder -> b.Encoder"]),
    (
        {"config": {"class": "a.Encoder", "options": {"rate": 0.1, "é": None, "causal": True}}},
        ["linear_units 2048 removed"],
    ),
    ({"precision": "fp32"}, ["precision fp16 -> fp32"]),
    ({"device": "cuda"}, ["device cpu -> cuda"]),
    ({"recipe": {**GIVEN.recipe, "methods": []}}, ['recipe: methods ["forward_chunk"] -> []']),
    ({"encoders": 2}, ["encoder code 1 -> 2"]),
    ({"torch": "2.13.0"}, ["torch 2.12.1 -> 2.13.0"]),
    (
        {"tensors": changed(5), "config": optioned(linear_units=1), "torch": "2.13.0"},
        ["1 of 401 tensors changed: encoders.5", "linear_units 2048 -> 1", "torch 2.12.1 -> 2.13.0"],
    ),
]


@pytest.mark.parametrize(("change", "words"), WORDS, ids=[" & ".join(words) or "none" for _, words in WORDS])
def test_differences_are_said_in_words(change: dict[str, Any], words: list[str]) -> None:
    after = replace(BEFORE, **change)
    assert differences(BEFORE, after) == words
    assert (after.key != BEFORE.key) == bool(words)


@pytest.mark.parametrize(("was", "now"), [(True, "true"), (1, "1"), (None, "null"), (1, True), ([1], "[1]")])
def test_a_value_and_its_text_are_told_apart_in_words(was: object, now: object) -> None:
    (words,) = differences(replace(GIVEN, config=optioned(x=was)), replace(GIVEN, config=optioned(x=now)))
    before, _, after = words.removeprefix("x ").partition(" -> ")
    assert before != after


@pytest.mark.slow
@given(FINGERPRINTS, FINGERPRINTS)
def test_there_are_words_just_where_the_keys_differ(before: Fingerprint, after: Fingerprint) -> None:
    assume(list(before.recipe) == list(after.recipe))
    assert (differences(before, after) == []) == (before.key == after.key)
    assert differences(before, before) == []
    for line in differences(before, after):
        assert line


# The encoders' version.

PACKAGE: Final = ROOT / "cosyjit"
CODE: Final = [
    *sorted((PACKAGE / "encoders").glob("*.py")),
    *(PACKAGE / name for name in ("torchscript/script.py", "torchscript/load.py", "building/zips.py")),
]


def test_the_version_of_the_encoders_is_that_of_their_code() -> None:
    text = b"".join(b"%s %d\n%s" % (path.name.encode(), len(path.read_bytes()), path.read_bytes()) for path in CODE)
    found = (encoders.VERSION, xxhash.xxh3_128_hexdigest(text))
    assert found == (3, "d865a9bbba8138e5b49dc1ebcaee22e7"), (
        f"one of {[path.name for path in CODE]} was changed. If an artifact made from the same weights comes out "
        "another one, raise VERSION in cosyjit/encoders/__init__.py and let version_of give it for the encoders "
        f"concerned, or stores go on giving out what the old code made. Then pin here what was found: {found}"
    )


CENTRED: Final = [
    # use_cnn_module, causal, and whether a convolution is centred
    (None, None, True),
    (None, False, True),
    (True, None, True),
    (True, False, True),
    (None, True, False),
    (True, True, False),
    (False, None, False),
    (False, False, False),
    (False, True, False),
]


@pytest.mark.parametrize(("use_cnn_module", "causal", "centred"), CENTRED)
@pytest.mark.parametrize("class_name", ENCODERS)
def test_what_computes_the_same_as_before_has_the_version_from_before(
    class_name: str, use_cnn_module: bool | None, causal: bool | None, centred: bool
) -> None:
    given = {"use_cnn_module": use_cnn_module, "causal": causal}
    options = {option: value for option, value in given.items() if value is not None}
    convolves = "use_cnn_module" in TABLES[class_name]
    assert encoders.version_of(class_name, options) == (3 if centred and convolves else 2)
    if convolves:
        published = {"pos_enc_layer_type": "rel_pos_espnet", "input_layer": "linear"}
        parsed = parse_options(TABLES[class_name], published | {"input_size": 512, "output_size": 512} | options)
        assert (parsed.use_cnn_module and not parsed.causal) == centred


def test_options_that_no_encoder_takes_have_a_version_all_the_same() -> None:
    """They are refused later, with the line that says so."""
    for class_name in ENCODERS:
        assert encoders.version_of(class_name, {"causal": "!apply:x", "use_cnn_module": [None]}) in {2, 3}


def test_a_centred_convolution_made_before_is_planned_again_because_of_the_code(tiny: Path, copy_of: Copy) -> None:
    directory = copy_of(tiny)
    config = directory / "cosyvoice.yaml"
    before, found, after = config.read_text().rpartition("use_cnn_module: False")  # that of the flow
    config.write_text(f"{before}use_cnn_module: True{after}")
    assert found
    (target,) = find_targets(open_source(directory), ["flow.encoder"], ["fp16"], store=Store())
    assert target.fingerprint.encoders == 3
    assert differences(replace(target.fingerprint, encoders=2), target.fingerprint) == ["encoder code 2 -> 3"]
    assert {each.fingerprint.encoders for each in find_targets(open_source(tiny), store=Store())} == {2}
