"""Where a checkpoint comes from: a model directory."""

from dataclasses import dataclass
from pathlib import Path

from cosyjit.errors import SourceError
from cosyjit.families import CONFIG_FILES


@dataclass(frozen=True)
class Source:
    """A model directory.

    Attributes:
        directory: where the weights files are, absolute.
        config: the configuration in it.
    """

    directory: Path
    config: Path


def open_source(source: str | Path) -> Source:
    """Find the configuration of a model directory.

    Raises:
        SourceError: no such directory, no configuration in it, or more than one.
    """
    directory = _directory(source)
    try:
        found = [directory / name for name in CONFIG_FILES if (directory / name).is_file()]
    except OSError as error:
        raise SourceError(f"{source}: cannot be read ({error.strerror}); make it readable") from None
    if not found:
        raise SourceError(f"{source}: no configuration in this directory; it needs one of {', '.join(CONFIG_FILES)}")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise SourceError(f"{source}: {names} stand side by side; keep the one that the weights belong to")
    return Source(directory, found[0])


def _directory(source: str | Path) -> Path:
    try:
        path = Path(source).expanduser().absolute()
        if path.is_dir():
            return path
        reason = "is a file" if path.exists() else "does not exist"
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a user that there is not, a NUL
        reason = f"is no path ({error})"
    raise SourceError(f"{source}: {reason}; give a model directory, with one of {', '.join(CONFIG_FILES)} in it")
