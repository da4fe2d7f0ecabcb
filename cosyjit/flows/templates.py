"""The files that deployments and notices are made from: read from the package, or written for a user to change."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from cosyjit.errors import OutputError
from cosyjit.fs.files import absolute, make_directory
from cosyjit.processes.interrupts import note_changes

DEPLOYMENTS: Final = "prefect.yaml"
"""The deployments, for `prefect deploy`."""

AUTOMATIONS: Final = "automations.yaml"
"""The notices of runs, for `cosyjit alert` and `prefect automation create`."""

_IN_A_CHECKOUT: Final = "flows/export.py:export"
_INSTALLED: Final = "cosyjit.flows.export.export"

_NO_PULL: Final = """
# Workers have cosyjit installed, so they fetch nothing.
pull: []
"""


def template(name: str) -> str:
    """The text of one of the package's files."""
    return (files("cosyjit.flows") / name).read_text(encoding="utf-8")


def write_templates(directory: Path) -> tuple[Path, ...]:
    """Write the files into a directory, for workers that have cosyjit installed and no checkout.

    Returns:
        Their paths.

    Raises:
        OutputError: one of them is there already, which is left as it is, or they cannot be written; then neither is.
    """
    directory = absolute(directory)
    deployments = template(DEPLOYMENTS).replace(_IN_A_CHECKOUT, _INSTALLED) + _NO_PULL
    contents = {directory / DEPLOYMENTS: deployments, directory / AUTOMATIONS: template(AUTOMATIONS)}
    for path in contents:
        if path.exists() or path.is_symlink():
            raise OutputError(f"{path}: is there already; move it away, or name another directory")
    created = []
    note_changes("the directory may have one of the files; remove it, and run it again")
    try:
        make_directory(directory)
        for path, text in contents.items():
            with path.open("x", encoding="utf-8") as file:
                created.append(path)
                file.write(text)
    except OSError as error:
        for path in created:
            path.unlink()
        raise OutputError(f"{directory}: cannot be written to ({error.strerror}); name another directory") from None
    return tuple(contents)
