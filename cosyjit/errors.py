"""All errors that cosyjit raises on purpose, in one tree.

    CosyjitError
    ├── InputError                     the input cannot be exported as it is; nothing was written
    │   ├── SourceError                a source that is not a model directory, and not a model of a hub
    │   │   └── SourceUnavailableError a model hub that cannot be reached now, or is busy
    │   ├── ConfigError                a configuration that is not YAML, or cannot be resolved as data
    │   │   └── UnsupportedOptionError an encoder option that is unknown or missing, or has an unsupported value
    │   ├── CheckpointError            a weights file that is missing or damaged, or holds more than tensors
    │   │   └── TensorMismatchError    tensors that are missing or unexpected, or have another shape
    │   ├── SelectionError             a family, component or precision that does not exist
    │   ├── OutputError                a directory that cannot be written to
    │   ├── StoreError                 a store that cannot be read or written, or lacks what is requested
    │   │   ├── StoreUnavailableError  a store that cannot be reached now, or is busy
    │   │   │   └── BusyError          other processes did not finish in the time that cosyjit waits for them
    │   │   └── RecordError            a record or manifest that is damaged
    │   │       ├── LaterSchemaError   a record or manifest that a later version of cosyjit wrote
    │   │       └── SignatureError     a record without a signature by one of the required keys
    │   ├── PublicationError           nothing is published in a directory, or under a number
    │   └── ServerError                a Prefect server that is missing or too old, or refuses access
    ├── TransientError                 an error that may pass by itself: the second parent of "unavailable" errors
    ├── ResourceError                  the system does not give the memory or processes that builds need
    └── BuildError                     one target could not be built; the others can
        └── VerificationError          what was built does not match its encoder, or would not

Each message is one line that names the thing, the value and what to do. All of them survive pickling, since every
constructor passes its own arguments on to `Exception`.
"""

from collections.abc import Sequence
from typing import Final

from cosyjit.text import plain

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
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST or isinstance(error, CosyjitError) else f"{text[:_LONGEST]}..."


class TransientError(CosyjitError):
    """An error that may pass by itself, so that another try later may succeed."""


class InputError(CosyjitError):
    """The input cannot be exported as it is; nothing was written."""


class SourceError(InputError):
    """A source that is not a model directory, and not a model of a hub."""


class SourceUnavailableError(SourceError, TransientError):
    """A model hub that cannot be reached now, or is busy."""


class ConfigError(InputError):
    """A configuration that is not YAML, or cannot be resolved as data."""


class UnsupportedOptionError(ConfigError):
    """An encoder option that is unknown or missing, or has an unsupported value.

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
        faults = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in lists.items() if names)
        return f"{self.where}: the tensors do not fit the configuration ({faults}); export a matching pair"


_SHOWN: Final = 3
_LONGEST_NAME: Final = 200
"""How many names a message gives, and how many characters of each."""


def _listed(names: Sequence[str]) -> str:
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(names) > _SHOWN else "")


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
    """Nothing is published in a directory, or under a number."""


class ServerError(InputError):
    """A Prefect server that is missing or too old, or refuses access."""


class ResourceError(CosyjitError):
    """The system does not give the memory or processes that builds need. No target can be built until it does."""


class BuildError(CosyjitError):
    """One target could not be built; the others can."""


class VerificationError(BuildError):
    """What was built does not match its encoder, or would not. It is neither stored nor published."""
