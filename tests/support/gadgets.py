"""What would run code if it were loaded as its makers load it."""

import marshal
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.support.hostile_weights import call, dictionary, named, pickled, text

RUNNING: Final = {
    "apply": "!apply:planted.function []",
    "apply with keywords": "!apply:planted.function {a: 1}",
    "applyref": "!applyref:planted.function []",
    "applyref of a scalar": "!applyref:planted.function ''",
    "new": "!new:planted.Class {}",
    "name": "!name:planted.function",
    "module": "!module:planted",
    "include": "!include:included.yaml",
    "python apply": "!!python/object/apply:planted.function []",
    "python new": "!!python/object/new:planted.Class {}",
    "python name": "!!python/name:planted.function",
    "python module": "!!python/module:planted",
}
"""Nodes for which HyperPyYAML imports the module `planted`."""

PLACES: Final = {
    "option": "llm: !new:a.Model\n  e: !new:a.Encoder {o: [NODE ]}\n",
    "referred to": "x: NODE\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !ref <x>}\n",
    "copied": "llm: !new:a.Model\n  e: !new:a.Encoder {o: !copy <x>}\nx: NODE\n",
    "interpolated": "llm: !new:a.Model\n  e: !new:a.Encoder {o: !ref a<x>}\nx: NODE\n",
    "aliased": "x: &x NODE\nllm: !new:a.Model\n  e: !new:a.Encoder {o: *x}\n",
    "merged": "x: &x {o: NODE }\nllm: !new:a.Model\n  e: !new:a.Encoder {<<: *x}\n",
    "sibling": "llm: !new:a.Model\n  o: NODE\n  e: !new:a.Encoder {o: 1}\n",
    "elsewhere": "x: {y: [NODE ]}\nllm: !new:a.Model\n  e: !new:a.Encoder {o: 1}\n",
    "key": "llm: !new:a.Model\n  e: !new:a.Encoder {? NODE : 1}\n",
    "key elsewhere": "? NODE\n: 1\nllm: !new:a.Model\n  e: !new:a.Encoder {o: 1}\n",
    "parent": "x: {o: NODE }\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !ref '<x[o]>', p: !ref <x>}\n",
}
"""Configurations with a component `llm.e`, in which one of these nodes takes the place of NODE."""

REDEFINED: Final = {
    "applyref option": (
        "%TAG ! !new:\n---\nllm: !a.Model\n  e: !<!new:a.Encoder> {o: !applyref:planted.function []}\n"
    ),
    "applyref component": "%TAG ! !new:\n---\nllm: !a.Model\n  e: !applyref:planted.function {a: 1}\n",
    "include": "%TAG ! !new:\n---\nllm: !a.Model\n  e: !include:included.yaml {}\n",
    "applyref by handle": (
        "%TAG !x! !applyref:\n---\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !x!planted.function []}\n"
    ),
    "applyref by core handle": (
        "%TAG !! !applyref:\n---\nllm: !new:a.Model\n  e: !new:a.Encoder {o: !!planted.function []}\n"
    ),
}
"""Documents whose %TAG directives give tags other meanings than they show."""

INCLUDED: Final = "secret: !applyref:planted.function []\n"
"""What `included.yaml` says."""

_BOMB: Final = "llm: !new:a.Model\n  e: !new:a.Encoder {o: !ref <z>}\n"
_INLINE: Final = "llm: !new:a.Model\n  e: !new:a.Encoder\n"


def _chain(first: str, step: str, steps: int) -> str:
    """Nodes a0, a1, ..., each after the first made of the one before, AA in the step, and z that refers to the last."""
    lines = [f"a{number}: {step.replace('AA', f'a{number - 1}')}\n" for number in range(1, steps)]
    return f"{_BOMB}a0: {first}\n{''.join(lines)}z: !ref <a{steps - 1}>\n"


def _aliases(first: str, step: str, steps: int, last: str) -> str:
    """As `_chain`, with anchors and aliases; LAST in the last line is the last of them."""
    lines = [f"a{number}: &a{number} {step.replace('AA', f'*a{number - 1}')}\n" for number in range(1, steps)]
    return f"a0: &a0 {first}\n{''.join(lines)}{_INLINE}{last.replace('LAST', f'*a{steps - 1}')}\n"


