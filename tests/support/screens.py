"""What commands show: the rows of tables, and what a terminal of 80 columns gets."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping
from typing import Final, NamedTuple

COLUMNS: Final = 80


def rows(out: str) -> list[list[str]]:
    """The rows of the table that an output begins with, without its head and without cells that are empty."""
    table = out.partition("\n\n")[0].splitlines()
    return [re.split(r" {2,}", line.strip()) for line in table[1:]]


class Screen(NamedTuple):
    """What a command wrote to a terminal, and its exit status."""

    status: int
    text: str

    @property
    def plain(self) -> str:
        """The text without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.text)


def on_terminal(*command: object, environment: Mapping[str, str] | None = None) -> Screen:
    """Runs a command on a terminal of its own.

    Args:
        command: the program and its arguments.
        environment: what is set beside the environment of this process; what says of colours there is left out.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    kept = {name: each for name, each in os.environ.items() if name not in {"COLUMNS", "FORCE_COLOR", "NO_COLOR"}}
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**kept, "TERM": "xterm-256color", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with process, os.fdopen(ours, "rb", buffering=0) as terminal:
        text = b""
        try:
            while part := terminal.read(1 << 16):
                text += part
        except OSError:  # what Linux gives when nobody has the other end any more
            pass
    return Screen(process.returncode, text.decode().replace("\r\n", "\n"))
