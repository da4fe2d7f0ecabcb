"""What OpenTelemetry's SDK is told: in this process, or over HTTP by another one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import StatusCode

from tests.support.http import Asked, answering

DELTA: Final = AggregationTemporality.DELTA


class Measured(NamedTuple):
    """What a metric has of one set of attributes: the sum, and of a histogram how many measurements that is of."""

    attributes: dict[str, Any]
    sum: float
    number: int


class Told(SpanProcessor):
    """The providers of this process, which can be set once, and what they are told in each test.

    Attributes:
        spans: those that have ended.
        broken: whether the provider of spans raises whenever it is told something.
    """

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.broken = False
        self._reader = InMemoryMetricReader({Counter: DELTA, Histogram: DELTA})
        metrics.set_meter_provider(MeterProvider([self._reader]))
        provider = TracerProvider()
        provider.add_span_processor(self)
        trace.set_tracer_provider(provider)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        if self.broken:
            raise RuntimeError("the provider is broken")

    def on_end(self, span: ReadableSpan) -> None:
        if self.broken:
            raise RuntimeError("the provider is broken")
        self.spans.append(span)

    def clear(self) -> None:
        """Forget all that was told."""
        self.broken = False
        self.spans.clear()
        self.measured()

    def own(self) -> list[ReadableSpan]:
        """Cosyjit's spans, in the order in which they began."""
        ours = [
            span for span in self.spans if span.instrumentation_scope and span.instrumentation_scope.name == "cosyjit"
        ]
        return sorted(ours, key=lambda span: span.start_time or 0)

    def below(self, parent: ReadableSpan | None) -> list[str]:
        """The names of cosyjit's spans right below one; of those that are below none, for None."""
        above = parent.context.span_id if parent else None
        return [span.name for span in self.own() if (span.parent.span_id if span.parent else None) == above]

    def span(self, name: str) -> ReadableSpan:
        """Cosyjit's one span of a name."""
        (found,) = (span for span in self.own() if span.name == name)
        return found

    def failed(self) -> dict[str, tuple[str, str | None]]:
        """The type and the text of the error of each span that has one, by its name."""
        return {
            span.name: (str((span.attributes or {})["error.type"]), span.status.description)
            for span in self.own()
            if span.status.status_code is StatusCode.ERROR
        }

    def measured(self) -> dict[str, list[Measured]]:
        """What was measured since the last call, by the names of the metrics."""
        data = self._reader.get_metrics_data()
        scopes = [each for resource in data.resource_metrics for each in resource.scope_metrics] if data else []
        return {
            metric.name: [
                Measured(
                    {name.removeprefix("cosyjit."): value for name, value in (point.attributes or {}).items()},
                    getattr(point, "sum", getattr(point, "value", 0)),
                    getattr(point, "count", 1),
                )
                for point in metric.data.data_points
            ]
            for scope in scopes
            if scope.scope.name == "cosyjit"
            for metric in scope.metrics
        }


class Received(NamedTuple):
    """What other processes have sent to a collector.

    Attributes:
        endpoint: the collector's address.
        asked: the requests.
    """

    endpoint: str
    asked: Sequence[Asked]

    def spans(self) -> dict[str, str]:
        """The messages of the states of all spans, by their names."""
        requests = [ExportTraceServiceRequest.FromString(each.body) for each in self.asked if "traces" in each.path]
        scopes = [each for request in requests for resource in request.resource_spans for each in resource.scope_spans]
        return {span.name: span.status.message for scope in scopes for span in scope.spans}

    def metrics(self) -> set[str]:
        """The names of all metrics."""
        requests = [ExportMetricsServiceRequest.FromString(each.body) for each in self.asked if "metrics" in each.path]
        scopes = [each for one in requests for resource in one.resource_metrics for each in resource.scope_metrics]
        return {metric.name for scope in scopes for metric in scope.metrics}


@contextmanager
def collecting() -> Iterator[Received]:
    """A collector on loopback, which takes OTLP over HTTP."""
    with answering(lambda _: (200, b"")) as (address, asked):
        yield Received(address, asked)