BOMBS: Final = {
    "texts that double": _chain("xxxxxxxxxxxxxxxx", "!ref <AA><AA>", 21),
    "texts that double behind each other": (
        _BOMB + "z: !ref <b0>\n" + "".join(f"b{n}: !ref <b{n + 1}><b{n + 1}>x\n" for n in range(25)) + "b25: x\n"
    ),
    "products of numbers": _chain("99999999", "!ref <AA> * <AA>", 24),
    "products of floats": _chain("1e9", "!ref <AA> * <AA>", 24),
    "a text times a number": _BOMB + "q: 1\nz: !ref <q> * 'a' * 9999999999\n",
    "a number times a text": _BOMB + "q: 9999999999\nz: !ref <q> * 'a'\n",
    "a text that quotes times a number": _BOMB + "q: \"'a'\"\nz: !ref <q> * 9999999999\n",
    "quotes that are escaped": _BOMB + "q: \"'\\\\x27a\\\\x27'\"\nr: !ref ' <q>'\nz: !ref <r> * 9999999999\n",
    "bytes times a number": _BOMB + "q: b\nz: !ref <q>'a' * 9999999999\n",
    "a wide format": _BOMB + "q: 5\nz: !ref \"'%9999999999d' % <q>\"\n",
    "a power": _BOMB + "q: 9\nz: !ref 9 ** <q> ** 9 ** 9\n",
    "a power in two parts": _BOMB + "q: '* 9999999999'\nz: !ref 9 *<q>\n",
    "a power around nothing": _BOMB + "q: ''\nz: !ref 9 *<q>* 9999999999\n",
    "lists in texts that double": _chain("[x, x]", "!ref <AA><AA>", 26),
    "texts that refer to each other": _BOMB + "z: !ref <s>x\ns: '<t><t>'\nt: '<s><s>'\n",
    "references in a circle": _BOMB + "z: !ref a<y><y>\ny: !ref b<z><z>\n",
    "references that are put together": _BOMB + "z: !ref <l>z><l>z>x\nl: '<'\n",
    "doubling through a reference": (
        "x: !ref <tree>\ntree:\n  a0: x\n"
        + "".join(f"  a{n}: !ref '<x[a{n - 1}]><x[a{n - 1}]>'\n" for n in range(1, 26))
        + _INLINE
        + "    o: !ref <x>\n    p: !ref '<x[a25]>'\n"
    ),
    "aliases that double": _aliases("[x, x]", "[AA, AA]", 26, "    o: LAST"),
    "aliases in mappings that double": _aliases("{b: x, c: x}", "{b: AA, c: AA}", 26, "    o: LAST"),
    "aliases that double in a reference": _aliases("[x, x]", "[AA, AA]", 26, "    o: !ref <a25>\n    p: !copy <a25>"),
    "aliases that double in a text": _aliases("[x, x]", "[AA, AA]", 26, "    o: !ref x<a25>"),
    "merges that double": _aliases("{b: x}", "{<<: [AA, AA], c: x}", 26, "    <<: LAST"),
    "merges of many by many": (
        "a0: &a0 {"
        + ", ".join(f"k{n}: 1" for n in range(900))
        + "}\n"
        + _INLINE
        + "    o: ["
        + ", ".join(["{<<: *a0}"] * 3000)
        + "]\n"
    ),
    "what contains itself": f"a: &a [*a, *a]\n{_INLINE}    o: *a\n",
    "a mapping that contains itself": f"a: &a {{b: *a, c: *a}}\n{_INLINE}    o: !ref x<a>\n",
    "what merges itself": f"a: &a {{<<: [*a, *a]}}\n{_INLINE}    <<: *a\n",
    "deep brackets": _INLINE + "    o: " + "[" * 30_000 + "]" * 30_000 + "\n",
    "deep brackets elsewhere": "x: " + "[" * 30_000 + "]" * 30_000 + "\n" + _BOMB + "z: 1\n",
    "many brackets beside each other": "x: " + "[" * 15 + "[]," * 20_000 + "]" * 15 + "\n" + _BOMB + "z: 1\n",
    "deep mappings": _INLINE + "    o: " + "{a: " * 15_000 + "1" + "}" * 5_000 + "\n",
    "deep lists": _INLINE + "    o:\n      " + "- " * 30_000 + "1\n",
    "deep keys": _INLINE + "    o:\n      " + "? " * 30_000 + "1\n",
    "deep indentation": _INLINE + "".join(f"{' ' * (4 + n)}a:\n" for n in range(350)),
    "a long text": _INLINE + "    o: " + "x " * 32_000 + "\n",
    "a large file": _INLINE + "    o: " + "x " * 10_000_000 + "\n",
    "a long number": _INLINE + "    o: " + "9" * 65_000 + "\n",
    "a long hexadecimal number": _INLINE + "    o: 0x" + "F" * 65_000 + "\n",
    "a long number in arithmetic": f"{_BOMB}q: {'9' * 4_000}\nz: !ref <q> * <q>\n",
    "a long number of sixtieths": f"%YAML 1.1\n---\n{_INLINE}    o: {'59:' * 21_000}59\n",
    "a long time": f"{_INLINE}    o: 2001-01-01 00:00:00.{'0' * 65_000}\n",
    "many references": f"q: 1\n{_INLINE}    o: [{', '.join(['!ref <q>'] * 6_000)}]\n",
    "many nodes that are referred to": (
        "".join(f"q{n}: 1\n" for n in range(2_000))
        + _INLINE
        + "    o: ["
        + ", ".join(f"!ref <q{n}>" for n in range(2_000))
        + "]\n"
    ),
    "many references in a text": f"{_BOMB}q: 1\nz: !ref {'<q>' * 20_000}\n",
    "references that do not end": f"{_BOMB}q: 1\nz: !ref <q>{'<' * 60_000}\n",
    "many keys": _INLINE + "".join(f"    k{n}: 1\n" for n in range(5_000)),
    "many equal keys": _INLINE + "    k: 1\n" * 5_000,
    "a long sum": f"{_BOMB}q: 1\nz: !ref <q>{' + 1' * 15_000}\n",
    "deep parentheses": f"{_BOMB}q: 1\nz: !ref {'(' * 30_000}<q>{')' * 30_000}\n",
    "many signs": f"{_BOMB}q: 1\nz: !ref {'-' * 60_000}<q>\n",
    "many comments": "#\n" * 30_000 + _BOMB + "z: 1\n",
    "many lines in a text": _INLINE + "    o: >\n" + "\n" * 60_000 + "      x\n",
    "many anchors": "".join(f"a{n}: &b{n} 1\n" for n in range(4_000)) + _BOMB + "z: 1\n",
    "many directives": "%TAG !a! !b\n" * 5_000 + "---\n" + _BOMB + "z: 1\n",
    "a long tag": "llm: !new:" + "a" * 60_000 + " {}\n",
    "a long name of a class": f"llm: !new:a.Model\n  e: !new:{'a' * 60_000} {{}}\n",
}
"""Configurations with a component `llm.e` that would come to more than any machine holds, or keep it busy for long."""

