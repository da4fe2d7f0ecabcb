"""Settings from environment variables, read by the command line and the flows only.

pydantic-settings is not used: its import takes two fifths of the time in which an export without news has to end.
"""

import os
from pathlib import Path
from typing import Final

from cosyjit.errors import SelectionError

STORE: Final = "COSYJIT_STORE"
"""The variable that names the store: a directory or an fsspec URL."""

MEMORY: Final = "COSYJIT_MEMORY"
"""The variable with the memory that builds may take on this machine at a time, in GB."""

DASK: Final = "COSYJIT_DASK"
"""The variable with the address of a Dask scheduler, on whose workers the flow then builds."""

SIGN: Final = "COSYJIT_SIGN"
"""The variable that names the file of the private key to sign records with."""

REQUIRE_SIGNATURE: Final = "COSYJIT_REQUIRE_SIGNATURE"
"""The variable that names the file of public keys, one of which must have signed."""

WAIT: Final = "COSYJIT_WAIT"
"""The variable with the longest time to wait for other processes, in s."""

LOG: Final = "COSYJIT_LOG"
"""The variable with the level of the log: `debug` adds the traceback of each error that is shown as one line."""

SERVER: Final = "PREFECT_API_URL"
"""Prefect's own variable for its server's API."""

WEBHOOK: Final = "COSYJIT_WEBHOOK"
"""The variable with the address that the server sends notices of runs to."""


def store() -> str | None:
    """The store that the environment names; None if it names none."""
    return os.environ.get(STORE) or None


def memory() -> int | None:
    """The memory that builds may take on this machine at a time, in bytes; None if the variable is not set.

    Raises:
        SelectionError: the value is not a number above 0.
    """
    given = os.environ.get(MEMORY)
    if not given:
        return None
    try:
        size = int(float(given) * 1e9)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise SelectionError(f"{MEMORY}={given}: is not an amount of memory; give a number of GB, such as 8 or 0.5")
    return size


def dask() -> str | None:
    """The address of the Dask scheduler that the environment names; None if it names none."""
    return os.environ.get(DASK) or None


def sign() -> Path | None:
    """The file of the private key that the environment names; None if it names none."""
    return _path(SIGN)


def require_signature() -> Path | None:
    """The file of public keys that the environment names; None if it names none."""
    return _path(REQUIRE_SIGNATURE)


def wait() -> float | None:
    """The longest time to wait for other processes, in s; None if the variable is not set.

    Raises:
        SelectionError: the value is not a number.
    """
    given = os.environ.get(WAIT)
    try:
        return float(given) if given else None
    except ValueError:
        raise SelectionError(f"{WAIT}={given}: is not a number of seconds; give one, such as 60") from None


def debug() -> bool:
    """Whether the environment asks for the debug log.

    Raises:
        SelectionError: it names a level that does not exist.
    """
    given = os.environ.get(LOG)
    if given not in {None, "", "info", "debug"}:
        raise SelectionError(f"{LOG}={given}: is not a level of the log; give debug or info")
    return given == "debug"


def _path(variable: str) -> Path | None:
    given = os.environ.get(variable)
    return Path(given) if given else None


def credentials() -> tuple[str | None, str | None]:
    """The credentials for a Prefect server, "name:password" and an API key; None for each that is not set."""
    return os.environ.get("PREFECT_API_AUTH_STRING"), os.environ.get("PREFECT_API_KEY")
