"""Configurations as inert data: what they say is what HyperPyYAML makes of them, and nothing in them runs."""

import contextlib
import io
import json
import os
import re
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from cosyjit.configuration.config import Config, Instance
from cosyjit.errors import ConfigError
from tests.support.gadgets import BOMBS, INCLUDED, PLACES, PLANTED, REDEFINED, RUNNING
from tests.support.processes import start

PUBLISHED: Final = {
    "llm.text_encoder": "cosyvoice.transformer.encoder.ConformerEncoder",
    "llm.llm": "cosyvoice.transformer.encoder.TransformerEncoder",
    "flow.encoder": "cosyvoice.transformer.encoder.ConformerEncoder",
}
PUBLISHED_2: Final = {"flow.encoder": "cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder"}


WHERE: Final = "CosyVoice/cosyvoice.yaml"


def config(text: str) -> Config:
    return Config(text, WHERE)


def document(options: str, before: str = "", after: str = "") -> str:
    """A configuration whose `llm.e` has these options, with top-level nodes before and after `llm`."""
    node = "llm: !new:a.Model\n  e: !new:a.Encoder\n"
    return textwrap.dedent(before) + node + textwrap.indent(textwrap.dedent(options), "    ") + textwrap.dedent(after)


def by_hyperpyyaml(text: str) -> Any:
    """What HyperPyYAML loads of a configuration; each class and function in it is a harmless one."""
    text = re.sub(r"!(new|name):[\w.]+", r"!\1:builtins.dict", text)
    return load_hyperpyyaml(re.sub(r"!apply:[\w.]+", "!apply:builtins.abs", text))


def assert_error(error: pytest.ExceptionInfo[ConfigError], where: object, *words: str) -> None:
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{where}: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(("family", "components"), [("tiny", PUBLISHED), ("tiny2", PUBLISHED_2)])
def test_published_form_resolves_as_hyperpyyaml_resolves_it(
    family: str, components: dict[str, str], request: pytest.FixtureRequest
) -> None:
    path = next(request.getfixturevalue(family).glob("*.yaml"))
    published, expected = Config.read(path), by_hyperpyyaml(path.read_text())
    for name, class_name in components.items():
        part, _, node = name.partition(".")
        instance = published.instance(name)
        assert instance.class_name == published.class_of(name) == class_name
        assert instance.options == expected[part][node]
        assert [type(value) for value in instance.options.values()] == [
            type(value) for value in expected[part][node].values()
        ]


def test_references_of_the_published_form_are_values(tiny: Path, tiny2: Path) -> None:
    first, second = Config.read(tiny / "cosyvoice.yaml"), Config.read(tiny2 / "cosyvoice2.yaml")
    assert first.class_of("llm") == "cosyvoice.llm.llm.TransformerLM"
    assert second.class_of("llm") == "cosyvoice.llm.llm.Qwen2LM"
    assert first.instance("llm.llm").options["input_size"] == 64
    assert second.instance("flow.encoder").options["static_chunk_size"] == 25
    assert second.instance("flow.decoder.estimator").options["static_chunk_size"] == 50


def test_an_anchor_may_be_used_again() -> None:
    text = document("{a: *x, b: *y}\n", "p: &x 1\nq: &y 2\nr: &x 3\n")
    assert config(text).instance("llm.e").options == {"a": 3, "b": 2}


SHARED: Final = """
    n: 5
    f: 0.25
    s: abc
    quoted: "007"
    t: True
    none: null
    list: [1, 2]
    tree: {a: {b: 7}}
    base: &base {p: 1, q: [1, 2], t: False}
    other: &other {q: 3, r: 4}
    referring: &referring {p: !ref <n>}
    merged: {<<: *base, u: 8}
    alias: &alias 9
"""


