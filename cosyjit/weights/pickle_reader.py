"""A reader of the pickles that `torch.save` writes, for data alone.

It knows the instructions that Python's own writer uses in protocols 2 to 5, and calls only the functions that its
caller allows by name. The standard library has two readers: the one in C allocates 64 GB for a pickle of five bytes
that asks for it, and the one in Python takes several times as long as this one.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cosyjit.weights.formats import UnsupportedFormError, unlike_saved

Globals = Mapping[tuple[str, str], Any]
"""The objects that a pickle may name, by module and name."""

_KEYS: Final = {str, int, float, bool, type(None)}
"""The types of the keys that are read."""

_LARGEST_KEY: Final = 60
"""In bits. Any number of larger integers can share one hash, and a dictionary of them takes the square of their number
in time."""

MOST_ARGUMENTS: Final = 16
"""The most arguments of a call, which copies them. Functions that make tensors take less than ten."""

_PROTOCOLS: Final = range(2, 6)
_OLDER: Final = b"\x80}(cN]X)KMJUG\x88\x89\x8a\x8f"
"""The first bytes of pickles in other protocols, such as 0 and 1."""

_INT: Final = struct.Struct("<i").unpack_from
_SIZE: Final = struct.Struct("<I").unpack_from
_SHORT: Final = struct.Struct("<H").unpack_from
_FLOAT: Final = struct.Struct(">d").unpack_from

_LENGTHS: Final = {
    0x8D: struct.Struct("<Q"),  # BINUNICODE8
    0x54: struct.Struct("<I"),  # BINSTRING
    0x42: struct.Struct("<I"),  # BINBYTES
    0x8E: struct.Struct("<Q"),  # BINBYTES8
    0x96: struct.Struct("<Q"),  # BYTEARRAY8
    0x8B: struct.Struct("<I"),  # LONG4
}
"""The form of lengths that take more than a byte, by instruction."""


class Other(NamedTuple):
    """A value that is ignored, such as the count of epochs that training leaves.

    Attributes:
        kind: the name of its type. For a tensor whose numbers are not plain, it begins with "Tensor".
    """

    kind: str

    @property
    def is_tensor(self) -> bool:
        return self.kind.startswith("Tensor")


class ForbiddenError(Exception):
    """A pickle that names something other than data.

    Attributes:
        name: the full name.
        whole: whether the whole pickle is an object of that class.
    """

    def __init__(self, name: str, *, whole: bool = False) -> None:
        super().__init__(name)
        self.name, self.whole = name, whole


class Loaded(NamedTuple):
    """The object that a pickle describes, and the offset behind the pickle."""

    value: Any
    end: int


def loads(pickled: bytes, known: Globals, persistent: Callable[[Any], Any], at: int = 0) -> Loaded:
    """The object that a pickle describes.

    Dictionaries lose the entries whose keys are not strings, numbers or None. Sets and bytes are ignored. Apart from
    the callables, the time is in proportion to the pickle's size, and the memory at most a hundred times that size.

    Args:
        pickled: the pickle, and possibly others around it.
        known: what it may name. A callable is called with the arguments that the pickle gives.
        persistent: maps the identifiers of external objects to the objects.
        at: the offset at which the pickle begins.

    Raises:
        ForbiddenError: it names something that is not in `known`.
        UnsupportedFormError: it uses a protocol that torch does not use.
        ValueError, TypeError, AttributeError, LookupError, struct.error: it is damaged.
    """
    # One loop, frequent instructions first: a call for each instruction would take longer than the instruction.
    if pickled[at] != 0x80 or pickled[at + 1] not in _PROTOCOLS:
        if pickled[at] not in _OLDER:
            raise ValueError("it is not a pickle")
        raise UnsupportedFormError("has a pickle of another protocol than 2 to 5; load it, and save it again")
    at += 2
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    while (code := pickled[at]) != 0x2E:  # STOP
        at += 1
        if code == 0x71:  # BINPUT
            memo[pickled[at]] = stack[-1]
            at += 1
        elif code == 0x72:  # LONG_BINPUT
            memo[_SIZE(pickled, at)[0]] = stack[-1]
            at += 4
        elif code == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code == 0x68:  # BINGET
            stack.append(memo[pickled[at]])
            at += 1
        elif code == 0x4B:  # BININT1
            stack.append(pickled[at])
            at += 1
        elif code == 0x58:  # BINUNICODE
            end = at + 4 + _SIZE(pickled, at)[0]
            stack.append(pickled[at + 4 : end].decode("utf-8", "surrogatepass"))
            at = end
        elif code == 0x8C:  # SHORT_BINUNICODE
            end = at + 1 + pickled[at]
            stack.append(pickled[at + 1 : end].decode("utf-8", "surrogatepass"))
            at = end
        elif code == 0x28:  # MARK
            marks.append(stack)
            stack = []
        elif code == 0x74:  # TUPLE
            items, stack = stack, marks.pop()
            stack.append((*items,))
        elif code in {0x52, 0x81}:  # REDUCE, NEWOBJ
            stack[-2:] = [_called(*stack[-2:])]
        elif code == 0x51:  # BINPERSID
            stack[-1] = persistent(stack[-1])
        elif 0x85 <= code <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
            size = code - 0x84
            stack[-size:] = [(*stack[-size:],)]
        elif code == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif code == 0x89:  # NEWFALSE
            stack.append(False)
        elif code == 0x4D:  # BININT2
            stack.append(_SHORT(pickled, at)[0])
            at += 2
        elif code == 0x4A:  # BININT
            stack.append(_INT(pickled, at)[0])
            at += 4
        elif code == 0x6A:  # LONG_BINGET
            stack.append(memo[_SIZE(pickled, at)[0]])
            at += 4
        elif code == 0x63:  # GLOBAL
            end = pickled.index(b"\n", at)
            last = pickled.index(b"\n", end + 1)
            name = pickled[at:end].decode(), pickled[end + 1 : last].decode()
            stack.append(_named(known, *name, whole=_is_whole(stack, marks)))
            at = last + 1
        elif code == 0x93:  # STACK_GLOBAL
            module, attribute = stack[-2:]
            stack[-2:] = [_named(known, module, attribute, whole=_is_whole(stack, marks, 2))]
        elif code == 0x7D:  # EMPTY_DICT
            stack.append({})
        elif code == 0x75:  # SETITEMS
            items, stack = stack, marks.pop()
            _set_items(stack[-1], items)
        elif code == 0x62:  # BUILD: sets attributes, which data lacks; torch keeps the versions of modules there
            stack.pop()
            _check_passive(stack[-1])
        elif code == 0x4E:  # NONE
            stack.append(None)
        elif code == 0x88:  # NEWTRUE
            stack.append(True)
        elif code == 0x8A:  # LONG1
            stack.append(int.from_bytes(pickled[at + 1 : at + 1 + pickled[at]], "little", signed=True))
            at += 1 + pickled[at]
        elif code == 0x47:  # BINFLOAT
            stack.append(_FLOAT(pickled, at)[0])
            at += 8
        elif code == 0x55:  # SHORT_BINSTRING
            stack.append(pickled[at + 1 : at + 1 + pickled[at]].decode())
            at += 1 + pickled[at]
        elif code == 0x5D:  # EMPTY_LIST
            stack.append([])
        elif code == 0x61:  # APPEND
            value = stack.pop()
            _extend(stack[-1], [value])
        elif code == 0x65:  # APPENDS
            items, stack = stack, marks.pop()
            _extend(stack[-1], items)
        elif code == 0x73:  # SETITEM
            items = stack[-2:]
            del stack[-2:]
            _set_items(stack[-1], items)
        elif code == 0x95:  # FRAME: how much of what follows belongs together
            at += 8
        elif code == 0x43:  # SHORT_BINBYTES
            at += 1 + pickled[at]
            stack.append(Other("bytes"))
        elif code == 0x8F:  # EMPTY_SET
            stack.append(Other("set"))
        elif code == 0x90:  # ADDITEMS
            items, stack = stack, marks.pop()
            _extend(stack[-1], items)
        elif code == 0x91:  # FROZENSET
            items, stack = stack, marks.pop()
            stack.append(Other("frozenset"))
        elif code == 0x30:  # POP: of a tuple that contains itself
            stack.pop()
        elif code == 0x31:  # POP_MARK
            stack = marks.pop()
        elif code in _LENGTHS:
            (size,) = _LENGTHS[code].unpack_from(pickled, at)
            start = at + _LENGTHS[code].size
            at = start + size
            stack.append(_long(code, pickled[start:at], size))
        else:
            raise ValueError(f"instruction {code:#04x} in the pickle")
    if len(stack) > 1:
        raise unlike_saved("its pickle leaves several values")
    return Loaded(stack.pop(), at + 1)


def _long(code: int, content: bytes, size: int) -> Any:
    """The value of a long text, number or sequence of bytes."""
    if len(content) != size:
        raise ValueError("a length that exceeds the pickle")
    if code == 0x8D:
        return content.decode("utf-8", "surrogatepass")
    if code == 0x54:
        return content.decode()
    if code == 0x8B:
        return int.from_bytes(content, "little", signed=True)
    return Other("bytearray" if code == 0x96 else "bytes")


def _set_items(target: Any, items: list[Any]) -> None:
    """Put keys and values into a dictionary, or into a value that is ignored."""
    pairs = zip(items[::2], items[1::2], strict=True)
    if type(target) is dict:
        target.update((key, value) for key, value in pairs if _is_supported(key))
    else:
        _check_ignored(target)


def _is_supported(key: Any) -> bool:
    """Whether a key is read. Tuples are not, since a deep one takes for ever to hash."""
    return type(key) is str or (type(key) in _KEYS and not (type(key) is int and key.bit_length() > _LARGEST_KEY))


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    else:
        _check_ignored(target)


def _called(function: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple or len(arguments) > MOST_ARGUMENTS:
        raise unlike_saved("a call with no arguments, or too many")
    return function(*arguments)


def _check_passive(value: Any) -> None:
    """Refuse attributes except on dictionaries and ignored values: they could give a tensor other numbers."""
    if type(value) is not dict:
        _check_ignored(value)


def _check_ignored(value: Any) -> None:
    if not isinstance(value, Other) or value.is_tensor:
        raise unlike_saved(f"a {type(value).__name__} that is changed")


def _is_whole(stack: list[Any], marks: list[list[Any]], taken: int = 0) -> bool:
    """Whether the next value, made of the last `taken` values, is the whole pickle."""
    if not marks:
        return len(stack) == taken
    # Torch before 1.6 refers to a module in a tuple.
    return len(marks) == 1 and not marks[0] and len(stack) == taken + 1 and stack[0] == "module"


def _named(known: Globals, module: Any, name: Any, *, whole: bool) -> Any:
    if not type(module) is type(name) is str:
        raise TypeError("a name that is not a string")
    if (module, name) not in known:
        raise ForbiddenError(f"{module}.{name}", whole=whole)
    return known[module, name]
