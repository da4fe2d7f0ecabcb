"""Artifacts in a store that nobody has built: any bytes do where only digests are looked at."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cosyjit import Planned, Published, Record, Store
from cosyjit.documents import now
from cosyjit.planning import plan as planning
from cosyjit.provenance import record


def keep(store: Store, planned: Iterable[Planned], **changes: Any) -> dict[str, Published]:
    """Lets a store have what targets come to, and what they were last exported with; gives what would be published.

    Args:
        changes: other parts of the fingerprints than the targets have now.
    """
    found = {}
    with store.in_use(), store.staging() as work:
        for target in (each.target for each in planned):
            then = replace(target, fingerprint=replace(target.fingerprint, **changes))
            key = then.fingerprint.key
            content = f"the artifact of {key}".encode()
            made = Published(hashlib.sha256(content).hexdigest(), len(content), key)
            (work / key).write_bytes(content)
            store.add(work / key, made.sha256)
            statement = Record(
                name=then.file_name,
                sha256=made.sha256,
                fingerprint=then.fingerprint,
                component=then.component.name,
                source=then.source.pinned,
                materials=(),
                started=now(),
                finished=now(),
                figures={"bytes": made.size, "weight_bytes": then.weight_bytes, "seconds": 0.1},
            )
            record.save(store, statement)
            planning.remember(store, then)
            found[then.file_name] = made
    return found


def object_of(store: Store, digest: str) -> Path:
    """The file that has an artifact in a store of this machine."""
    assert store.local is not None
    return store.local / "objects" / digest[:2] / digest


def record_of(store: Store, key: str) -> Path:
    """The file that has a record in a store of this machine."""
    assert store.local is not None
    return store.local / record.name_of(key)


def litter(store: Store) -> list[Path]:
    """What work in hand has left in a store of this machine."""
    assert store.local is not None
    return list(store.local.glob("tmp/*"))


def unreferenced(directory: Path) -> set[str]:
    """What stands below a directory's `.cosyjit` and nobody sees."""
    state = directory / ".cosyjit"
    if not (state / "current").is_symlink():
        return {str(path) for path in state.rglob("*")}
    shown = (state / "current").resolve()
    used = {state / "current", state / "sets", state / "files", shown, *shown.iterdir()}
    used |= {path.resolve() for path in shown.iterdir()}
    return {str(path) for path in state.rglob("*")} - {str(path) for path in used}


def flip(path: Path) -> None:
    """Damages a file in place, in its middle, whatever its permissions are."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0xFF]))


def change(directory: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits the state dictionary in a weights file."""
    state = torch.load(directory / name, weights_only=True)
    edit(state)
    torch.save(state, directory / name)


def retrain(directory: Path, name: str, prefix: str) -> int:
    """Moves all tensors below a prefix in a weights file; gives how many there are."""
    moved = 0

    def move(state: dict[str, Any]) -> None:
        nonlocal moved
        for key in [key for key in state if key.startswith(prefix)]:
            state[key] = state[key] * 1.25
            moved += 1

    change(directory, name, move)
    return moved


def rewrite(directory: Path, old: str, new: str, name: str = "cosyvoice.yaml") -> None:
    """Replaces text in the configuration."""
    config = directory / name
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def without_llm(directory: Path) -> Path:
    """Leaves of a model directory what a published flow is: no language model, neither its node nor its weights."""
    (config,) = directory.glob("*.yaml")
    config.write_text(re.sub(r"(?m)^llm:.*\n(?:[ #].*\n|\n)*", "", config.read_text()))
    (directory / "llm.pt").unlink()
    return directory


def moved(directory: Path) -> Path:
    """Gives a directory another name beside the one it had."""
    return Path(shutil.move(directory, directory.with_name(f"{directory.name} moved")))