@pytest.mark.parametrize(
    "options",
    [
        "{a: !ref <n>, b: !ref <f>, c: !ref <s>, d: !ref <quoted>, e: !ref <t>, f: !ref <none>, g: !ref <list>}",
        "{a: !ref <n> * 2, b: !ref <n> / 2, c: !ref <n> // 2 - 1, d: !ref 20 - <n> % 7, e: !ref <f> + <n> * 3}",
        "{a: !ref <s>/x, b: !ref <s>_<n>, c: !ref <quoted> * 2, d: !ref <s> * 2, e: !ref '-<n> * 2'}",
        "{a: !ref '<tree[a][b]>', b: !ref '<tree[a]>', c: !copy <list>, d: !copy '<tree[a]>'}",
        "{a: <n>, b: !ref plain, c: '!ref <n>'}",
        "{a: [!ref <n>, {b: !ref <f>}], b: {c: {d: !ref <s>}}}",
        "{a: *base, b: *alias, c: [*alias, *alias]}",
        "{<<: *base, q: 2}",
        "{b: 3, <<: [*other, *base]}",
        "{a: !ref <merged>}",
        "{a: 1e-6, b: 1e4, c: 0x10, d: 0o17, e: 1_000, f: .inf, g: yes, h: Off, i: ~, j: 1:30, k: +5, l: -0.0, m: }",
        "{a: '5', b: !!str 5, c: !!int '5', d: !!float 5, e: 'two\n  lines'}",
        "{a: !ref <later>, b: !ref '<later> + 1'}",
        "{<<: *referring, b: 1}",
        "{a: !ref '<merged[p]>', b: !ref '<merged[u]>'}",
    ],
)
def test_options_are_what_hyperpyyaml_gives(options: str) -> None:
    text = document(options + "\n", SHARED, "later: 6\n")
    assert config(text).instance("llm.e").options == by_hyperpyyaml(text)["llm"]["e"]


