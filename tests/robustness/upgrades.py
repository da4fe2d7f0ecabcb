"""A store and a directory as this version writes them, for later versions to read.

`python -m tests.robustness.upgrades DIRECTORY` made `written/<version>`; what stands there is never made again. A
version that writes something else adds its own beside it, and reads all of them.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from cosyjit import Store, export
from cosyjit.synth.synth import synth
from tests.support.checkpoints import retrain
from tests.support.keys import pair

OF_THE_MACHINE: Final = ("digests", "tmp", "locks", "gate", "lock")


def main(directory: Path) -> None:
    """Two publications of two artifacts: one was signed, one not, and of one there are two versions."""
    os.environ["HOME"] = str(directory / "home")
    model = synth(directory / "CosyVoice-tiny", "cosyvoice", "tiny", seed=0)
    keys, shown = pair(directory, "signer"), directory / "published"
    store = Store(directory / "store")
    _export(model, "llm.text_encoder", store, shown)
    _export(model, "flow.encoder", Store(store.root, sign=keys.private), shown)
    retrain(model, "flow.pt", "encoder.after_norm.bias")
    _export(model, "flow.encoder", Store(store.root, sign=keys.private), shown)
    for name in OF_THE_MACHINE:
        path = directory / "store" / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(directory / "home", ignore_errors=True)
    shutil.rmtree(model)
    keys.private.unlink()


def _export(model: Path, component: str, store: Store, shown: Path) -> None:
    (outcome,) = export(model, components=[component], precisions=["fp16"], store=store, publish=shown)
    if outcome.error:
        raise SystemExit(outcome.error)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
