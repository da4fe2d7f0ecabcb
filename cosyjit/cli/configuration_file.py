"""The configuration file: values for options that neither the command line nor the environment gives.

Model directories come from strangers, and commands are run in them. So a file in a model directory, or below one, is
never read, and neither is one that belongs to another user.
"""

import importlib
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from fnmatch import fnmatch
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from cyclopts import App, Argument, ArgumentCollection, Token

from cosyjit.errors import SelectionError, line
from cosyjit.families import CONFIG_FILES

_OWN: Final = "cosyjit.toml"
_SHARED: Final = "pyproject.toml"
"""Of this one, the table [tool.cosyjit]."""

_MODEL: Final = "cosyvoice*.yaml"
"""What makes a directory one of a model."""

_LARGEST: Final = 1 << 20
"""In bytes."""

_PATHS: Final = {"publish", "store", "sign", "require-signature"}
"""The options of which a relative path in a file begins at the file's directory; a store may be a URL."""

_COMMAND_LINE: Final = {"json", "exit-code"}
"""The options that a file does not have: they say what becomes of errors, such as those in the file."""

_SECRETS: Final = {"webhook"}
"""The options whose values no message quotes."""

_LOG: Final = logging.getLogger("cosyjit")


class _Found(NamedTuple):
    """A configuration file, and what it says: options, and commands with options of their own."""

    path: Path
    table: Mapping[str, Any]


class _Kind(NamedTuple):
    """What the value of an option is in TOML."""

    types: tuple[type, ...]
    words: str


_KINDS: Final[dict[Any, _Kind]] = {
    bool: _Kind((bool,), "true or false"),
    int: _Kind((int,), "an integer"),
    float: _Kind((int, float), "a number"),
    timedelta: _Kind((str,), 'a text such as "7d"'),
    **dict.fromkeys((list, tuple), _Kind((str, list), "a text, or a list of texts")),
}
_TEXT: Final = _Kind((str,), "a text")