@pytest.mark.parametrize(
    "text",
    [
        "enc: !new:a.Encoder {a: !ref <n>}\nllm: !new:a.Model {e: !ref <enc>}\n",
        "llm: !new:a.Model {e: !ref <enc>}\nenc: !new:a.Encoder {a: !ref <n>}\n",
        "enc: !new:a.Encoder {a: !ref <n>}\nllm: !new:a.Model {e: !copy <enc>}\n",
        "enc: &enc !new:a.Encoder {a: !ref <n>}\nllm: !new:a.Model {e: *enc}\n",
        "base: &base {e: !new:a.Encoder {a: !ref <n>}}\nllm: !new:a.Model {<<: *base}\n",
    ],
)
def test_a_component_may_stand_elsewhere(text: str) -> None:
    assert config("n: 5\n" + text).instance("llm.e") == Instance("a.Encoder", {"a": 5})


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is made whenever the module `planted`, which can be imported, is."""
    marker = tmp_path / "marker"
    (tmp_path / "planted.py").write_text(PLANTED.format(marker=str(marker)))
    (tmp_path / "included.yaml").write_text(INCLUDED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield marker
    sys.modules.pop("planted", None)


def assert_inert(text: str, marker: Path) -> None:
    before = set(sys.modules)
    with contextlib.suppress(ConfigError):
        config(text).class_of("llm.e")
    with contextlib.suppress(ConfigError):
        assert "secret" not in str(config(text).instance("llm.e").options)
    assert not marker.exists()
    assert "planted" not in set(sys.modules) - before


@pytest.mark.parametrize("node", RUNNING.values(), ids=RUNNING)
def test_nodes_that_are_tried_run_under_hyperpyyaml(node: str, marker: Path) -> None:
    load_hyperpyyaml(f"x: {node}")
    assert marker.exists()


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("node", RUNNING.values(), ids=RUNNING)
def test_nothing_runs(node: str, place: str, marker: Path) -> None:
    assert_inert(place.replace("NODE", node), marker)


@pytest.mark.parametrize("text", REDEFINED.values(), ids=REDEFINED)
def test_nothing_runs_by_a_redefined_tag(text: str, marker: Path) -> None:
    assert_inert(text, marker)


def test_a_redefined_tag_means_what_it_is_redefined_to() -> None:
    text = "%TAG !x! !new:\n%TAG !r! !re\n---\nn: 5\nllm: !x!a.Model\n  e: !x!a.Encoder {o: !r!f <n>}\n"
    assert config(text).instance("llm.e") == Instance("a.Encoder", {"o": 5})


def test_no_command_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    command = f'!apply:os.system ["touch {marker}"]'
    text = document(f"o: {command}\np: !ref <x>\n", f"x: {command}\n__y: {command}\n")
    assert config(text).instance("llm.e").options == {"o": "!apply:os.system", "p": "!apply:os.system"}
    assert not marker.exists()
    load_hyperpyyaml(text.replace("!new:a.Model", "").replace("!new:a.Encoder", ""))
    assert marker.exists()


@pytest.mark.parametrize("place", ["option", "referred to", "copied", "aliased"])
@pytest.mark.parametrize("node", sorted(set(RUNNING.values()) - {RUNNING["new"]}))
def test_what_would_run_appears_as_its_tag(node: str, place: str) -> None:
    found = config(PLACES[place].replace("NODE", node)).instance("llm.e").options["o"]
    tag = node.partition(" ")[0].removeprefix("!!")
    assert found == ([tag] if place == "option" else tag)


def test_an_inner_instance_keeps_its_options() -> None:
    text = document("o: !new:b.Inner {p: !ref <n>, q: !apply:f []}\n", "n: 5\n")
    options = config(text).instance("llm.e").options
    assert options == {"o": Instance("b.Inner", {"p": 5, "q": "!apply:f"})}
    assert str(options["o"]) == "!new:b.Inner"


BROKEN: Final = {
    "unknown tag": "x: !unknown {y: 1}\n",
    "dangling reference": "x: !ref <nothing>\n",
    "circular reference": "x: !ref <x>\ny: !ref a<z>\nz: !ref b<y>\n",
    "placeholder": "x: !PLACEHOLDER\n",
    "duplicate key": "x: {y: 1, y: 2}\nz: 1\nz: 2\n",
    "missing include": "x: !include:missing.yaml\n",
    "bad number": "x: !!int abc\n",
    "unhashable key": "x: {? [1, 2] : 3}\n",
    "division by zero": "x: !ref <n> / 0\n",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_elsewhere_does_not_matter(broken: str) -> None:
    found = config(document("a: !ref <n>\n", "n: 5\n" + broken)).instance("llm.e")
    assert found == Instance("a.Encoder", {"a": 5})


@pytest.mark.parametrize(
    "options",
    [
        "{a: !ref <nothing>}",
        "{a: !ref '<tree[nothing]>'}",
        "{a: !ref <dangling>}",
        "{a: !ref '<llm[e][a]>'}",
        "{a: !ref '<llm[e][a]> + 1'}",
        "{a: !ref <x>}",
        "{a: !ref <p>}",
        "{a: 1, a: 2}",
        "{a: !ref <twice>}",
        "{a: !!int abc}",
        "{a: !ref <n> / 0}",
        "{a: !ref <n.attribute>}",
        "{a: !ref '<through[q]>'}",
        "{a: 1, <<: 5}",
        "{a: 1, <<: [*tree, text]}",
        "{a: 1, <<: !ref <tree>}",
        "{a: 1, b: &b {<<: *b}}",
        "{a: !ref 9 ** <n>}",
    ],
)
def test_what_is_broken_inside_is_an_error(options: str) -> None:
    broken = config(
        document(
            options + "\n",
            """
            n: 5
            tree: &tree {q: 1}
            through: !ref <tree>
            dangling: !ref <nothing>
            x: !ref <y>
            y: !ref <x>
            p: !ref a<q>
            q: !ref b<p>
            twice: {b: 1, b: 2}
            """,
        )
    )
    with pytest.raises(ConfigError) as error:
        broken.instance("llm.e")
    assert_error(error, WHERE, "llm.e", "correct the node")


def test_aliases_that_stand_for_more_and_more_are_refused() -> None:
    levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 12)]
    exploding = config("\n".join(["l0: &l0 1", *levels, "llm: !new:a.Model", "  e: !new:a.Encoder {a: *l11}", ""]))
    with pytest.raises(ConfigError) as error:
        exploding.instance("llm.e")
    assert_error(error, WHERE, "llm.e", "more than 100,000 characters")


IN_BOUNDS: Final = """
import json, os, resource, sys
from cosyjit.configuration.config import Config
from cosyjit.errors import ConfigError
from tests.support.gadgets import BOMBS

def outcome(text):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    try:
        found = Config(text, "where")
        return "it comes to " + str(found.instance("llm.e").options)
    except ConfigError as error:
        return str(error)

for name, text in BOMBS.items():
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, outcome(text).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        print(json.dumps([name, pipe.read()]), flush=True)
"""
"""Reads each in a process of its own, which may take 30 s of a processor and 1 GB."""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What each bomb came to; nothing for those that went beyond their bounds."""
    with start(IN_BOUNDS) as process:
        out, err = process.communicate()
    assert err == ""
    return dict(json.loads(line) for line in out.splitlines())


@pytest.mark.stress
@pytest.mark.parametrize("name", BOMBS)
def test_what_would_come_to_too_much_is_refused_or_left_alone(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name].startswith(("where: ", "it comes to {"))
    assert outcomes[name].isprintable()
    assert len(outcomes[name]) < 500


