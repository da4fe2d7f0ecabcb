"""An error as JSON, for programs; a process that has no memory left can still import this."""

import json


def document(kind: str, message: str, status: int) -> str:
    """One object, `{"error": {"kind": "…", "message": "…", "status": 2}}`, in ASCII.

    Args:
        kind: the name of the error's class in `cosyjit.errors`, or that of another kind.
        message: the line that stands on standard error.
        status: the exit status.
    """
    return json.dumps({"error": {"kind": kind, "message": message, "status": status}}, indent=2)
