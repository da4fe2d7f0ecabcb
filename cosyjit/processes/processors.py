"""How many processors there are to work with."""

import os


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