@pytest.mark.parametrize("options", ["{a: !ref <n><s>, b: !ref '<s>/<n>', c: !ref '<n>*2', d: !ref '(<n> + 1) * <f>'}"])
def test_bounds_leave_texts_and_arithmetic_as_they_are(options: str) -> None:
    text = document(options + "\n", SHARED)
    assert config(text).instance("llm.e").options == by_hyperpyyaml(text)["llm"]["e"]


def test_what_a_message_quotes_is_cut() -> None:
    broken = config(document("{a: !ref <x>}\n", f"x: {{{'x' * 900}: 2, {'x' * 900}: 1}}\n"))
    with pytest.raises(ConfigError) as error:
        broken.instance("llm.e")
    assert_error(error, WHERE, "llm.e", "the key xxx", "…")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["a\u202eb", "a'b", "%1b[31m", "", "1a", "a/b"])
def test_what_names_no_class_is_an_error(name: str) -> None:
    for text in (f"llm: !<!new:{name}> {{}}\n", f"llm: !new:{name} {{}}\n"):
        with pytest.raises(ConfigError) as error:
            config(text).class_of("llm")
        assert_error(error, WHERE, "restore the published file")
        assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["llm.e", "flow.e", "llm.m.e", "llm.a", "llm.b", "llm.c", "llm.d", "x"])
def test_what_is_no_new_node_is_an_error(name: str) -> None:
    found = config("x: !ref <llm>\nllm: !new:a.Model {a: 1, b: {n: 2}, c: [3], d: !apply:f [4], m: 5}\nflow: 1\n")
    for read in (found.instance, found.class_of) if name != "x" else (found.class_of,):
        with pytest.raises(ConfigError) as error:
            read(name)
        assert_error(error, WHERE, name)


UNREADABLE: Final = {
    "comments": b"\n# nothing\n",
    "list": b"- 1\n- 2\n",
    "scalar": b"text",
    "number": b"5",
    "two documents": b"a: 1\n---\nb: 2\n",
    "unclosed": b"a: [1, 2\n",
    "two colons": b"a: b: c\n",
    "unknown alias": b"a: *unknown\n",
    "tab": b"\tllm: 1\n",
    "control characters": b"\x00\x01\x02",
    "every byte": bytes(range(256)),
    "Latin-1": "llm: \u00e9".encode("latin-1"),
    "UTF-16": "llm: 1".encode("utf-16"),
    "UTF-16 without a mark": "llm: 1".encode("utf-16-le"),
    "UTF-32": "llm: 1".encode("utf-32-be"),
    "GBK": "# 模型\nllm: 1".encode("gbk"),
    "too deep": b"[" * 400,
    "other version": b"%YAML 3.0\n---\nllm: 1\n",
    "version that is none": b"%YAML 1.3\n---\nllm: 1\n",
    "version in which 010 is 8": b"%YAML 1.1\n---\nllm: 010\n",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_is_no_mapping_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cosyvoice.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        Config.read(path)
    assert_error(error, path, "restore the published file")


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("utf-16", "is not UTF-8 text but UTF-16"), ("utf-16-be", "is not UTF-8 text but"), ("gbk", "(byte 0xd0 at 4)")],
)
def test_another_encoding_is_named_with_the_way_out(encoding: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "cosyvoice.yaml"
    path.write_bytes("# 模型\nllm: 1\n".encode(encoding))
    with pytest.raises(ConfigError) as error:
        Config.read(path)
    assert_error(error, path, says, "save it as UTF-8")


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: f"---\n{text}...\n",
        lambda text: f"%YAML 1.2\n---\n{text}",
        lambda text: f"{text}released: 2024-01-01\ns: !!set {{x, y}}\nt: !!python/tuple [1]\nu: !!omap [{{a: 1}}]\n",
    ],
    ids=["mark", "Windows", "Windows with a mark", "old Mac", "marked document", "version", "other types elsewhere"],
)
def test_forms_that_editors_leave_say_the_same(edit: Callable[[str], str], tmp_path: Path) -> None:
    text = document("{a: !ref <n>, b: 1e3, c: yes, d: 010, e: 1_000, f: 0x10}\n", "n: 5\n")
    path = tmp_path / "cosyvoice.yaml"
    path.write_bytes(edit(text).encode())
    expected = by_hyperpyyaml(text)["llm"]["e"]
    assert Config.read(path).instance("llm.e").options == expected
    assert expected == {"a": 5, "b": 1000.0, "c": "yes", "d": 10, "e": 1000, "f": 16}


