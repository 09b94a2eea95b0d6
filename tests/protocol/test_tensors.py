"""Named arrays as bytes: the safetensors layout, read strictly."""

from __future__ import annotations

import json
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol.errors import ProtocolError
from protocol.tensors import DTYPES, MAX_HEADER, decode, encode

from .mutation import ROUNDS, damage, damage_json, read_or_refused
from .samples import QUICK

shapes = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
arrays = st.sampled_from(list(DTYPES.values())).flatmap(lambda dtype: npst.arrays(dtype, shapes))
texts = st.text(max_size=20)
named = st.dictionaries(texts.filter(lambda name: name != "__metadata__"), arrays, max_size=5)

HEADER = (
    b'{"__metadata__":{"k":"v"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    b'"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}'
)
HEADER = HEADER.ljust(-(-len(HEADER) // 8) * 8)
FILE = len(HEADER).to_bytes(8, "little") + HEADER + bytes.fromhex("0000803f 000000c0 01ff7f")


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@QUICK
@given(named, st.dictionaries(texts, texts, max_size=3))
def test_arrays_and_metadata_come_back_bit_by_bit(tensors, metadata):
    back, found = decode(encode(tensors, metadata))
    assert same(back, tensors)
    assert found == metadata


@QUICK
@given(named)
def test_every_array_starts_aligned(tensors):
    data = encode(tensors)
    back, _ = decode(data)
    assert int.from_bytes(data[:8], "little") % 8 == 0
    base = np.frombuffer(data, np.uint8).ctypes.data
    assert all((array.ctypes.data - base) % array.itemsize == 0 for array in back.values() if array.size)


def test_a_file_by_hand():
    tensors = {"b": np.array([1, -1, 127], np.int8), "w": np.array([[1, -2]], np.float32)}
    assert encode(tensors, {"k": "v"}) == FILE
    back, metadata = decode(FILE)
    assert same(back, tensors)
    assert metadata == {"k": "v"}


def test_nothing_is_a_file_too():
    assert encode({}) == b"\x08\0\0\0\0\0\0\0{}      "
    assert decode(encode({})) == ({}, {})


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_memory_layout_and_byte_order_do_not_matter(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    for odd in (np.asfortranarray(array), array[::-1][::-1], array.astype(dtype.newbyteorder(">"))):
        assert encode({"w": odd}) == encode({"w": array})
    assert same(decode(encode({"w": array.T}))[0], {"w": np.ascontiguousarray(array.T)})


def test_decoded_arrays_are_read_only_views():
    data = encode({"w": np.ones(4, np.float32)})
    array = decode(data)[0]["w"]
    assert not array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    "array",
    [np.zeros(1, np.float64), np.zeros(1, bool), np.zeros(1, np.int64), np.zeros(1, object), np.zeros(1, "U4")],
    ids=lambda array: str(array.dtype),
)
def test_other_dtypes_are_not_encoded(array):
    with pytest.raises(ProtocolError, match=r"tensor 'w' of dtype .* cannot be encoded, only F32"):
        encode({"w": array})


def test_what_could_not_be_read_back_is_not_encoded():
    with pytest.raises(ProtocolError, match="'__metadata__'"):
        encode({"__metadata__": np.zeros(1, np.float32)})
    with pytest.raises(ProtocolError, match="9 axes, at most 8"):
        encode({"w": np.zeros((1,) * 9, np.float32)})
    with pytest.raises(ProtocolError, match="over the limit of 1048576"):
        encode({}, {"k": "x" * MAX_HEADER})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "0 bytes are too few"),
        (b"\0" * 7, "7 bytes are too few"),
        (b"\xff" * 16, "a tensor header of 18446744073709551615 bytes is claimed"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b" " * (MAX_HEADER + 1), "header of 1048577 bytes is claimed"),
        (packed(b""), "not JSON that can be read"),
        (packed(b"\xff\xfe"), "not JSON that can be read"),
        (packed(b"{"), "not JSON that can be read"),
        (packed(b"[" * 100_000), "not JSON that can be read"),
        (packed(b'{"w":' + b"9" * 5000 + b"}"), "not JSON that can be read"),
        (packed(b"[]"), "not a JSON object"),
        (packed(b'{"w":1,"w":1}'), "names something twice"),
        (packed({"__metadata__": {"a": 1}}), "metadata is not an object of strings"),
        (packed({"__metadata__": []}), "metadata is not an object of strings"),
        (packed({"w": 1}), "'w' needs exactly dtype, shape and data_offsets"),
        (packed({"w": entry() | {"odd": 1}}, bytes(8)), "'w' needs exactly"),
        (packed({"w": entry("F64")}, bytes(8)), "'w' has dtype 'F64', expected one of F32"),
        (packed({"w": entry(["F32"])}, bytes(8)), "'w' has dtype"),
        (packed({"w": entry(shape=[2.0])}, bytes(8)), "'w' has shape"),
        (packed({"w": entry(shape=[True, 2])}, bytes(8)), "'w' has shape"),
        (packed({"w": entry(shape=[-2])}, bytes(8)), "'w' has shape"),
        (packed({"w": entry(shape=[1] * 8 + [2])}, bytes(8)), "'w' has shape"),
        (packed({"w": entry() | {"shape": None}}, bytes(8)), "'w' has shape None"),
        (packed({"w": entry(offsets=[0])}, bytes(8)), "'w' has data_offsets"),
        (packed({"w": entry(offsets=[0, 8, 8])}, bytes(8)), "'w' has data_offsets"),
        (packed({"w": entry(offsets=[0, "8"])}, bytes(8)), "'w' has data_offsets"),
        (packed({"w": entry(offsets=[8, 0])}, bytes(8)), "does not fit"),
        (packed({"w": entry(shape=[3])}, bytes(12)), "does not fit"),
        (packed({"w": entry(shape=[0, 1 << 39, 1 << 39], offsets=[0, 0])}), "does not fit"),
        (packed({"w": entry(offsets=[4, 12])}, bytes(12)), "'w' begins at byte 4, expected 0"),
        (packed({"a": entry(), "w": entry(offsets=[4, 12])}, bytes(12)), "'w' begins at byte 4, expected 8"),
        (packed({"a": entry(), "w": entry()}, bytes(8)), "begins at byte 0, expected 8"),
        (packed({"w": entry()}, bytes(9)), "take 8 bytes, but 9 are there"),
        (packed({"w": entry()}, bytes(7)), "take 8 bytes, but 7 are there"),
        (packed({}, b"x"), "take 0 bytes, but 1 are there"),
    ],
)
def test_anything_else_is_refused(data, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        decode(data)


def test_a_deeply_nested_header_is_refused_in_a_short_sentence():
    for depth in (10, 300, 600, 900):
        shape = b"[" * depth + b"]" * depth
        data = packed(b'{"w":{"dtype":"F32","shape":%s,"data_offsets":[0,8]}}' % shape, bytes(8))
        with pytest.raises(ProtocolError) as refusal:
            decode(data)
        assert len(str(refusal.value)) < 300


def test_an_announced_size_is_not_allocated():
    for shape, offsets in (([1 << 37], [0, 1 << 39]), ([1 << 19, 1 << 18], [0, 1 << 39])):
        data = packed({"w": entry(shape=shape, offsets=offsets)}, bytes(64))
        tracemalloc.start()
        with pytest.raises(ProtocolError):
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def test_the_reference_implementation_reads_our_files_and_we_read_its():
    reference = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "q": np.array([-1, 2], np.int8)}
    assert same(reference.load(encode(tensors, {"k": "v"})), tensors)
    assert same(decode(reference.save(tensors))[0], tensors)


# -- damage

VALID = [
    FILE,
    encode({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "w.scale": np.ones(3, np.float32)}, {"run": "r-1"}),
    encode({"s": np.float32(1).reshape(()), "e": np.zeros((0, 3), np.uint16), "q": np.arange(5, dtype=np.int8)}),
]


def _judge(data: bytes) -> bool:
    back = read_or_refused(decode, data)
    if back is None:
        return False
    again, metadata = decode(encode(*back))
    assert same(again, back[0])
    assert metadata == back[1]
    return True


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_damaged_file_is_a_valid_one_or_a_protocol_error(rounds):
    rng = random.Random(4)
    valid = sum(_judge(damage(rng, rng.choice(VALID), rng.choice(VALID))) for _ in range(rounds))
    assert 0 < valid < rounds / 2


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_damaged_header_is_a_valid_one_or_a_protocol_error(rounds):
    rng = random.Random(5)
    valid = 0
    for _ in range(rounds):
        file = rng.choice(VALID)
        end = 8 + int.from_bytes(file[:8], "little")
        valid += _judge(packed(damage_json(rng, json.loads(file[8:end])), file[end:]))
    assert 0 < valid < rounds / 2