PLANTED: Final = """
from pathlib import Path

Path({marker!r}).touch()

def function(*_, **__):
    return 1

class Class:
    pass
"""
"""The module `planted`: importing it makes a file."""


class Marking:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker


class Command(Marking):
    """Does it by a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Custom(Marking):
    """Does it by a function of the pickle's maker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return touch, (self.marker,)


class Restored(Marking):
    """Does it as its state is restored."""

    def __setstate__(self, state: dict[str, str]) -> None:
        touch(state["marker"])


class Touching:
    """Does it when it is made."""

    def __init__(self, marker: str) -> None:
        touch(marker)


class New(str):
    """Does it when it is made, before it is initialized."""

    __slots__ = ()

    def __new__(cls, marker: str) -> "New":  # noqa: PYI034  (typing has no Self in Python 3.10)
        return super().__new__(cls, touch(marker))


def touch(marker: str) -> str:
    """Make a file."""
    Path(marker).touch()
    return marker


PICKLED: Final = (Command, Custom, Restored)


def _touch(marker: str) -> bytes:
    return text(f"touch {marker}")


def _statement(marker: str) -> bytes:
    return text(f"__import__('os').system('touch {marker}')")


def _data(content: bytes) -> bytes:
    return call(named("_codecs", "encode"), text(content.decode("latin-1")), text("latin-1"))


def _system(marker: str) -> bytes:
    return call(named("os", "system"), _touch(marker))


def _attribute(thing: bytes, name: str) -> bytes:
    return call(named("builtins", "getattr"), thing, text(name))


def _function(marker: str) -> bytes:
    code = marshal.dumps(compile(f"import os\nos.system('touch {marker}')", "gadget", "exec"))
    return call(named("types", "FunctionType"), call(named("marshal", "loads"), _data(code)), b"}")


_OS: Final = call(named("importlib", "import_module"), text("os"))
_RESTORED: Final = named("tests.support.gadgets", "Restored")
_LIST: Final = named("builtins", "list")

