"""Carrying a body over a link that loses, repeats, reorders and breaks."""

from __future__ import annotations

import hashlib
import math
import random
import tracemalloc
from collections import deque

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.messages import Chunk, Receipt, Update
from protocol.transfer import (
    DELAY,
    MAX_CHUNK,
    MESSAGE_LIMIT,
    MIN_CHUNK,
    MOST,
    USUAL,
    Receiver,
    Sender,
    Window,
    chunk_size,
    described,
)
from protocol.wire import decode, encode, unframe

from .samples import EXAMPLES, QUICK

KIB = 1024
LIMIT = 1 << 20
WINDOW = 4


def announced(body: bytes, chunk: int) -> Update:
    return evolve(EXAMPLES[Update], size=len(body), sha256=hashlib.sha256(body).hexdigest(), chunk=chunk)


def receipt(receiver: Receiver) -> Receipt:
    """The missing list as it travels."""
    update = receiver.update
    message = Receipt(
        assignment=update.assignment, commit=update.commit, state="missing", sha256=update.sha256,
        missing=receiver.missing(), reason="",
    )  # fmt: skip
    return decode(Receipt, encode(message))


def session(sender: Sender, receiver: Receiver, rng: random.Random, breaks_after: float) -> list[int]:
    """One connection: announce, hear what is missing, send until it breaks or is over. Chunks that left, in order.

    The broker acknowledges in any order; a chunk it has acknowledged may still be lost, repeated or late.
    """
    update, body = unframe(Update, sender.announce())
    assert (update, body) == (receiver.update, b"")
    sender.missing(receipt(receiver).missing)
    flying: dict[int, bytes] = {}
    left: list[int] = []
    while not sender.idle:
        if len(left) >= breaks_after:
            return left
        ready = sender.frames(WINDOW)
        left += [index for index, _ in ready]
        flying.update(ready)
        assert 0 < len(flying) <= WINDOW
        index = rng.choice(list(flying))
        data = flying.pop(index)
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            message, piece = unframe(Chunk, data)
            receiver.chunk(message.index, piece)
        sender.arrived(index)
    return left


@QUICK
@given(
    st.integers(1, 60 * KIB),
    st.integers(MIN_CHUNK, 3 * MIN_CHUNK),
    st.lists(st.integers(0, 12), max_size=6),
    st.integers(0, 2**32),
)
def test_the_body_arrives_whole_and_only_what_is_missing_travels_again(size, chunk, breaks, seed):
    rng = random.Random(seed)
    body = rng.randbytes(size)
    update = announced(body, chunk)
    sender, receiver = Sender(update, body), Receiver(update, LIMIT)
    for breaks_after in [*breaks, *[math.inf] * 200]:
        lacking = [index for first, last in receiver.missing() for index in range(first, last + 1)]
        if not lacking:
            break
        left = session(sender, receiver, rng, breaks_after)
        assert len(set(left)) == len(left)
        assert set(left) <= set(lacking)
        if breaks_after == math.inf:
            assert left == lacking
    assert receiver.missing() == ()
    assert receiver.body() == body


def test_without_loss_every_chunk_travels_once_and_in_order():
    body = random.Random(0).randbytes(10 * MIN_CHUNK + 1)
    update = announced(body, MIN_CHUNK)
    sender, receiver = Sender(update, body), Receiver(update, LIMIT)
    sender.announce()
    sender.missing(receiver.missing())
    sent = []
    while not sender.idle:
        for index, data in sender.frames(WINDOW):
            message, piece = unframe(Chunk, data)
            assert (message.assignment, message.commit, message.index) == (update.assignment, update.commit, index)
            receiver.chunk(index, piece)
            sender.arrived(index)
            sent.append(index)
    assert sent == list(range(11))
    assert receiver.body() == body


def test_the_window_opens_by_acknowledgements_only():
    body = bytes(20 * MIN_CHUNK)
    sender = Sender(announced(body, MIN_CHUNK), body)
    sender.missing([(0, 19)])
    assert [index for index, _ in sender.frames(WINDOW)] == [0, 1, 2, 3]
    assert sender.frames(WINDOW) == []
    sender.arrived(2)
    sender.arrived(2)
    sender.arrived(17)
    assert [index for index, _ in sender.frames(WINDOW)] == [4]


def test_a_new_missing_list_repeats_nothing_that_is_on_its_way():
    body = bytes(20 * MIN_CHUNK)
    sender = Sender(announced(body, MIN_CHUNK), body)
    sender.missing([(0, 5)])
    sender.frames(WINDOW)
    sender.missing([(2, 4), (9, 9)])
    for index in range(4):
        sender.arrived(index)
    assert [index for index, _ in sender.frames(WINDOW)] == [4, 9]


def test_announcing_again_forgets_what_was_on_its_way():
    body = bytes(20 * MIN_CHUNK)
    sender = Sender(announced(body, MIN_CHUNK), body)
    sender.missing([(0, 5)])
    sender.frames(WINDOW)
    sender.announce()
    assert sender.idle
    sender.missing([(1, 1)])
    assert [index for index, _ in sender.frames(WINDOW)] == [1]


