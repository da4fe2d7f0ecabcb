"""A reader of the pickles that `torch.save` writes, for data alone.

It knows the thirty instructions of protocol 2 that occur in state dictionaries, and calls nothing but what it is given
by name. The standard library's reader in C would do, but lets a pickle of five bytes have it allocate 64 GB; that in
Python takes several times as long.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

Globals = Mapping[tuple[str, str], Any]
"""What a pickle's names stand for, by module and name: all that a pickle may name."""

_SCALARS: Final = {str, int, float, bool, type(None)}

_LARGEST_KEY: Final = 1 << 60
"""Larger integers may have one hash, as many as one likes, which takes a dictionary the square of their number."""

_MOST_ARGUMENTS: Final = 16
"""Of one call: they are copied for each. What makes a tensor of any kind takes less than ten."""

_INT: Final = struct.Struct("<i").unpack_from
_SIZE: Final = struct.Struct("<I").unpack_from
_SHORT: Final = struct.Struct("<H").unpack_from
_FLOAT: Final = struct.Struct(">d").unpack_from


class ForbiddenError(Exception):
    """A pickle that names something else than data."""


def loads(pickled: bytes, known: Globals, persistent: Callable[[Any], Any]) -> Any:
    """The object that a pickle describes.

    Args:
        pickled: the pickle.
        known: what it may name. A callable is called with the arguments that the pickle gives.
        persistent: gives the objects that the pickle refers to by an identifier of their own.

    It takes time in proportion to the pickle's size, apart from what the callables take, and memory of at most a
    hundred times that.

    Raises:
        ForbiddenError: it names something that is not in `known`.
        ValueError, TypeError, AttributeError, LookupError, struct.error: it is damaged.
    """
    # One loop, the frequent instructions first: a call for each would take longer than what it does.
    if pickled[:2] != b"\x80\x02":
        raise ValueError("the pickle is of another protocol than 2")
    at = 2
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
        elif code == 0x28:  # MARK
            marks.append(stack)
            stack = []
        elif code == 0x74:  # TUPLE
            items, stack = stack, marks.pop()
            stack.append((*items,))
        elif code == 0x52:  # REDUCE
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
            stack.append(_named(known, pickled[at:end].decode(), pickled[end + 1 : last].decode()))
            at = last + 1
        elif code == 0x7D:  # EMPTY_DICT
            stack.append({})
        elif code == 0x75:  # SETITEMS
            items, stack = stack, marks.pop()
            stack[-1].update(zip(_keys(items[::2]), items[1::2], strict=True))
        elif code == 0x62:  # BUILD: attributes, which data has none of; torch keeps the modules' versions there
            stack.pop()
            _check_dictionary(stack[-1])
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
            stack.append(pickled[at + 1 : at + 1 + pickled[at]].decode("ascii"))
            at += 1 + pickled[at]
        elif code == 0x5D:  # EMPTY_LIST
            stack.append([])
        elif code == 0x61:  # APPEND
            value = stack.pop()
            stack[-1].append(value)
        elif code == 0x65:  # APPENDS
            items, stack = stack, marks.pop()
            stack[-1].extend(items)
        elif code == 0x73:  # SETITEM
            (key,), value = _keys([stack.pop(-2)]), stack.pop()
            stack[-1][key] = value
        else:
            raise ValueError(f"instruction {code:#04x} in the pickle")
    (value,) = stack
    return value


def _keys(keys: list[Any]) -> list[Any]:
    """Keys of a dictionary; tuples are none, for deep ones take for ever to hash, or the stack of the process."""
    if not all(type(key) in _SCALARS for key in keys):
        raise TypeError("a key that is no string or number")
    if any(type(key) is int and abs(key) >= _LARGEST_KEY for key in keys):
        raise ValueError("a key that is too large a number")
    return keys


def _called(function: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
        raise TypeError("a call with no arguments, or too many")
    return function(*arguments)


def _check_dictionary(value: Any) -> None:
    """What is no dictionary may be changed by its attributes: a tensor may get other numbers."""
    if type(value) is not dict:
        raise TypeError(f"attributes of a {type(value).__name__}")


def _named(known: Globals, module: str, name: str) -> Any:
    if (module, name) not in known:
        raise ForbiddenError(f"{module}.{name}")
    return known[module, name]
