"""All errors that cosyjit raises on purpose, in one tree.

    CosyjitError
    ├── InputError                     the input cannot be exported as it is; nothing was written
    │   ├── SourceError                a source that is not a model directory, and not a model of a hub
    │   │   └── SourceUnavailableError a model hub that cannot be reached now, or is busy
    │   │       └── RepositoryChangedError a repository of a hub that others push to at the same time
    │   ├── ConfigError                a configuration that is not YAML, or cannot be resolved as data
    │   │   └── UnsupportedOptionError an option of an encoder or estimator that is unknown, missing or unsupported
    │   ├── CheckpointError            a weights file that is missing or damaged, or holds more than tensors
    │   │   └── TensorMismatchError    tensors that are missing or unexpected, or have another shape
    │   ├── FileChangedError           a file that was changed while it was read
    │   ├── SelectionError             a family, component or precision that does not exist
    │   ├── OutputError                a directory that cannot be written to
    │   ├── StoreError                 a store that cannot be read or written, or lacks what is requested
    │   │   ├── StoreUnavailableError  a store that cannot be reached now, or is busy
    │   │   │   └── BusyError          other processes did not finish in the time that cosyjit waits for them
    │   │   └── RecordError            a record or manifest that is damaged
    │   │       ├── LaterSchemaError   a record or manifest that a later version of cosyjit wrote
    │   │       └── SignatureError     a record without a signature by one of the required keys
    │   ├── PublicationError           nothing is published in a directory, or under a number, or not as it was
    │   └── ServerError                a Prefect server that is missing or too old, or refuses access
    ├── TransientError                 an error that may pass by itself: the second parent of "unavailable" errors
    ├── ResourceError                  the system does not give the memory or processes that builds need
    └── BuildError                     one target could not be built; the others can
        └── VerificationError          what was built does not match its encoder, or would not

Each message is one line that names the thing, the value and what to do. All of them survive pickling, since every
constructor passes its own arguments on to `Exception`.
"""

import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from typing import Final

from cosyjit.text import listed, one_line, plain, without_secrets

_LOG: Final = logging.getLogger("cosyjit")

_LONGEST: Final = 300
"""The most characters that our errors quote of the text of another error."""


class CosyjitError(Exception):
    """The root of all errors that cosyjit raises on purpose. The text of each is one line, whatever names it quotes."""

    def __str__(self) -> str:
        return plain(self._text())  # here, since the text is shown by its catcher or by Python itself

    def _text(self) -> str:
        return super().__str__()


def line(error: BaseException) -> str:
    """The text of an error in one line, or its class if it has no text. The text of a foreign error is cut."""
    return one_line(str(error), None if isinstance(error, CosyjitError) else _LONGEST) or type(error).__name__


_QUOTING: Final = {"CredentialRetrievalError"}
"""Errors of which only the name is shown, even in the debug log: their text is what a command has printed."""


def log_cause(error: BaseException) -> None:
    """Write an error to the debug log, with all that it was raised from; called where it becomes one line.

    Its text is escaped here: other handlers than cosyjit's own, such as Prefect's, may have this log as well.
    """
    if _LOG.isEnabledFor(logging.DEBUG):
        _LOG.debug("%s", "\n".join(map(plain, trace(error).splitlines())))


def trace(error: BaseException) -> str:
    """The traceback of an error and of what it was raised from, `from None` or not, the first cause first.

    It has several lines, and neither passwords nor tokens in them.
    """
    return without_secrets("\n\n".join(reversed([_traceback(each) for each in causes(error)])), os.environ)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _traceback(error: BaseException) -> str:
    lines = traceback.format_exception(error, chain=False)
    if type(error).__name__ in _QUOTING:
        lines[-1] = type(error).__name__
    return "".join(lines).rstrip("\n")


class TransientError(CosyjitError):
    """An error that may pass by itself, so that another try later may succeed."""


class InputError(CosyjitError):
    """The input cannot be exported as it is; nothing was written."""


class SourceError(InputError):
    """A source that is not a model directory, and not a model of a hub."""


class SourceUnavailableError(SourceError, TransientError):
    """A model hub that cannot be reached now, or is busy."""


class RepositoryChangedError(SourceUnavailableError):
    """A repository of a hub that others push to at the same time."""


class ConfigError(InputError):
    """A configuration that is not YAML, or cannot be resolved as data."""


class UnsupportedOptionError(ConfigError):
    """An option of an encoder or estimator that is unknown or missing, or has an unsupported value.

    Attributes:
        option: its name.
        value: its value as YAML.
        supported: the supported values, in words.
        where: the file and the component; "" until they are known.
    """

    def __init__(self, option: str, value: str, supported: str, where: str = "") -> None:
        super().__init__(option, value, supported, where)
        self.option, self.value, self.supported, self.where = option, value, supported, where

    def _text(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}option {self.option} is {self.value}; supported: {self.supported}"


class CheckpointError(InputError):
    """A weights file that is missing or damaged, or holds more than tensors."""


class TensorMismatchError(CheckpointError):
    """Tensors of a component that do not fit its configuration, all of them.

    Attributes:
        where: the weights file and the component.
        missing, unexpected: full names of tensors.
        misshapen: "name (actual shape instead of required shape)".
    """

    def __init__(self, where: str, missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> None:
        super().__init__(where, missing, unexpected, misshapen)
        self.where, self.missing, self.unexpected, self.misshapen = where, missing, unexpected, misshapen

    def _text(self) -> str:
        lists = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        faults = "; ".join(f"{len(names)} {kind}: {listed(_cut(names))}" for kind, names in lists.items() if names)
        return f"{self.where}: the tensors do not fit the configuration ({faults}); export a matching pair"


_LONGEST_NAME: Final = 200
"""How much of a name a message gives, in characters."""


def _cut(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names]


class FileChangedError(InputError):
    """A file that was changed while it was read."""


class SelectionError(InputError):
    """A family, component or precision that does not exist."""


class OutputError(InputError):
    """A directory that cannot be written to."""


class StoreError(InputError):
    """A store that cannot be read or written, or lacks what is requested."""


class StoreUnavailableError(StoreError, TransientError):
    """A store that cannot be reached now, or is busy."""


class BusyError(StoreUnavailableError):
    """Other processes did not finish in the time that cosyjit waits for them."""


class RecordError(StoreError):
    """A record or manifest that is damaged."""


class LaterSchemaError(RecordError):
    """A record or manifest that a later version of cosyjit wrote. It is left untouched."""


class SignatureError(RecordError):
    """A record without a signature by one of the required keys. It is left untouched."""


class PublicationError(InputError):
    """Nothing is published in a directory, or under a number; or a directory does not show it as it was published."""


class ServerError(InputError):
    """A Prefect server that is missing or too old, or refuses access."""


class ResourceError(CosyjitError):
    """The system does not give the memory or processes that builds need. No target can be built until it does."""


class BuildError(CosyjitError):
    """One target could not be built; the others can."""


class VerificationError(BuildError):
    """What was built does not match its encoder, or would not. It is neither stored nor published."""