KINDS: Final = {
    "2024-01-01": "a date (2024-01-01)",
    "2024-01-01T10:00:00Z": "a date (2024-01-01T10:00:00Z)",
    "!!timestamp '<n>'": "a date",
    "!!set {x, y}": "a set",
    "!!omap [{a: 1}]": "an ordered mapping",
    "!!pairs [{a: 1}]": "a list of pairs",
    "!!binary aGVsbG8=": "binary data",
    "!!python/tuple [1, 2]": "a tuple",
    "!tuple '(1, 2)'": "a tuple",
}


@pytest.mark.parametrize("place", ["{a: NODE }", "{a: !ref <x>}", "{a: !copy <x>}", "{a: *x}"])
@pytest.mark.parametrize("node", KINDS)
def test_a_value_that_is_no_plain_data_is_named(node: str, place: str) -> None:
    text = document(f"{place.replace('NODE', node)}\n", f"x: &x {node}\nn: 5\n")
    assert config(text).instance("llm.e").options == {"a": KINDS[node]}


TWICE: Final = {
    "option": (document("{a: 1, b: 2, a: 3}\n"), "a"),
    "in a list": (document("{a: [{b: 1, b: 2}]}\n"), "b"),
    "component": (document("{a: 1}\n") + "  e: !new:a.Encoder {a: 2}\n", "e"),
    "model": (document("{a: 1}\n", after=document("{a: 2}\n")), "llm"),
    "on the way of a reference": (document("{a: !ref '<x[y]>'}\n", "x: {y: 1, y: 2}\n"), "y"),
    "merge": (document("<<: *x\n<<: *y\n", "x: &x {a: 1}\ny: &y {b: 1}\n"), "<<"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_key_that_occurs_twice_is_named(name: str) -> None:
    text, key = TWICE[name]
    with pytest.raises(ConfigError) as error:
        config(text).instance("llm.e")
    assert_error(error, WHERE, "llm.e", f"the key {key} occurs twice in one mapping", "correct the node")


def test_of_two_language_models_neither_is_taken() -> None:
    for ask in (Config.class_of, Config.has):
        with pytest.raises(ConfigError) as error:
            ask(config("llm: !new:a.Model {}\nllm: !new:b.Model {}\n"), "llm")
        assert_error(error, WHERE, "the key llm occurs twice in one mapping")


def test_a_value_that_is_not_what_its_tag_says_is_an_error_of_the_node() -> None:
    with pytest.raises(ConfigError) as error:
        config(document("{a: !!int abc}\n")).instance("llm.e")
    assert_error(error, WHERE, "llm.e cannot be resolved (a key or a value in it is invalid); correct the node")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 17))
    os.mkfifo(tmp_path / "pipe.yaml")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.yaml"))
    (tmp_path / "link.yaml").symlink_to("/dev/zero")
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    names = ("missing", "large", "pipe", "socket", "link", "circle")
    for path in (*(tmp_path / f"{name}.yaml" for name in names), tmp_path, Path("x" * 300)):
        with pytest.raises(ConfigError) as error:
            Config.read(path)
        assert_error(error, path, "restore the published file")


# HyperPyYAML rounds a number in its 16th digit.
NUMBERS: Final = st.integers() | st.integers(-(10**6), 10**6).map(lambda n: n / 1000) | st.sampled_from([1e-6, 2.5e20])
# Of U+0085, a line break in YAML 1.1, HyperPyYAML makes a space, in the runtime as here.
CHARACTERS: Final = st.characters(exclude_categories=["Cs"], exclude_characters="\x85")
SCALARS: Final = st.none() | st.booleans() | NUMBERS | st.text(CHARACTERS)
OPTIONS: Final = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), SCALARS, max_size=6)


def dumped(mapping: dict[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(mapping, stream)
    return stream.getvalue()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(OPTIONS)
def test_options_survive_whatever_their_order_comments_and_indentation(options: dict[str, Any]) -> None:
    lines = [dumped({name: value}) for name, value in options.items()]
    texts = ["".join(lines), "# note\n".join(["", *reversed(lines)]), textwrap.indent("\n".join(lines), "  ")]
    for text in texts:
        found = config(document(text or "{}\n")).instance("llm.e").options
        assert found == options
        assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in options.items()}
