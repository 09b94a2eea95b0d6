"""Programs on the board ask the deployed model over HTTP; everything else is refused with a sentence."""

from __future__ import annotations

import http.client
import io
import json
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.address import parse
from device_agent.data.source import Source
from device_agent.duty import Duty
from device_agent.endpoint import ROWS, Endpoint
from device_agent.serving import Serving, Teller
from device_agent.settings import Serve, Settings
from device_agent.shelf import FOLDER, InUse, Shelf
from tests.device_agent.toy_model import deployed, files, knowing, release, samples, wrong

X = [0.25, 1.0, 0.5, 9.0]
JSON, NPY = {"Content-Type": "application/json"}, {"Content-Type": "application/x-npy"}


class Asker:
    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
            assert reply.status == 200 or answer["error"]
            return reply.status, answer
        finally:
            connection.close()

    def infer(self, x: Any) -> tuple[int, dict[str, Any]]:
        return self("POST", "/infer", json.dumps({"x": x}), JSON)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Asker]:
    endpoint = Endpoint("127.0.0.1", 0, Teller(InUse(Shelf(tmp_path), "litert"), ("still", "walking", "running")))
    endpoint.open()
    yield Asker(endpoint.port)
    endpoint.close()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_without_a_model_everything_is_not_found(ask):
    assert ask("GET", "/model")[0] == 404
    status, answer = ask.infer(X)
    assert (status, answer["error"]) == (404, "no model is deployed on this device")


def test_a_sample_has_a_class_with_its_name_and_probabilities(ask, tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"))
    status, answer = ask.infer(X)
    assert (status, answer["version"]) == (200, "1.0")
    (found,) = answer["answers"]
    assert (found["class"], found["label"], len(found["probabilities"])) == (1, "walking", 3)
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_several_samples_have_as_many_answers(ask, tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"))
    x, y = samples(20)
    for status, answer in (ask.infer(x.tolist()), ask("POST", "/infer", npy(x), NPY)):
        assert status == 200
        assert [found["class"] for found in answer["answers"]] == y.tolist()


def test_bytes_are_scaled_as_for_training(ask, tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"))
    _, answer = ask("POST", "/infer", npy(np.array([[51, 255, 0, 0]], np.uint8)), NPY)
    powers = [math.exp(value) for value in (0.2, 1.0, 0.0)]
    expected = [power / sum(powers) for power in powers]
    assert answer["answers"][0]["probabilities"] == pytest.approx(expected, rel=1e-5)


def test_the_model_says_what_it_is_and_how_it_does(ask, tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"), width=0.5)
    ask.infer(X)
    _, found = ask("GET", "/model")
    assert (found["version"], found["width"], found["input"], found["answered"]) == ("1.0", 0.5, [4], 1)
    assert (found["run"], found["model_version"], found["labels"][2]) == ("toy-1", 3, "running")


def test_another_model_answers_as_soon_as_it_is_in_use(ask, tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"))
    assert ask.infer(X)[1]["answers"][0]["class"] == 1
    deployed(tmp_path, release(tmp_path / "fetched", 2, files(wrong())))
    _, answer = ask.infer(X)
    assert (answer["version"], answer["answers"][0]["class"]) == ("2.0", 2)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{", JSON, 422),
        ("[1, 2, 3, 4]", JSON, 422),
        ('{"x": 3}', JSON, 422),
        ('{"x": [[1, 2], [3]]}', JSON, 422),
        ('{"x": ["a", "b", "c", "d"]}', JSON, 422),
        ('{"x": [1, 2, 3]}', JSON, 422),
        ('{"x": [1, 2, 3, NaN]}', JSON, 422),
        ('{"x": [1, 2, 3, 1e999]}', JSON, 422),
        ('{"x": []}', JSON, 422),
        ("[" * 5000, JSON, 422),
        (b"", NPY, 422),
        (b"\x93NUMPY\x01\x00" + b"\xff" * 40, NPY, 422),
        (npy(np.zeros((1, 4), np.int64)), NPY, 422),
        (npy(np.array([{"a": 1}], object)), NPY, 422),
        (npy(np.zeros((ROWS + 1, 4), np.float32)), NPY, 413),
        (b"x" * 100_000, NPY, 413),
        ("{}", {"Content-Type": "text/plain"}, 415),
        ("{}", {**JSON, "Host": "evil.example"}, 403),
    ],
    ids=str,
)
def test_what_is_no_sample_is_refused(ask, tmp_path, body, headers, status):
    deployed(tmp_path, release(tmp_path / "fetched"))
    assert ask("POST", "/infer", body, headers)[0] == status


def test_a_body_that_claims_more_than_there_is_takes_no_memory(ask, tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 4)})
    assert ask("POST", "/infer", header.getvalue() + bytes(16), NPY)[0] == 422


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/infer", 405), ("POST", "/model", 405), ("GET", "/", 404), ("GET", "//[", 404), ("DELETE", "/model", 501),
])  # fmt: skip
def test_there_are_two_things_to_ask(ask, tmp_path, method, path, status):
    connection = http.client.HTTPConnection("127.0.0.1", ask.port, timeout=30)
    connection.request(method, path)
    assert connection.getresponse().status == status
    connection.close()


def test_without_a_length_nothing_is_read(ask, tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"))
    with socket.create_connection(("127.0.0.1", ask.port), timeout=30) as connection:
        connection.sendall(b"POST /infer HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.0 411 ")


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1", "[::1]:8751", "192.168.0.7:8751"])
def test_the_board_may_be_named_by_address(ask, tmp_path, host):
    deployed(tmp_path, release(tmp_path / "fetched"))
    assert ask("GET", "/model", None, {"Host": host})[0] == 200


@pytest.mark.parametrize("host", ["", "[", "localhost.evil.example", "evil.example:8751"])
def test_a_name_may_lead_anywhere(ask, tmp_path, host):
    deployed(tmp_path, release(tmp_path / "fetched"))
    assert ask("GET", "/model", None, {"Host": host})[0] == 403


def test_a_model_that_has_no_answer_says_so(ask, tmp_path):
    broken = knowing()
    broken["dense2.bias"][0] = np.nan
    deployed(tmp_path, release(tmp_path / "fetched", content=files(broken)))
    assert ask.infer(X)[0] == 503
    assert ask("GET", "/model")[1]["failed"] == 1


def test_a_damaged_model_says_so(ask, tmp_path):
    made = release(tmp_path / "fetched")
    deployed(tmp_path, made)
    (tmp_path / FOLDER / made.sha256 / "weights-1").write_bytes(b"")
    status, answer = ask.infer(X)
    assert status == 503
    assert "deploy 1.0 again" in answer["error"]


def test_a_port_that_is_taken_stops_nobody(tmp_path, ask, caplog):
    settings = Settings(home=tmp_path, serve=Serve(port=ask.port))
    nowhere = parse("http://127.0.0.1:1")
    duty = Duty(settings, Source(function="none:none"), nowhere, "litert", 0.0, lambda _: None)
    serving = Serving(settings, duty)
    serving.open()
    serving.close()
    assert f"serving-not host=127.0.0.1 port={ask.port}" in caplog.text


def test_labels_of_another_model_name_nothing(tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"))
    teller = Teller(InUse(Shelf(tmp_path), "litert"), ("yes", "no"))
    assert teller.answers(np.array(X, np.float32))["answers"][0]["label"] is None
    assert teller.about()["labels"] is None