def test_chunks_the_body_does_not_have_are_not_sent():
    body = bytes(2 * MIN_CHUNK)
    sender = Sender(announced(body, MIN_CHUNK), body)
    sender.missing([(1, 1 << 53)])
    assert [index for index, _ in sender.frames(WINDOW)] == [1]


def test_a_small_body_travels_with_its_announcement():
    body = b"x" * 3000
    update = described(EXAMPLES[Update], body, None)
    sender, receiver = Sender(update, body), Receiver(update, LIMIT)
    message, piece = unframe(Update, sender.announce())
    assert message == update
    assert receiver.missing() == ((0, 0),)
    with pytest.raises(ProtocolError, match="1 chunks are missing"):
        receiver.body()
    receiver.whole(piece)
    assert receiver.missing() == ()
    assert receiver.body() == body
    sender.missing([(0, 0)])
    assert sender.idle


def test_described_fills_in_what_the_body_says():
    body = bytes(200 * KIB)
    update = described(EXAMPLES[Update], body, 100 * KIB)
    assert (update.size, update.chunk) == (200 * KIB, 4096)
    assert update.sha256 == hashlib.sha256(body).hexdigest()
    assert update.key == ("a-1", 1)


@pytest.mark.parametrize(
    ("size", "goodput", "chunk"),
    [
        (1, None, 0),
        (16 * KIB, None, 0),
        (16 * KIB + 1, None, 4 * KIB),
        (1 << 30, None, 4 * KIB),
        (96 * KIB, 1e9, 0),
        (96 * KIB + 1, 1e9, 96 * KIB),
        (1 << 20, math.inf, 96 * KIB),
        (30_000, 100_000.0, 0),  # 0.3 s of 100 kB/s hold 30 kB
        (30_001, 100_000.0, 4 * KIB),  # 3750 would be an eighth: never below 4 KiB
        (1 << 20, 1_000_000.0, 37_500),
        (1 << 20, 16_000.0, 4 * KIB),
        (4800, 16_000.0, 0),
        (4801, 16_000.0, 4 * KIB),
        (1, 0.0, 4 * KIB),
        (1, -1.0, 4 * KIB),
    ],
)
def test_chunk_sizes_by_hand(size, goodput, chunk):
    assert chunk_size(size, goodput) == chunk


@QUICK
@given(st.integers(1, 1 << 32), st.none() | st.floats(0, 1e12))
def test_a_full_window_keeps_the_link_busy_for_a_third_of_a_second_at_most(size, goodput):
    chunk = chunk_size(size, goodput)
    assert chunk == 0 or MIN_CHUNK <= chunk <= MAX_CHUNK
    if chunk == 0:
        assert size <= MESSAGE_LIMIT
    if goodput is not None and chunk > MIN_CHUNK:
        assert USUAL * chunk <= 0.3 * goodput
    Receiver(evolve(EXAMPLES[Update], size=min(size, LIMIT), chunk=chunk), LIMIT)


# -- the window


def carried(rates, chunk, *, distance=0.02, seconds=60.0):
    """Send through a link of so many bytes/s at a time (``distance``: s until an acknowledgement): what was carried in
    bytes, and the time that each byte in flight needed at its moment, in s."""
    window, now, busy_until = Window(), 0.0, 0.0
    window.alone(distance)
    flying: deque[tuple[float, int]] = deque()
    done, delays, index = 0, [], 0
    while now < seconds:
        while len(flying) < window.size:
            busy_until = max(busy_until, now) + chunk / rates(now)
            flying.append((busy_until + distance, index))
            window.sent(index, now)
            index += 1
            delays.append(busy_until - now)
        now, arrived = flying.popleft()
        window.arrived(arrived, now)
        done += chunk
    return done, sorted(delays)


@pytest.mark.parametrize(("distance", "used"), [(0.01, 0.75), (0.05, 0.5), (0.2, 0.2)])
@pytest.mark.parametrize("rate", [16e3, 50e3, 125e3, 1e6, 5e6])
def test_the_window_fills_a_steady_link_and_delays_by_a_third_of_a_second_at_most(rate, distance, used):
    """``used``: the least share of the link; with so little in flight a long way cannot be filled."""
    done, delays = carried(lambda _: rate, chunk_size(1 << 30, rate), distance=distance)
    assert delays[-1] <= DELAY
    assert done > used * 60 * rate


def test_where_one_chunk_alone_takes_too_long_one_alone_travels():
    window = Window()
    for index in range(20):
        window.sent(index, index)
        window.arrived(index, index + 0.9)
    assert window.size == 1


def test_a_link_that_becomes_slow_is_relieved_at_once_and_filled_again_later():
    def rate(now):
        return 1e6 if now < 20 or now > 40 else 50e3

    done, delays = carried(rate, 12_500)
    late = sum(delay > DELAY for delay in delays)
    assert late <= 3 * MOST, "those that were in flight when it changed"
    assert done > 0.6 * (40 * 1e6 + 20 * 50e3) * min(1, MOST * 12_500 / 1e6 / 0.02)