INSTRUCTED: Final[Mapping[str, Callable[[str], bytes]]] = {
    "os.system": _system,
    "posix.system": lambda marker: call(named("posix", "system"), _touch(marker)),
    "subprocess.call": lambda marker: call(named("subprocess", "call"), b"](" + text("touch") + text(marker) + b"e"),
    "subprocess.getoutput": lambda marker: call(named("subprocess", "getoutput"), _touch(marker)),
    "eval": lambda marker: call(named("builtins", "eval"), _statement(marker)),
    "exec": lambda marker: call(named("builtins", "exec"), _statement(marker)),
    "__import__ and getattr": lambda marker: call(
        _attribute(call(named("builtins", "__import__"), text("os")), "system"), _touch(marker)
    ),
    "attrgetter": lambda marker: call(call(call(named("operator", "attrgetter"), text("system")), _OS), _touch(marker)),
    "methodcaller": lambda marker: call(call(named("operator", "methodcaller"), text("system"), _touch(marker)), _OS),
    "partial": lambda marker: call(call(named("functools", "partial"), named("os", "system"), _touch(marker))),
    "map": lambda marker: call(
        _LIST, call(named("builtins", "map"), named("os", "system"), b"]" + _touch(marker) + b"a")
    ),
    "FunctionType of marshal's code": lambda marker: call(_function(marker)),
    "InteractiveInterpreter": lambda marker: call(
        _attribute(call(named("code", "InteractiveInterpreter")), "runsource"), _statement(marker)
    ),
    "Bdb": lambda marker: call(_attribute(call(named("bdb", "Bdb")), "run"), _statement(marker)),
    "timeit": lambda marker: call(named("timeit", "timeit"), text("0"), _statement(marker)),
    "CDLL": lambda marker: call(
        _attribute(call(named("ctypes", "CDLL"), b"N"), "system"), _data(f"touch {marker}".encode())
    ),
    "a pickle in the pickle": lambda marker: call(named("pickle", "loads"), _data(pickled(_system(marker)))),
    "a pickle for torch": lambda marker: call(
        named("torch.storage", "_load_from_bytes"), _data(pickled(_system(marker)))
    ),
    "a dotted name": lambda marker: (
        call(named("os", "sys.modules.copy")) + b"0" + call(named("subprocess", "os.system"), _touch(marker))
    ),
    "a state": lambda marker: _RESTORED + b")\x81" + dictionary({"marker": text(marker)}) + b"b",
    "a state by copyreg": lambda marker: (
        call(named("copyreg", "_reconstructor"), _RESTORED, named("builtins", "object"), b"N")
        + dictionary({"marker": text(marker)})
        + b"b"
    ),
    "INST": lambda marker: b"(" + text(marker) + b"itests.support.gadgets\nTouching\n",
    "OBJ": lambda marker: b"(" + named("tests.support.gadgets", "Touching") + text(marker) + b"o",
    "NEWOBJ": lambda marker: named("tests.support.gadgets", "New") + text(marker) + b"\x85\x81",
    "NEWOBJ_EX": lambda marker: named("tests.support.gadgets", "New") + text(marker) + b"\x85}\x92",
    "EXT1": lambda marker: (
        call(named("copyreg", "add_extension"), text("os"), text("system"), b"K\xf0")
        + b"0"
        + call(b"\x82\xf0", _touch(marker))
    ),
    "STACK_GLOBAL": lambda marker: call(text("os") + text("system") + b"\x93", _touch(marker)),
    "popped": lambda marker: b"N" + _system(marker) + b"0",
    "in a list": lambda marker: b"]" + _system(marker) + b"a",
}
"""The instructions that put a value on a pickle's stack, and make the file that they are given on the way."""

NAMED: Final = (
    "__builtin__.eval",
    "os.popen",
    "os.execv",
    "nt.system",
    "pty.spawn",
    "subprocess.Popen",
    "runpy.run_path",
    "runpy._run_code",
    "webbrowser.open",
    "importlib.import_module",
    "imp.load_source",
    "pkgutil.get_data",
    "types.CodeType",
    "code.interact",
    "pdb.run",
    "profile.run",
    "trace.Trace.runctx",
    "builtins.getattr",
    "builtins.open",
    "builtins.compile",
    "operator.itemgetter",
    "functools.reduce",
    "copyreg.__newobj__",
    "ctypes.CDLL",
    "socket.create_connection",
    "shutil.rmtree",
    "pip.main",
    "cloudpickle.loads",
    "joblib.load",
    "dill.loads",
    "numpy.load",
    "numpy.testing._private.utils.runstring",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.serialization.load",
    "torch.serialization.add_safe_globals",
    "torch._utils._import_dotted_name",
    "torch._utils._rebuild_tensor_v2.__globals__",
    "torch.storage._load_from_bytes",
    "torch.jit.unsupported_tensor_ops.execWrapper",
    "torch.utils.bottleneck.__main__.run_autograd_prof",
    "torch.fx._symbolic_trace.exec",
    "collections.OrderedDict.update",
    "collections.namedtuple",
    "o\u0455.system",
    "\u1d52s.system",
    "torch\u200b.FloatStorage",
    "torch.FloatStorage ",
    " torch.FloatStorage",
    "torch.float32\r",
    "\x1b[2Jos.system",
    "__main__." + "x" * 100_000,
)
"""What pickles name to run code, or to be taken for another name."""
