"""OpenTelemetry spans of the way from a check-in over its assignment and update to a version; the extra ``otel``.

One assignment is one trace: ``check-in`` → ``assignment`` → ``update`` → ``version``, the last with links to every
update it merged. Spans are told once what they speak of is committed. Their ids follow from the assignment's, so that a
trace is one although hours, and a restart, may lie in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from coordinator import __version__
from coordinator.errors import ShoalError
from coordinator.training.inputs import Closed, Effect, Offered, Settled, Versioned

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import SpanContext

MISSING: Final = "The setting traces needs OpenTelemetry: pip install 'shoal[otel]'"


class Tracer:
    """Belongs to the steward's thread. ``instance`` tells coordinators apart whose assignments have the same names."""

    def __init__(self, processor: SpanProcessor, instance: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Chosen(RandomIdGenerator):
            """The ids of the next span, as they are put down here."""

            trace_id = span_id = 0

            def generate_trace_id(self) -> int:
                return self.trace_id or super().generate_trace_id()

            def generate_span_id(self) -> int:
                return self.span_id or super().generate_span_id()

        self._ids = Chosen()
        self._instance = instance
        about = Resource.create({"service.name": "shoal-coordinator", "service.version": __version__})
        self._provider = TracerProvider(resource=about, id_generator=self._ids)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("shoal", __version__)

    def close(self) -> None:
        """Send what is waiting."""
        self._provider.shutdown()

    def tell(self, run: str, effect: Effect, now: float, offered: float | None) -> None:
        """What an engine decided at ``now``, about an assignment that was ``offered`` then (seconds since 1970)."""
        match effect:
            case Offered(again=False):
                told = {"version": effect.version, "width": effect.plan.width, "device": effect.device}
                self._span("check-in", effect.assignment, None, now, time.time(), {"run": run, **told})
            case Settled():
                self._settled(run, effect, now, now if offered is None else offered)
            case Closed():
                told = {"run": run, "device": effect.device, "state": effect.state, "reason": effect.reason}
                began = now if offered is None else offered
                self._span("assignment", effect.assignment, "check-in", began, now, told, failed=effect.reason)
            case Versioned():
                keys = [one.key.rpartition("/")[0] for one in effect.contributors]
                told = {"run": run, "version": effect.version, "updates": len(keys), "step_norm": effect.step_norm}
                if keys:
                    self._span("version", keys[-1], "update", now, time.time(), told, merged=keys)

    def _settled(self, run: str, effect: Settled, now: float, offered: float) -> None:
        sent = effect.update
        about = {"run": run, "device": effect.device, "outcome": effect.outcome}
        failed = "" if effect.outcome == "stored" else effect.reason
        self._span("assignment", sent.assignment, "check-in", offered, now, about, failed=failed)
        told: dict[str, Any] = {"commit": sent.commit, "samples": sent.samples, "steps": sent.steps, "loss": sent.loss}
        told |= {"bytes": sent.size, "seconds_download": sent.timings.download, "seconds_train": sent.timings.train}
        if effect.staleness is not None:
            told["staleness"] = effect.staleness
        began = now - (sent.timings.upload or 0.0)
        self._span("update", sent.assignment, "assignment", began, now, {**about, **told}, failed=failed)

    def _span(
        self,
        name: str,
        assignment: str,
        parent: str | None,
        began: float,
        ended: float,
        told: dict[str, Any],
        *,
        failed: str = "",
        merged: Sequence[str] = (),
    ) -> None:
        from opentelemetry import trace

        above = trace.set_span_in_context(trace.NonRecordingSpan(self._context(parent, assignment))) if parent else None
        self._ids.trace_id, self._ids.span_id = self._id("trace", assignment, 16), self._id(name, assignment, 8)
        span = self._tracer.start_span(
            name,
            context=above,
            start_time=int(began * 1e9),
            attributes={"shoal.assignment": assignment, **{f"shoal.{key}": value for key, value in told.items()}},
            links=[trace.Link(self._context("update", key)) for key in merged],
        )
        if failed:
            span.set_status(trace.Status(trace.StatusCode.ERROR, failed))
        span.end(int(ended * 1e9))

    def _context(self, name: str, assignment: str) -> SpanContext:
        from opentelemetry.trace import SpanContext, TraceFlags

        ids = self._id("trace", assignment, 16), self._id(name, assignment, 8)
        return SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    def _id(self, name: str, assignment: str, size: int) -> int:
        text = "\n".join((self._instance, assignment, name))
        return int.from_bytes(blake2b(text.encode(), digest_size=size).digest())


def connect(url: str, instance: str) -> Tracer:
    """Sends spans to a collector by OTLP over HTTP. ShoalError bad-request without the extra."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ShoalError("bad-request", MISSING) from error
    return Tracer(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)), instance)
