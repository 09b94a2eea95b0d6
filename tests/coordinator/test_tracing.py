"""Traces: what a check-in led to, span by span, also across a restart; nothing is imported where nothing is traced."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from coordinator import tracing
from coordinator.errors import ShoalError
from tests.training.house import House

trace = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")


@pytest.fixture
def exporter():
    return memory.InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    tracer = tracing.Tracer(trace.SimpleSpanProcessor(exporter), "here")
    yield tracer
    tracer.close()


@pytest.fixture
def house(tmp_path, migrated, tracer):
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated, home / "shoal.db")
    house = House(home)
    house.trace = tracer.tell
    yield house
    house.close()


def by_name(exporter, assignment):
    return {s.name: s for s in exporter.get_finished_spans() if s.attributes["shoal.assignment"] == assignment}


def test_a_check_in_leads_to_an_assignment_an_update_and_a_version(house, exporter):
    house.open()
    house.start_run()
    a, b = house.enrol("a", "b")
    first, second = a.check_in(), b.check_in()
    house.clock.now += 30
    a.deliver(first)
    house.reopened()
    b.deliver(second)
    spans = by_name(exporter, second.id)
    assert list(spans) == ["check-in", "assignment", "update", "version"]
    assert len({span.context.trace_id for span in spans.values()}) == 1
    for above, below in (("check-in", "assignment"), ("assignment", "update"), ("update", "version")):
        assert spans[below].parent.span_id == spans[above].context.span_id
    assert spans["check-in"].parent is None
    took = spans["assignment"].end_time - spans["assignment"].start_time
    assert took == pytest.approx(30e9, abs=1e6)
    told = spans["update"].attributes
    assert (told["shoal.device"], told["shoal.outcome"], told["shoal.samples"]) == ("b", "stored", 20)
    made = spans["version"]
    merged = {by_name(exporter, one.id)["update"].context.span_id for one in (first, second)}
    assert {link.context.span_id for link in made.links} == merged
    assert (made.attributes["shoal.version"], made.attributes["shoal.updates"]) == (1, 2)


def test_what_came_to_nothing_is_an_error_with_its_reason(house, exporter):
    house.open()
    house.start_run()
    a, b = house.enrol("a", "b")
    lost, bad = a.check_in(), b.check_in()
    b.deliver(bad, float("nan"))
    house.clock.now += 100  # the lease has run out
    house.until(lambda: "assignment" in by_name(exporter, lost.id))
    for one, said in ((lost, "lease"), (bad, "finite")):
        span = by_name(exporter, one.id)["assignment"]
        assert span.status.status_code.name == "ERROR"
        assert said in span.status.description


def test_two_coordinators_make_two_traces_of_assignments_of_one_name(exporter):
    here, there = (tracing.Tracer(trace.SimpleSpanProcessor(exporter), place) for place in ("here", "there"))
    ids = {one._context("check-in", "mlp-1.1").trace_id for one in (here, there)}
    assert len(ids) == 2


def test_where_the_extra_is_not_installed_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ShoalError, match=r"pip install 'shoal\[otel\]'"):
        tracing.connect("http://localhost:4318/v1/traces", "here")


def test_nothing_is_imported_where_nothing_is_traced():
    code = "import sys, coordinator.app; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
