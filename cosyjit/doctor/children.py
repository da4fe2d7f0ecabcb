"""Modules that run in processes of their own, since what they import takes seconds, or cannot be imported at all."""

import json
import re
import subprocess
import sys
from typing import Any, Final

from cosyjit.doctor.finding import ChildError
from cosyjit.errors import ResourceError
from cosyjit.processes.limits import lack_in
from cosyjit.text import one_line

_LONGEST: Final = 250
"""How much is quoted of what a process said last, in characters."""

_ERROR: Final = re.compile(r"(?m)^[\w.]+(?:Error|Exception)\b")
"""How the last lines of a traceback begin."""


def asked(module: str, seconds: float) -> dict[str, Any]:
    """The object that a module prints as JSON.

    Args:
        module: run as `python -m`.
        seconds: after which it is killed.

    Raises:
        ChildError: it ended before it said anything.
        ResourceError: the system does not give what it needs.
        subprocess.TimeoutExpired: it took too long.
    """
    ran = subprocess.run(
        [sys.executable, "-m", module], check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds
    )
    said = ran.stderr.decode(errors="replace")
    try:
        found = json.loads(ran.stdout)
    except ValueError:
        lacking = lack_in(said)
        if lacking:
            raise ResourceError(f"{module}: {lacking}") from None
        begins = [each.start() for each in _ERROR.finditer(said)]
        last = said[begins[-1] :] if begins else (said.strip() or f"exit status {ran.returncode}").splitlines()[-1]
        raise ChildError(one_line(last, _LONGEST)) from None
    return dict(found)
