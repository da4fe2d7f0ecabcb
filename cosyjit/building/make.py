"""Makes sure that the store has the artifact of one target, and stages it where it will be published."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cosyjit import telemetry
from cosyjit.building.build import build
from cosyjit.building.preflight import check_signer, published
from cosyjit.documents import now
from cosyjit.errors import BuildError, StoreError
from cosyjit.fs.waits import Wait
from cosyjit.planning.plan import Planned, compare_one, localize, remember
from cosyjit.planning.target import Target
from cosyjit.processes import worker
from cosyjit.processes.memory import reservations_directory, reserved
from cosyjit.processes.processors import processors
from cosyjit.processes.slots import Slots
from cosyjit.provenance import graphs, record
from cosyjit.provenance.record import Material, Record
from cosyjit.publishing.directory import PublishedDirectory
from cosyjit.store.store import Store
from cosyjit.torchscript.graph import Graph

_SLOTS: Final = Slots(processors())
"""One for each processor: this process builds no more at a time, whichever exports ask."""


@dataclass(frozen=True)
class Outcome:
    """What became of a target.

    Attributes:
        state: "cached" if the store had its artifact.
        reasons: why it was built; see `Planned`.
        record: that of its artifact; None if there is none.
        seconds: what that took, publishing apart.
        path: where the artifact is published; None if it is not.
        error: why it failed, in a line; None if it did not.
    """

    target: Target
    state: Literal["built", "cached", "failed"]
    reasons: tuple[str, ...] = ()
    record: Record | None = None
    seconds: float = 0.0
    path: Path | None = None
    error: str | None = None


def make(
    planned: Planned,
    store: Store,
    directory: PublishedDirectory | None,
    *,
    link: bool = False,
    memory: int | None = None,
    progress: worker.Progress | None = None,
    run: Mapping[str, str] | None = None,
    scope: worker.CancelScope | None = None,
    build: bool = True,
) -> Outcome:
    """Make sure that the store has a target's artifact, and stage it where it will be published.

    Args:
        planned: from `plan`, perhaps on another machine.
        store: entered with `Store.in_use`.
        directory: where it will be published; None if that is another machine's, which stages it when it publishes.
        link: see `PublishedDirectory.publish`.
        memory: what builds may take of this machine's at a time, in bytes; three quarters for None.
        progress: is told the name of each stage.
        run: the identifiers of the run that this is part of, for the record.
        scope: cancels this together with the rest of its export; None if nothing does.
        build: whether it may be built; otherwise that the store does not have it is an error.

    Raises:
        SignatureError: it has to be built, and there is no key for the signature that the store requires; or the store
            has a signed record of another artifact, which one without a signature does not replace.
        InputError: the model directory has changed since it was planned, or the store or the directory cannot be
            written to.
        BuildError: the process that built it was killed, the scope is cancelled, or it is not to be built.
    """
    scope = scope or worker.CancelScope()
    begun = time.perf_counter()
    target, found = planned.target, planned.record
    if found is None and not build:
        raise not_built_error(planned, store)
    with telemetry.Stages(f"build {target.name}", labels(target), _details(planned), progress) as stages:
        if found is None:
            stages.enter("wait")
            with _SLOTS.taken(scope), store.build_lock(target.fingerprint.key, waiting=scope.check):
                if "forced" not in planned.reasons:
                    found = compare_one(store, target, exporting=True).record  # another may have built it meanwhile
                state: Literal["built", "cached"] = "cached" if found else "built"
                if found is None:
                    check_signer([target], store)
                    wait = Wait("memory", store.wait, scope.check)
                    with reserved(reservations_directory(), target.memory_bytes, memory, wait=wait):
                        stages.enter("start")
                        graph = None if "forced" in planned.reasons else graphs.load(store, target.fingerprint)
                        found = _make(localize(target, store), store, graph, stages, run or {}, scope)
        else:
            state = "cached"
        if state == "cached":
            stages.tell("cached")
        stages.set({"state": state})
        remember(store, target)
        stages.enter("copy")
        try:
            if directory is None:
                with Path(os.devnull).open("wb") as nowhere:  # to check it: the publishing machine must find it intact
                    for digest in found.objects:
                        store.fetch(digest, nowhere)
            else:
                directory.stage(published(target, found), link=link)
        except StoreError:
            if state == "built" or store.check_all_or_set_aside(found.objects) == "intact":
                raise
            # The object was intact when it was planned, and is not now: build it.
            stages.leave()
            again = Planned(target, "stale", ("object missing or damaged",))
            return make(
                again, store, directory, link=link, memory=memory, progress=progress, run=run, scope=scope, build=build
            )
        return Outcome(target, state, planned.reasons, found, time.perf_counter() - begun)


def labels(target: Target) -> telemetry.Attributes:
    """By which measurements tell a target from others."""
    return {"component": target.component.name, "precision": target.precision.name}


def _details(planned: Planned) -> telemetry.Attributes:
    target = planned.target
    return {"source": target.source.pinned, "fingerprint": target.fingerprint.key, "reasons": planned.reasons}


def not_built_error(planned: Planned, store: Store) -> BuildError:
    """The error of a target that the store does not have, and that is not to be built."""
    why = "; ".join(planned.reasons) or planned.state
    return BuildError(f"is not in {store} ({why}), and --no-build builds nothing; export it into that store without it")


def _make(
    target: Target,
    store: Store,
    graph: Graph | None,
    stages: telemetry.Stages,
    run: Mapping[str, str],
    scope: worker.CancelScope,
) -> Record:
    """Build a target, and put it, its record and its graph into a store."""
    started = now()
    with ThreadPoolExecutor(1) as pool, store.staging() as work:
        materials = pool.submit(_materials, target, store)
        artifact = build(target, work, stages.tell, scope, graph)
        stages.enter("store")
        made = Record(
            name=target.file_name,
            sha256=artifact.sha256,
            files=artifact.files,
            fingerprint=target.fingerprint,
            component=target.component.name,
            source=target.source.pinned,
            materials=materials.result(),
            started=started,
            finished=now(),
            figures={
                "bytes": artifact.size,
                "weight_bytes": target.weight_bytes,
                "seconds": round(artifact.seconds, 3),
                **artifact.figures,
            },
            run=run,
        )
        for path, digest in artifact.objects.items():
            store.add(path, digest)
        saved = record.save(store, made)
        if artifact.graph is not None:
            graphs.save(store, target.fingerprint, artifact.graph)
        return saved


def _materials(target: Target, store: Store) -> tuple[Material, ...]:
    source, weights = target.source, target.weights_file.name
    digest = store.digests.sha256(source.file(weights))
    target.check_unchanged()
    configs = (Material(name, source.uri(name), each) for name, each in target.configs.items())
    return *configs, Material(weights, source.uri(weights), digest, str(target.reading))
