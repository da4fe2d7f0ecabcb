"""Says as JSON which Prefect server the settings name, and whether it answers: run as a process of its own.

`cosyjit.doctor` runs it, which imports no Prefect itself.
"""

import json
import sys
from contextlib import suppress

from prefect.settings import get_current_settings, load_profiles

from cosyjit.errors import ServerError
from cosyjit.flows.servers import configured_server
from cosyjit.prefect_api import check_version

_TIMEOUT = 5.0
"""How long to wait for an answer, in s."""


def main() -> None:
    """Print one object; what there is not is null."""
    home = get_current_settings().home
    found = {
        "profile": load_profiles().active_name,
        "home": str(home),
        "server": None,
        "version": None,
        "problem": None,
    }
    server = configured_server()
    if server is not None:
        found["server"] = server.shown
        server = server._replace(timeout=_TIMEOUT)
        try:
            version = server.version()
            check_version(server.shown, version)
            found["version"] = version
        except ServerError as error:
            found["problem"] = str(error)
    with suppress(OSError):  # it has something in it, and so was there before Prefect was imported
        home.rmdir()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
