"""What OpenTelemetry is told of exports: spans, counters and times.

OpenTelemetry is imported where it may have been set up only: whoever sets it up has imported its API, or names a
provider in the environment. Elsewhere, nothing here does anything. Where to send the figures is the business of the
process, by OpenTelemetry's SDK; what goes wrong with that is for the debug log, and for no export.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, wraps
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from cosyjit.errors import line, log_cause
from cosyjit.text import plain, without_password, without_secrets

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry import trace as api
    from opentelemetry.context import Context
    from opentelemetry.metrics import Counter, Histogram

P = ParamSpec("P")
T = TypeVar("T")

Attributes = Mapping[str, str | Sequence[str]]
"""Of a span or a measurement, by names without the prefix "cosyjit."."""

_SCOPE: Final = "cosyjit"
"""By which backends tell our spans and metrics from others."""

_PROVIDERS: Final = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
"""The variables by which OpenTelemetry's API itself finds a provider."""

_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_STEP_SECONDS: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
_BYTES: Final = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9)
_ERRORS: Final = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The bounds between the buckets of histograms: those that OpenTelemetry has by default are for milliseconds."""


def _quietly(call: Callable[P, T]) -> Callable[P, T | None]:
    """Let a call of OpenTelemetry do nothing where that was not set up, and let its errors go no further."""

    @wraps(call)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T | None:
        if "opentelemetry" not in sys.modules and not any(map(os.environ.get, _PROVIDERS)):
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  (whatever the user's provider raises)
            log_cause(error)
            return None

    return tried


class _Instruments(NamedTuple):
    targets: "Counter"
    stage: "Histogram"
    size: "Histogram"
    error: "Histogram"
    step: "Histogram"


@cache
def _instruments() -> _Instruments:
    from opentelemetry import metrics

    meter = metrics.get_meter(_SCOPE, version("cosyjit"))

    def histogram(name: str, unit: str, description: str, bounds: Sequence[float]) -> "Histogram":
        return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

    return _Instruments(
        meter.create_counter("cosyjit.targets", "{target}", "Targets of exports, by what became of them"),
        histogram("cosyjit.stage.duration", "s", "Time of each stage of an export", _SECONDS),
        histogram("cosyjit.artifact.size", "By", "Size of each artifact that was built", _BYTES),
        histogram("cosyjit.artifact.error", "1", "Error of each artifact that was built, as it was verified", _ERRORS),
        histogram(
            "cosyjit.step.duration", "s", "Time of a decoding step of each artifact that was built", _STEP_SECONDS
        ),
    )


@cache
def _tracer() -> "api.Tracer":
    from opentelemetry import trace

    return trace.get_tracer(_SCOPE, version("cosyjit"))


class _Opened(NamedTuple):
    span: "api.Span"
    token: "Token[Context]"


@_quietly
def _open(name: str, attributes: Attributes) -> _Opened:
    """Begin a span, which spans of this thread that begin before its end are below."""
    from opentelemetry import context, trace

    span = _tracer().start_span(name, attributes=_prefixed(attributes))
    return _Opened(span, context.attach(trace.set_span_in_context(span)))


@_quietly
def _close(opened: _Opened, error: BaseException | None) -> None:
    from opentelemetry import context
    from opentelemetry.trace import Status, StatusCode

    context.detach(opened.token)
    if error is not None:
        opened.span.set_attribute("error.type", _type(error))
        opened.span.set_status(Status(StatusCode.ERROR, _text(error)))
    opened.span.end()


@_quietly
def _set(opened: _Opened, attributes: Attributes) -> None:
    opened.span.set_attributes(_prefixed(attributes))


@_quietly
def _note(text: str) -> None:
    """Add an event to the current span."""
    from opentelemetry import trace

    trace.get_current_span().add_event(plain(text))


@_quietly
def _time(seconds: float, attributes: Attributes, error: BaseException | None) -> None:
    _instruments().stage.record(seconds, _prefixed(attributes, error))


@_quietly
def count(
    attributes: Attributes, error: BaseException | None = None, figures: Mapping[str, float] | None = None
) -> None:
    """Count a target.

    Args:
        attributes: its component, its precision, and its state: built, cached or failed.
        error: why it failed; None if it did not.
        figures: those of the record of an artifact that was built; None if none was.
    """
    instruments = _instruments()
    instruments.targets.add(1, _prefixed(attributes, error))
    common = {name: value for name, value in attributes.items() if name != "state"}
    for name, value in (figures or {}).items():
        if name == "bytes":
            instruments.size.record(value, _prefixed(common))
        elif name == "step_seconds":
            instruments.step.record(value, _prefixed(common))
        elif name in {"absolute_error", "relative_error"}:
            instruments.error.record(value, _prefixed({**common, "measure": name.removesuffix("_error")}))


def _prefixed(attributes: Attributes, error: BaseException | None = None) -> dict[str, Any]:
    """Attributes by their full names; their text is escaped, since exporters fail on text that is not UTF-8."""
    more = {} if error is None else {"error.type": _type(error)}
    return {f"cosyjit.{name}": _shown(value) for name, value in attributes.items() if value} | more


def _shown(value: str | Sequence[str]) -> str | list[str]:
    if isinstance(value, str):
        return plain(without_password(value))
    return [plain(without_password(each)) for each in value]


def _type(error: BaseException) -> str:
    return type(error).__name__ if isinstance(error, Exception) else "interrupted"


def _text(error: BaseException) -> str:
    return without_secrets(line(error), os.environ) if isinstance(error, Exception) else "interrupted"


class Span:
    """A part of an export as a context manager: a span of a trace, which an error leaves with its text in one line."""

    def __init__(self, name: str, attributes: Attributes | None = None) -> None:
        self._name, self._attributes = name, attributes or {}
        self._opened: _Opened | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Span":  # noqa: PYI034  (typing has no Self on Python 3.10)
        self._opened = _open(self._name, self._attributes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            _close(self._opened, error or self._error)

    def fail(self, error: BaseException | None) -> None:
        """Let it end with an error, if there is one, although none leaves it."""
        self._error = self._error or error

    def set(self, attributes: Attributes) -> None:
        """Add attributes that are known in the end only."""
        if self._opened is not None:
            _set(self._opened, attributes)


class Stage(Span):
    """A part of an export whose time is measured besides; its name is that of the stage."""

    def __enter__(self) -> "Stage":  # noqa: PYI034  (as above)
        self._begun = time.perf_counter()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        _time(time.perf_counter() - self._begun, {**self._attributes, "stage": self._name}, error)


class Stages(Span):
    """The work on one target: a span, with one stage after the other below it."""

    def __init__(
        self, name: str, attributes: Attributes, more: Attributes, progress: Callable[[str], None] | None
    ) -> None:
        """Prepare the span.

        Args:
            name: of the span.
            attributes: of the span, and of each stage.
            more: of the span alone.
            progress: is told the names of the stages that `tell` is told.
        """
        super().__init__(name, {**attributes, **more})
        self._common, self._progress = attributes, progress
        self._stage = ExitStack()

    def __enter__(self) -> "Stages":  # noqa: PYI034  (as above)
        super().__enter__()
        return self

    def enter(self, stage: str) -> None:
        """Begin a stage, and end the one before."""
        self.leave()
        self._stage.enter_context(Stage(stage, self._common))

    def leave(self) -> None:
        """End the stage."""
        self._stage.close()

    def tell(self, stage: str) -> None:
        """Begin a stage that the progress is told of, too."""
        if ":" in stage:  # what came to light in the stage
            _note(stage)
        elif stage in {"built", "cached"}:
            self.leave()
        else:
            self.enter(stage)
        if self._progress is not None:
            self._progress(stage)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)
