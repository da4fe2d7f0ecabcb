"""What the environment sets: cosyjit's own variables, those of others that change what it does, and keys."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from cosyjit import settings
from cosyjit.doctor.finding import Finding, Probe, shown
from cosyjit.errors import CosyjitError, log_cause
from cosyjit.processes.processors import CHOOSING
from cosyjit.store.signing import Signer, TrustedKeys
from cosyjit.text import is_secret, without_password

_PREFIX: Final = "COSYJIT_"

OWN: Final = {value for value in vars(settings).values() if isinstance(value, str) and value.startswith(_PREFIX)}
"""The names of cosyjit's own variables."""

_OTHERS: Final = (
    *("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME", "MODELSCOPE_ENDPOINT", "MODELSCOPE_CACHE"),
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_DEFAULT_REGION"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"),
    *("TMPDIR", "OMP_NUM_THREADS", "PYTHONPATH", "LD_PRELOAD", *CHOOSING),
)
"""The variables of others that change what cosyjit does."""

_HIDDEN: Final = {settings.WEBHOOK}
"""Whoever knows the value can use it."""


def probes(configuration: Path | None) -> list[Probe]:
    """The looks at the environment.

    Args:
        configuration: the file that the command line has read options from; None if there is none.
    """
    return [
        Probe("settings", "configuration file", partial(_configuration, configuration)),
        Probe("settings", "variables", _variables),
    ]


def _configuration(path: Path | None) -> Iterator[Finding]:
    yield Finding("settings", "configuration file", None if path is None else shown(path))


def _variables() -> Iterator[Finding]:
    for name in sorted(each for each in os.environ if each.startswith(_PREFIX)):
        if name in OWN:
            problem = _problem(name)
            yield Finding("settings", name, _value(name), "wrong" if problem else "ok", problem)
        else:
            yield Finding("settings", name, "set", "note", "is not a variable of cosyjit; see docs/configuration.md")
    yield from (Finding("settings", name, _value(name)) for name in _OTHERS if name in os.environ)


def _value(name: str) -> str:
    """The value of a variable, as far as it may be shown."""
    if name in _HIDDEN or is_secret(name):
        return "set"
    return shown(without_password(os.environ[name]))


_CHECKS: Final[dict[str, Callable[[], Any]]] = {
    settings.MEMORY: settings.memory,
    settings.WAIT: settings.wait,
    settings.LOG: settings.debug,
    settings.SIGN: lambda: Signer(Path(os.environ[settings.SIGN])),
    settings.REQUIRE_SIGNATURE: lambda: TrustedKeys(Path(os.environ[settings.REQUIRE_SIGNATURE])),
}


def _problem(name: str) -> str:
    """What is wrong with the value of one of cosyjit's own variables; "" if nothing is."""
    if not os.environ[name] or name not in _CHECKS:
        return ""
    try:
        _CHECKS[name]()
    except CosyjitError as error:
        log_cause(error)
        return str(error)
    return ""
