"""Runtime artifacts of CosyVoice checkpoints: TorchScript zips, folders of language models, ONNX files.

import cosyjit

for outcome in cosyjit.export("CosyVoice-300M"):
    print(outcome.target.name, outcome.state, outcome.path)

Public are the names of this package (`cosyjit.__all__`), the errors in `cosyjit.errors` and the command `cosyjit`;
everything else is internal and may change in any release.
"""

TYPE_CHECKING = False  # that of typing: the command line takes signals before anything is imported
if TYPE_CHECKING:
    from cosyjit.building.artifact import Artifact
    from cosyjit.building.build import build
    from cosyjit.building.make import Outcome
    from cosyjit.building.preflight import obstacles, outdated_plans
    from cosyjit.errors import BuildError, CosyjitError, InputError
    from cosyjit.operations.copy_store import Copied, copy_store
    from cosyjit.operations.diff import Diff, Difference, diff
    from cosyjit.operations.gc import gc
    from cosyjit.operations.push import Pushed, push
    from cosyjit.operations.status import Shown, Status, status
    from cosyjit.operations.verify import Fault, verify_directory, verify_store
    from cosyjit.pipeline import Export, Exported, export, export_each
    from cosyjit.planning.plan import Planned, plan
    from cosyjit.planning.target import Target
    from cosyjit.provenance.fingerprint import Change
    from cosyjit.provenance.lineage import Lineage, lineage
    from cosyjit.provenance.record import Record
    from cosyjit.publishing.directory import PublishedDirectory, history, rollback
    from cosyjit.publishing.plans import OlderPlan, OutdatedPlan
    from cosyjit.publishing.publication import Publication, Published
    from cosyjit.store.store import Store

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "BuildError",
    "Change",
    "Copied",
    "CosyjitError",
    "Diff",
    "Difference",
    "Export",
    "Exported",
    "Fault",
    "InputError",
    "Lineage",
    "OlderPlan",
    "Outcome",
    "OutdatedPlan",
    "Planned",
    "Publication",
    "Published",
    "PublishedDirectory",
    "Pushed",
    "Record",
    "Shown",
    "Status",
    "Store",
    "Target",
    "build",
    "copy_store",
    "diff",
    "export",
    "export_each",
    "gc",
    "history",
    "lineage",
    "obstacles",
    "outdated_plans",
    "plan",
    "push",
    "rollback",
    "status",
    "verify_directory",
    "verify_store",
]

_HOMES = {
    "operations.verify": ("Fault", "verify_directory", "verify_store"),
    "building.artifact": ("Artifact",),
    "building.build": ("build",),
    "building.make": ("Outcome",),
    "building.preflight": ("obstacles", "outdated_plans"),
    "operations.copy_store": ("Copied", "copy_store"),
    "errors": ("BuildError", "CosyjitError", "InputError"),
    "operations.diff": ("Diff", "Difference", "diff"),
    "operations.gc": ("gc",),
    "operations.push": ("Pushed", "push"),
    "operations.status": ("Shown", "Status", "status"),
    "pipeline": ("Export", "Exported", "export", "export_each"),
    "planning.plan": ("Planned", "plan"),
    "planning.target": ("Target",),
    "publishing.plans": ("OlderPlan", "OutdatedPlan"),
    "publishing.publication": ("Publication", "Published"),
    "publishing.directory": ("PublishedDirectory", "history", "rollback"),
    "provenance.fingerprint": ("Change",),
    "provenance.lineage": ("Lineage", "lineage"),
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