def test_a_late_flight_counts_once():
    window = Window()
    for index in range(12):
        window.sent(index, 0.0)
        window.arrived(index, 0.0)
    before = window.size
    assert before >= 4
    for index in range(10, 14):
        window.sent(index, 1.0)
    window.arrived(10, 1.1)
    assert window.size == before // 2
    for index in range(11, 14):
        window.arrived(index, 2.0)
    assert window.size == before // 2


def test_acknowledgements_of_what_was_never_sent_change_nothing():
    window = Window()
    window.arrived(5, 1.0)
    window.sent(1, 1.0)
    window.forget()
    window.arrived(1, 1.1)
    assert window.size == 1


# -- the receiver's limits


@pytest.mark.parametrize(
    ("size", "chunk", "sentence"),
    [
        (LIMIT + 1, MIN_CHUNK, "announces 1048577 bytes, at most 1048576 are expected"),
        (1 << 32, MAX_CHUNK, "announces 4294967296 bytes"),
        (1000, 1, "chunks of 1 bytes are announced, expected 4096 to 98304"),
        (1000, MIN_CHUNK - 1, "chunks of 4095 bytes"),
        (1000, MAX_CHUNK + 1, "chunks of 98305 bytes"),
        (MESSAGE_LIMIT + 1, 0, "a body of 98305 bytes is too large for one message of 98304"),
    ],
)
def test_what_is_announced_is_checked_before_anything_is_allocated(size, chunk, sentence):
    update = evolve(EXAMPLES[Update], size=size, chunk=chunk)
    tracemalloc.start()
    with pytest.raises(ProtocolError, match=sentence):
        Receiver(update, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    ("index", "data", "sentence"),
    [
        (3, b"", "chunk 3 was not announced, there are 3"),
        (1 << 53, b"", "was not announced"),
        (-1, bytes(1), "chunk -1 was not announced"),
        (0, b"", "chunk 0 has 0 bytes, expected 4096"),
        (0, bytes(MIN_CHUNK + 1), "chunk 0 has 4097 bytes, expected 4096"),
        (2, bytes(MIN_CHUNK), "chunk 2 has 4096 bytes, expected 1"),
    ],
)
def test_chunks_that_were_not_announced_are_refused(index, data, sentence):
    receiver = Receiver(announced(bytes(2 * MIN_CHUNK + 1), MIN_CHUNK), LIMIT)
    with pytest.raises(ProtocolError, match=sentence):
        receiver.chunk(index, data)
    assert receiver.missing() == ((0, 2),)


def test_whole_and_chunked_bodies_do_not_mix():
    chunked, whole = Receiver(announced(bytes(5000), MIN_CHUNK), LIMIT), Receiver(announced(bytes(5000), 0), LIMIT)
    with pytest.raises(ProtocolError, match="a body of 5000 bytes came whole"):
        chunked.whole(bytes(5000))
    with pytest.raises(ProtocolError, match="a body of 4999 bytes came whole, 5000 were announced"):
        whole.whole(bytes(4999))
    with pytest.raises(ProtocolError, match="chunk 0 was not announced"):
        whole.chunk(0, bytes(5000))


def test_missing_ranges_by_hand():
    receiver = Receiver(announced(bytes(8 * MIN_CHUNK), MIN_CHUNK), LIMIT)
    assert receiver.missing() == ((0, 7),)
    for index in (0, 3, 4, 6):
        receiver.chunk(index, bytes(MIN_CHUNK))
    assert receiver.missing() == ((1, 2), (5, 5), (7, 7))
    with pytest.raises(ProtocolError, match="4 chunks are missing"):
        receiver.body()


def test_at_most_a_thousand_ranges_are_asked_for_at_once():
    receiver = Receiver(announced(bytes(2400 * MIN_CHUNK), MIN_CHUNK), 16 << 20)
    for index in range(0, 2400, 2):
        receiver.chunk(index, bytes(MIN_CHUNK))
    assert len(receiver.missing()) == 1000
    assert receipt(receiver).missing == receiver.missing() == tuple((n, n) for n in range(1, 2000, 2))


def test_a_body_with_another_hash_is_missing_again():
    body = bytes(2 * MIN_CHUNK)
    receiver = Receiver(announced(body, MIN_CHUNK), LIMIT)
    receiver.chunk(0, b"x" * MIN_CHUNK)
    receiver.chunk(1, bytes(MIN_CHUNK))
    with pytest.raises(ProtocolError, match="sha256 is not the announced one"):
        receiver.body()
    assert receiver.missing() == ((0, 1),)
    for index in (1, 0):
        receiver.chunk(index, bytes(MIN_CHUNK))
    assert receiver.body() == body


def test_a_repeated_chunk_changes_nothing():
    body = random.Random(1).randbytes(2 * MIN_CHUNK)
    receiver = Receiver(announced(body, MIN_CHUNK), LIMIT)
    for index in (1, 1, 0, 1, 0):
        receiver.chunk(index, body[index * MIN_CHUNK :][:MIN_CHUNK])
    assert receiver.body() == receiver.body() == body
