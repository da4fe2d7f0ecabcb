"""TorchScript artifacts of CosyVoice's encoders, for the runtime that loads them.

import cosyjit

for outcome in cosyjit.export("CosyVoice-300M"):
    print(outcome.target.name, outcome.state, outcome.path)
"""

TYPE_CHECKING = False  # that of typing: the command line takes signals before anything is imported
if TYPE_CHECKING:
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

_HOMES = {
    "audit": ("Fault", "audit_directory", "audit_store"),
    "building": ("Artifact", "build"),
    "copying": ("Copied", "copy_store"),
    "errors": ("BuildError", "CosyjitError", "InputError"),
    "gc": ("collect",),
    "inspection": ("Shown", "Status", "status"),
    "pipeline": ("Outcome", "export", "obstacles"),
    "planning": ("Planned", "Target", "plan"),
    "publication": ("Publication", "Published"),
    "publish": ("history", "rollback"),
    "record": ("Record",),
    "store": ("Store",),
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