class ConfigurationFile:
    """What cyclopts asks for the values of options, after the command line and the environment."""

    def __init__(self, root: App, tell: Callable[[str], None]) -> None:
        """Take the application whose commands the file may name; nothing is read.

        Args:
            root: the application.
            tell: is told, in a line each, which files are passed over.
        """
        self._root, self._tell = root, tell

    def __call__(self, _app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Give a command's arguments the values that the file of the current directory has for them.

        Raises:
            SelectionError: the file cannot be read, or has a key or a value that it should not have.
        """
        if len(commands) != 1:  # the options of all commands are not in the file
            return
        found = _find(self._tell)
        if found is None:
            return
        _LOG.debug("%s: gives the values of options", found.path)
        known = {name: _options(self._root[name].assemble_argument_collection()) for name in _names(self._root)}
        values = _checked(found, known).get(commands[0], {})
        for name, argument in _options(arguments).items():
            if name in values and not argument.tokens:
                for token in _tokens(found, name, values[name]):
                    argument.append(token)


def used() -> Path | None:
    """The file of the current directory; None if there is none.

    Raises:
        SelectionError: it cannot be read, or is not TOML.
    """
    found = _find(lambda _: None)
    return None if found is None else found.path


def _names(root: App) -> list[str]:
    return [name for name in root if not name.startswith("-")]


def _options(arguments: ArgumentCollection) -> dict[str, Argument]:
    """The options and arguments of a command by their names in a file; cyclopts has some names in capitals."""
    named = {argument.name.removeprefix("--").lower(): argument for argument in arguments}
    return {name: argument for name, argument in named.items() if name not in _COMMAND_LINE}


def _is_option(argument: Argument) -> bool:
    """Whether an argument is given by its name alone; others say what a command is about."""
    return argument.field_info.kind is Parameter.KEYWORD_ONLY


def _checked(found: _Found, known: Mapping[str, Mapping[str, Argument]]) -> dict[str, dict[str, Any]]:
    """By command, the values of its options: those of its own table, and those that all commands have.

    Raises:
        SelectionError: a key is neither a command nor an option, or a value is not one of its option.
    """
    common = {
        name: argument for options in known.values() for name, argument in options.items() if _is_option(argument)
    }
    shared: dict[str, Any] = {}
    own: dict[str, Mapping[str, Any]] = {}
    for name, key, value in _named(found, found.table):
        if name in known and isinstance(value, Mapping):
            own[name] = value
        elif name in common:
            having = [command for command, options in known.items() if name in options]
            if len({_kind(known[command][name].hint) for command in having}) > 1:
                raise SelectionError(
                    f"{found.path}: {key}: differs by the command; give it in the table {' or '.join(having)}"
                )
            shared[name] = _value(found, key, common[name], value)
        else:
            raise SelectionError(
                f"{found.path}: {key}: is not an option{' or a table' if name not in known else ''}; known are "
                f"{', '.join(common)}, and the tables {', '.join(known)}"
            )
    values = {}
    for command, options in known.items():
        values[command] = {name: value for name, value in shared.items() if name in options}
        for name, key, value in _named(found, own.get(command, {}), f"{command}."):
            if name not in options:
                raise SelectionError(
                    f"{found.path}: {key}: is not an option of {command}; known are {', '.join(options)}"
                )
            values[command][name] = _value(found, key, options[name], value)
    return values


def _named(found: _Found, table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Of each key of a table, the name that it stands for, the key as messages have it, and the value.

    Raises:
        SelectionError: two keys stand for one name, or one for an option of the command line alone.
    """
    known: dict[str, str] = {}
    for each, value in table.items():
        name, key = each.replace("_", "-"), f"{prefix}{each}"
        if name in _COMMAND_LINE:
            raise SelectionError(f"{found.path}: {key}: is for the command line alone; remove it, and give --{name}")
        if name in known:
            raise SelectionError(f"{found.path}: {key}: is given twice, also as {known[name]}; give it once")
        known[name] = key
        yield name, key, value


def _value(found: _Found, key: str, argument: Argument, value: Any) -> Any:
    """The value of an option, with a relative path as one from the file's directory."""
    kind, name = _kind(argument.hint), argument.name.removeprefix("--")
    fits = isinstance(value, kind.types) and isinstance(value, bool) == (bool in kind.types)
    if not fits or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
        given = "of another type" if name in _SECRETS else repr(value)
        raise SelectionError(f"{found.path}: {key}: is {given}; give {kind.words}")
    if name in _PATHS and not value:
        raise SelectionError(f"{found.path}: {key}: is empty; name a place, or remove it")
    if name in _PATHS and "://" not in value and not value.startswith("~"):
        return str(found.path.parent / value)
    return value


def _kind(hint: Any) -> _Kind:
    """What the value of an option of a type, which may be optional, is in TOML."""
    for each in (hint, *get_args(hint)):
        kind = _KINDS.get(getattr(each, "__origin__", each))  # int of Annotated[int, …], list of list[str]
        if kind is not None:
            return kind
    return _TEXT


def _tokens(found: _Found, name: str, value: Any) -> Iterator[Token]:
    """An option as cyclopts would have it of the command line."""
    make = partial(Token, keyword=name, source=str(found.path))
    if value == []:
        yield make(implicit_value=value)
    else:
        values = value if isinstance(value, list) else [value]
        yield from (make(value=str(each), index=index) for index, each in enumerate(values))


def _find(tell: Callable[[str], None]) -> _Found | None:
    """The first file with a configuration, in the current directory or those above it; None if there is none.

    Raises:
        SelectionError: it cannot be read, or is not TOML.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it is gone
        return None
    for directory in (here, *here.parents):
        for name in (_OWN, _SHARED):
            path = directory / name
            if not os.path.lexists(path):
                continue
            problem = _problem(path)
            if problem is not None:
                tell(f"{path}: is passed over, since {problem}")
                continue
            table = _table(path)
            if table is not None:
                return _Found(path, table)
    return None


def _problem(path: Path) -> str | None:
    """Why a file is not read; None if it is."""
    owner = path.lstat().st_uid
    if owner not in {os.geteuid(), 0}:
        return f"it belongs to another user ({owner})"
    model = next(filter(_is_model, path.parents), None)
    return None if model is None else f"{model} is a model directory, which may be a stranger's; keep it elsewhere"


def _is_model(directory: Path) -> bool:
    if any(os.path.lexists(directory / name) for name in CONFIG_FILES):
        return True
    with suppress(OSError):  # of a directory that this user may pass through, but not list
        return any(fnmatch(each.name, _MODEL) for each in directory.iterdir())
    return False


def _table(path: Path) -> Mapping[str, Any] | None:
    """The configuration in a file; None if it has none."""
    content = _content(path)
    if path.name == _SHARED and b"cosyjit" not in content:
        return None
    try:
        document: Any = _toml().loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SelectionError(f"{path}: is not TOML ({line(error)}); mend it, or move it away") from None
    if path.name == _OWN:
        return dict(document)
    for key in ("tool", "cosyjit"):
        document = document.get(key, {})
        if not isinstance(document, Mapping):
            raise SelectionError(f"{path}: {key}: is not a table; give the options in [tool.cosyjit]")
    return document or None


def _content(path: Path) -> bytes:
    """The content of a file of this user's or the administrator's."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise SelectionError(f"{path}: is not a file; move it away")
            if found.st_uid not in {os.geteuid(), 0}:
                raise SelectionError(f"{path}: leads to a file of another user ({found.st_uid}); move it away")
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise SelectionError(f"{path}: cannot be read ({error.strerror}); make it readable, or move it away") from None
    if len(content) > _LARGEST:
        raise SelectionError(f"{path}: is larger than {_LARGEST:,} bytes; make it smaller, or move it away")
    return content


def _toml() -> Any:
    """The reader of TOML, which Python has from 3.11 on."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
