"""TorchScript artifacts of CosyVoice's encoders, for the runtime that loads them.

import cosyjit

for outcome in cosyjit.export("CosyVoice-300M"):
    print(outcome.target.name, outcome.state, outcome.path)
"""

from cosyjit.audit import Fault, audit_directory, audit_store
from cosyjit.building import Artifact, build
from cosyjit.copying import Copied, copy_store
from cosyjit.errors import BuildError, CosyjitError, InputError
from cosyjit.gc import collect
from cosyjit.inspection import Shown, Status, status
from cosyjit.pipeline import Outcome, export, obstacles
from cosyjit.planning import Planned, Target, plan
from cosyjit.publication import Publication, Published
from cosyjit.publish import history, rollback
from cosyjit.record import Record
from cosyjit.store import Store

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "BuildError",
    "Copied",
    "CosyjitError",
    "Fault",
    "InputError",
    "Outcome",
    "Planned",
    "Publication",
    "Published",
    "Record",
    "Shown",
    "Status",
    "Store",
    "Target",
    "audit_directory",
    "audit_store",
    "build",
    "collect",
    "copy_store",
    "export",
    "history",
    "obstacles",
    "plan",
    "rollback",
    "status",
]
