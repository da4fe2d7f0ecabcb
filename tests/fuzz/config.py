"""Configurations: YAML with tags, anchors, references and arithmetic, whose tags would run something."""

import contextlib
import random
from typing import Final

from cosyjit.configuration import config, yaml_nodes
from cosyjit.configuration.config import Config
from cosyjit.errors import ConfigError
from cosyjit.families import family_by_components, family_of
from cosyjit.provenance.fingerprint import canonical, plain

_HEAD: Final = "llm: !new:cosyvoice.llm.llm.Qwen2LM {}\nflow: !new:a.B\n  encoder: !new:a.Encoder\n"
SEEDS: Final = [
    f"n: 5\n{_HEAD}    a: !ref <n> * 2\n    b: [1, 0.5, x]\n".encode(),
    f"s: &s {{p: 1, q: !ref <n>}}\nn: 5\n{_HEAD}    <<: *s\n    c: !ref '<s[p]> + <n>'\n".encode(),
    f"x: !apply:os.system [touch x]\n{_HEAD}    o: !ref <x>\n    l: !ref x<n>\nn: abc\n".encode(),
    b"flow: !new:a.B\n  encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder {a: 2024-01-01, b: !!set {x}}\n",
    b"%YAML 1.3\n---\nllm: !new:cosyvoice.llm.llm.Qwen2LM {}\n",
]
_LARGEST: Final = 600
"""In bytes: each of them takes some microseconds."""

_PIECES: Final = (
    *(
        "!ref ",
        "!copy ",
        "!new:a.B ",
        "!apply:os.system ",
        "!name:os.system ",
        "!module:os ",
        "!include:a.yaml ",
        "!!int ",
    ),
    *(
        "!!python/object/apply:os.system ",
        "!!python/name:os.system ",
        "!applyref:os.system ",
        "!tuple ",
        "!PLACEHOLDER ",
    ),
    *(
        "!!str ",
        "!!float ",
        "!!binary ",
        "!!timestamp ",
        "!!set ",
        "!!omap ",
        "%YAML 1.1\n---\n",
        "%TAG ! !new:\n---\n",
    ),
    *(
        "<n>",
        "<s>",
        "<s[p]>",
        "<x>",
        "<flow>",
        "<flow[encoder]>",
        "<flow[encoder][a]>",
        "<n.real>",
        "<",
        ">",
        "<<: *s",
        "<>",
    ),
    *(
        " * ",
        "**",
        " ** 99999",
        " + ",
        " - ",
        " / 0",
        " // ",
        " % ",
        "'",
        '"',
        "'a' * 99999999",
        "'%99999999d' % 5",
        "(",
        ")",
    ),
    *(
        "&s ",
        "*s",
        "&t [*t]",
        "[",
        "]",
        "{",
        "}",
        ", ",
        ": ",
        "- ",
        "? ",
        "|\n",
        ">\n",
        "#",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "...",
    ),
    *(
        "0x" + "F" * 99,
        "9" * 99,
        "1e999",
        ".nan",
        "-.inf",
        "1:30:30",
        "2001-01-01",
        "0o17",
        "0b1",
        "1_0",
        "~",
        "yes",
        "null",
    ),
    *("\x85", "\u2028", "\u202e", "\x1b[31m", "\ufeff", "\0", "\u0661", "a" * 300, "<n>" * 50, "[" * 30, "- " * 50),
)


def read(content: bytes) -> None:
    yaml_nodes.compose.cache_clear()
    config._resolved.cache_clear()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    found = Config(text, "cosyvoice.yaml")
    with contextlib.suppress(ConfigError):
        if found.has("llm"):
            family_of(found.class_of("llm"), "cosyvoice.yaml")
        else:
            family_by_components({"flow.encoder": found.class_of("flow.encoder")}, "cosyvoice.yaml")
    found.class_of("flow.encoder")
    canonical(plain(found.instance("flow.encoder").options))


def mutate(content: bytes, size: int, seed: int) -> bytes:
    chance = random.Random(seed)  # noqa: S311  (the same each time)
    text = content.decode(errors="replace") or SEEDS[0].decode()
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        text = _change(text, chance)
    return text.encode(errors="replace")[: min(size, _LARGEST)]


def _change(text: str, chance: random.Random) -> str:
    """Puts a piece in, takes something out, or repeats a line or a part of one; mostly where a word begins or ends."""
    edges = [0, *(at for at in range(1, len(text)) if text[at].isalnum() != text[at - 1].isalnum()), len(text)]
    at, to = sorted(chance.choices(edges, k=2))
    lines = text.split("\n")
    line = chance.randrange(len(lines))
    changes = (
        lambda: text[:at] + chance.choice(_PIECES) + text[at:],
        lambda: text[:at] + chance.choice(_PIECES) + text[to:] if to - at < 40 else text[:at] + text[at + 1 :],
        lambda: text[:at] + text[to:] if to - at < 40 else text,
        lambda: "\n".join([*lines[: line + 1], *lines[line:]]),
        lambda: "\n".join([*lines[:line], *lines[line + 1 :]]),
        lambda: "\n".join([*lines[:line], chance.choice(_LINES), *lines[line:]]),
        lambda: text[:to] + text[at:to][:40] * chance.choice((1, 3, 30)) + text[to:],
    )
    return chance.choice(changes)()


_LINES: Final = (
    *(
        "n: !ref <s><s>",
        "s: !ref <n> * <n>",
        "s: &s [*s, *s]",
        "t: &t {<<: *s}",
        "s: &s {<<: [*s, *s]}",
        "n: !ref <x><x>",
    ),
    *(
        "x: '*'",
        "x: ''",
        "n: '<n>'",
        "    e: !ref 9 *<x>* 9",
        "    f: !ref '<x> * 999'",
        "    g: !ref <s>",
        "    h: *s",
    ),
    *(
        "    i: {j: {k: !ref <n>}}",
        "    ? [1, 2]\n    : 3",
        "    a: 1\n    a: 2",
        "n: &n 7",
        "    m: *n",
        "x: [1, [2, [3]]]",
    ),
)
