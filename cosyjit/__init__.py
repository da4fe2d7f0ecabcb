"""TorchScript artifacts of CosyVoice's encoders, for the runtime that loads them.

import cosyjit

for outcome in cosyjit.export("CosyVoice-300M"):
    print(outcome.target.name, outcome.state, outcome.path)

Public are the names of this package (`cosyjit.__all__`), the errors in `cosyjit.errors` and the command `cosyjit`;
everything else is internal and may change in any release.
"""

TYPE_CHECKING = False  # that of typing: the command line takes signals before anything is imported
if TYPE_CHECKING:
    from cosyjit.building.build import Artifact, build
    from cosyjit.errors import BuildError, CosyjitError, InputError
    from cosyjit.operations.copy_store import Copied, copy_store
    from cosyjit.operations.gc import collect
    from cosyjit.operations.status import Shown, Status, status
    from cosyjit.operations.verify import Fault, audit_directory, audit_store
    from cosyjit.pipeline import Outcome, export, obstacles
    from cosyjit.planning.plan import Planned, Target, plan
    from cosyjit.provenance.record import Record
    from cosyjit.publishing.publication import Publication, Published
    from cosyjit.publishing.publish import history, rollback
    from cosyjit.store.store import Store

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

_HOMES = {
    "operations.verify": ("Fault", "audit_directory", "audit_store"),
    "building.build": ("Artifact", "build"),
    "operations.copy_store": ("Copied", "copy_store"),
    "errors": ("BuildError", "CosyjitError", "InputError"),
    "operations.gc": ("collect",),
    "operations.status": ("Shown", "Status", "status"),
    "pipeline": ("Outcome", "export", "obstacles"),
    "planning.plan": ("Planned", "Target", "plan"),
    "publishing.publication": ("Publication", "Published"),
    "publishing.publish": ("history", "rollback"),
    "provenance.record": ("Record",),
    "store.store": ("Store",),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A public name or a module, imported when it is first used."""
        from importlib import import_module, util  # noqa: PLC0415

        for module, names in _HOMES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(f"cosyjit.{module}"), name)
                return found
        if name.startswith("_") or util.find_spec(f"cosyjit.{name}") is None:
            raise AttributeError(f"module 'cosyjit' has no attribute {name!r}")
        return import_module(f"cosyjit.{name}")

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
