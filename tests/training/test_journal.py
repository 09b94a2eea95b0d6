"""Every input as a row and back."""

from __future__ import annotations

import json

import pytest
from attrs import evolve

from coordinator.training.inputs import Departed, Evaluated, Operated, Rejected, Ticked
from coordinator.training.journal import from_row, to_row
from protocol.errors import ProtocolError

from .scene import check_in, engine, offer, trained

UPDATE = trained(offer(engine()))
PLAIN = [
    check_in("pi", held="run-1.1", unsent=("run-1.2",), group="kitchen"),
    Rejected("pi", UPDATE.update, "too large"),
    Evaluated(3, 0.1, 1.0000000000000002),
    Ticked(),
    Departed("pi"),
    Operated("pause", "ada"),
]


def no_body(segment, offset, size):
    raise AssertionError("there is no body to read")


@pytest.mark.parametrize("given", PLAIN, ids=lambda given: type(given).__name__)
def test_an_input_survives_the_journal(given):
    kind, body = to_row(given)
    assert from_row(kind, json.loads(json.dumps(body, allow_nan=False)), no_body) == given


def test_an_updates_body_is_read_from_where_it_was_put():
    kind, body = to_row(UPDATE, (3, 700))
    read = {(3, 700, UPDATE.update.size): UPDATE.body}
    assert from_row(kind, json.loads(json.dumps(body)), lambda *place: read[place]) == UPDATE
    assert "body" not in body


def test_an_update_without_a_place_is_no_row():
    with pytest.raises(ValueError, match="place of its body"):
        to_row(UPDATE)


def test_every_kind_has_a_name_of_its_own():
    assert len({to_row(given, (1, 0))[0] for given in [*PLAIN, UPDATE]}) == len(PLAIN) + 1


def test_a_kind_of_another_version_is_refused():
    with pytest.raises(ProtocolError, match="an input of kind 'computed' is unknown"):
        from_row("computed", {}, no_body)


def test_a_row_that_was_tampered_with_is_refused():
    kind, body = to_row(UPDATE, (1, 0))
    with pytest.raises(ProtocolError, match=r"Update\.steps"):
        from_row(kind, evolve_json(body, "steps", "5"), no_body)


def evolve_json(body, name, value):
    return body | {"update": body["update"] | {name: value}}


def test_bodies_stay_out_of_sentences():
    assert "body" not in repr(evolve(UPDATE, body=b"secret"))
