"""Subnetworks: cutting, lifting and adding agree with each other and with indices counted by hand."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.subnetwork import (
    CLASSES,
    FULL,
    WIDTHS,
    Axis,
    Region,
    Subnetwork,
    counted,
    groups,
    layout_from_json,
    layout_to_json,
    nested,
)
from protocol.wire import parse_json

from .mutation import ROUNDS, damage_json, read_or_refused
from .samples import QUICK, layouts

# conv 3 → 4 channels, flatten of 2 positions, dense 4 → 3 classes
LAYOUT = {
    "conv": (Axis(2), Axis(3), Axis(4, "c")),
    "dense": (Axis(8, "c", repeat=2), Axis(3, CLASSES)),
    "bias": (Axis(3, CLASSES),),
}


@st.composite
def regions(draw):
    """A region of a random layout: nested, by counts, by lists, or mixed."""
    layout = draw(layouts())
    channels = {}
    for group, full in groups(layout).items():
        match draw(st.integers(0, 2)):
            case 0:
                channels[group] = draw(st.integers(1, full))
            case 1:
                channels[group] = tuple(draw(st.permutations(range(full)))[: draw(st.integers(1, full))])
    return Region(layout, Subnetwork(channels))


def full_size(layout, seed):
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal([axis.size for axis in axes]), np.float32) for name, axes in layout.items()
    }


def equal(a, b):
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and np.array_equal(a[name], b[name]) for name in a
    )


def kept_indices(axis, subnetwork):
    """The definition, element by element: channel c at position q stands at q·channels + c, parts one after another."""
    if axis.parts:
        once, start = [], 0
        for part in axis.parts:
            once += [start + i for i in kept_indices(part, subnetwork)]
            start += part.size
        return [q * axis.channels + i for q in range(axis.repeat) for i in once]
    channels = subnetwork.channels.get(axis.group, axis.channels) if axis.group is not None else axis.channels
    listed = range(channels) if isinstance(channels, int) else channels
    return [q * axis.channels + c for q in range(axis.repeat) for c in listed]


@QUICK
@given(regions(), st.integers(0, 99))
def test_a_cut_takes_the_elements_of_the_definition(region, seed):
    full = full_size(region.layout, seed)
    part = region.cut(full)
    region.check(part)
    for name, axes in region.layout.items():
        indices = np.ix_(*[kept_indices(axis, region.subnetwork) for axis in axes])
        assert np.array_equal(part[name], full[name][indices] if axes else full[name])
    assert region.parameters == sum(value.size for value in part.values())


@QUICK
@given(regions(), st.integers(0, 99))
def test_lifting_and_cutting_again_gives_the_part_back(region, seed):
    part = region.cut(full_size(region.layout, seed))
    lifted = region.lift(part)
    assert equal(region.cut(lifted), part)
    covered = region.coverage()
    for name, value in lifted.items():
        assert value.dtype == np.float32
        assert covered[name].dtype == bool
        assert value.shape == covered[name].shape == tuple(axis.size for axis in region.layout[name])
        assert not value[~covered[name]].any()
        assert covered[name].sum() == part[name].size


@QUICK
@given(regions(), st.integers(0, 99), st.sampled_from([1.0, -1.0, 0.5, 0.3]))
def test_adding_is_lifting_and_adding(region, seed, scale):
    total, part = full_size(region.layout, seed), region.cut(full_size(region.layout, seed + 1))
    lifted = region.lift(part)
    expected = {name: total[name] + np.float32(scale) * lifted[name] for name in total}
    same = dict(total)
    region.add(total, part, scale)
    assert equal(total, expected)
    assert all(total[name] is same[name] for name in total)


@QUICK
@given(regions())
def test_filling_raises_the_covered_weight_only(region):
    weight = {name: np.full([axis.size for axis in axes], 2, np.float32) for name, axes in region.layout.items()}
    region.fill(weight, 0.5)
    for name, covered in region.coverage().items():
        assert np.array_equal(weight[name], np.where(covered, np.float32(2.5), np.float32(2)))


@QUICK
@given(layouts(), st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True))
def test_a_smaller_width_lies_inside_a_larger_one(layout, a, b):
    small, large = (nested(layout, width) for width in sorted((a, b)))
    inner, outer = Region(layout, small).coverage(), Region(layout, large).coverage()
    assert all((inner[name] <= outer[name]).all() for name in layout)
    for group, full in groups(layout).items():
        assert 1 <= small.count(group, full) <= large.count(group, full) <= full


@QUICK
@given(layouts())
def test_width_one_and_full_keep_everything(layout):
    for subnetwork in (FULL, nested(layout, 1.0)):
        assert all(covered.all() for covered in Region(layout, subnetwork).coverage().values())


@QUICK
@given(layouts(), st.data())
def test_a_list_of_the_first_channels_is_the_same_as_their_count(layout, data):
    counts = {group: data.draw(st.integers(1, full)) for group, full in groups(layout).items()}
    by_count = Region(layout, Subnetwork(counts))
    by_list = Region(layout, Subnetwork({group: tuple(range(n)) for group, n in counts.items()}))
    full = full_size(layout, 0)
    assert by_count.shapes == by_list.shapes
    assert equal(by_count.cut(full), by_list.cut(full))


@pytest.mark.parametrize(
    ("channels", "kept"),
    [(1, [1, 1, 1, 1, 1]), (4, [4, 2, 1, 1, 1]), (10, [10, 5, 3, 2, 1]), (64, [64, 32, 16, 8, 4])],
)
def test_a_width_keeps_the_ceiling_of_its_share(channels, kept):
    layout = {"w": (Axis(channels, "c"), Axis(5, CLASSES))}
    assert [nested(layout, width).count("c", channels) for width in WIDTHS] == kept
    assert nested(layout, 0.1).count(CLASSES, 5) == 5


def test_the_ceiling_is_exact():
    """0.07 · 100 is 7.000000000000001 in floating point; the number 0.07 stands for is a little larger than 7/100."""
    assert nested({"w": (Axis(100, "c"),)}, 0.07).count("c", 100) == math.ceil(100 * 0.07)
    assert nested({"w": (Axis(100, "c"),)}, 0.29).count("c", 100) == 29


@pytest.mark.parametrize("width", [0, -0.5, 1.001, math.nan, math.inf])
def test_widths_outside_their_range_are_refused(width):
    with pytest.raises(ProtocolError, match=r"is outside \(0, 1\]"):
        nested(LAYOUT, width)


def test_half_a_network_by_hand():
    """Channels 0 and 1 of 4: in the dense layer rows 0, 1 (first position) and 4, 5 (second position)."""
    region = Region(LAYOUT, nested(LAYOUT, 0.5))
    assert region.shapes == {"conv": (2, 3, 2), "dense": (4, 3), "bias": (3,)}
    assert region.parameters == 12 + 12 + 3
    full = {
        "conv": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "dense": np.arange(24, dtype=np.float32).reshape(8, 3),
        "bias": np.arange(3, dtype=np.float32),
    }
    part = region.cut(full)
    assert part["conv"].tolist() == [[[0, 1], [4, 5], [8, 9]], [[12, 13], [16, 17], [20, 21]]]
    assert part["dense"].tolist() == [[0, 1, 2], [3, 4, 5], [12, 13, 14], [15, 16, 17]]
    assert part["bias"].tolist() == [0, 1, 2]


def test_listed_channels_by_hand():
    """Channels 3 and 1, in that order, of which only the classes 2 and 0 are covered."""
    region = Region(LAYOUT, Subnetwork({"c": (3, 1), CLASSES: (2, 0)}))
    full = {
        "conv": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "dense": np.arange(24, dtype=np.float32).reshape(8, 3),
        "bias": np.arange(3, dtype=np.float32),
    }
    part = region.cut(full)
    assert part["conv"][0].tolist() == [[3, 1], [7, 5], [11, 9]]
    assert part["dense"].tolist() == [[11, 9], [5, 3], [23, 21], [17, 15]]
    assert part["bias"].tolist() == [2, 0]
    assert region.lift(part)["bias"].tolist() == [0, 0, 2]
    assert np.argwhere(region.coverage()["dense"]).tolist() == [[r, c] for r in (1, 3, 5, 7) for c in (0, 2)]


@pytest.mark.parametrize("subnetwork", [FULL, nested(LAYOUT, 0.5), Subnetwork({"c": (0, 2)})], ids=str)
def test_a_cut_is_a_copy(subnetwork):
    full = full_size(LAYOUT, 0)
    part = Region(LAYOUT, subnetwork).cut(full)
    for name, value in part.items():
        assert not np.shares_memory(value, full[name])
        assert value.flags.c_contiguous
        assert value.flags.writeable


@pytest.mark.parametrize("subnetwork", [FULL, nested(LAYOUT, 0.5), Subnetwork({"c": (0, 2)})], ids=str)
def test_adding_happens_in_place_whatever_the_memory_order(subnetwork):
    region = Region(LAYOUT, subnetwork)
    part = {name: np.ones(shape, np.float32) for name, shape in region.shapes.items()}
    total = {name: np.zeros([a.size for a in axes], np.float32, order="F") for name, axes in LAYOUT.items()}
    region.add(total, part, 2.0)
    region.fill(total, 1.0)
    assert equal(total, {name: np.where(mask, np.float32(3), 0) for name, mask in region.coverage().items()})


@QUICK
@given(layout=layouts(), data=st.data())
def test_counts_are_told_from_the_shapes_that_they_make(layout, data):
    layout |= {f"makes {name}": (Axis(full, name),) for name, full in groups(layout).items()}
    counts = {name: data.draw(st.integers(1, full)) for name, full in groups(layout).items() if name != CLASSES}
    shapes = Region(layout, Subnetwork(counts)).shapes
    assert Region(layout, counted(layout, shapes)).shapes == shapes


@pytest.mark.parametrize(
    "shapes", [{"a": (2,), "b": (3,)}, {"a": (2,)}, {"a": (5,), "b": (5,)}, {"a": (2, 1), "b": (2,)}]
)
def test_shapes_that_no_subnetwork_makes_are_refused(shapes):
    layout = {"a": (Axis(4, "g"),), "b": (Axis(4, "g"),)}
    with pytest.raises(ProtocolError, match="no subnetwork of the model has tensors of these shapes"):
        counted(layout, shapes)


def test_a_group_that_is_not_named_is_kept_whole():
    assert Subnetwork({"c": 2}).count("c", 4) == 2
    assert Subnetwork({"c": (3, 1, 0)}).count("c", 4) == 3
    assert Subnetwork({"c": 2}).count("other", 4) == 4
    assert Subnetwork({"c": 2}).count(None, 4) == 4


def test_a_group_may_have_an_empty_name():
    layout = {"w": (Axis(4, ""), Axis(2))}
    assert Region(layout, nested(layout, 0.5)).shapes == {"w": (2, 2)}


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        ({"odd": 1}, "no channel group 'odd', only 'c', 'classes'"),
        ({"c": 0}, "group 'c' has 4 channels, cannot keep 0"),
        ({"c": 5}, "cannot keep 5"),
        ({"c": -1}, "cannot keep -1"),
        ({"c": ()}, "channels 0 to 3: the list must name some of them, each once"),
        ({"c": (0, 0)}, "each once"),
        ({"c": (0, 4)}, "channels 0 to 3"),
        ({"c": (-1,)}, "channels 0 to 3"),
    ],
)
def test_channels_that_are_not_there_are_refused(channels, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        Region(LAYOUT, Subnetwork(channels))


def test_a_part_of_other_tensors_or_shapes_is_refused():
    region = Region(LAYOUT, nested(LAYOUT, 0.5))
    part = region.cut(full_size(LAYOUT, 0))
    region.check(part)
    with pytest.raises(ProtocolError, match=r"'odd' stand on one side only"):
        region.check(part | {"odd": part["bias"]})
    with pytest.raises(ProtocolError, match=r"'bias', 'dense' stand on one side only"):
        region.check({"conv": part["conv"]})
    with pytest.raises(ProtocolError, match=r"tensor 'dense' has shape \(3, 4\), expected \(4, 3\)"):
        region.check(part | {"dense": part["dense"].T})


def test_groups_must_agree():
    assert groups(LAYOUT) == {"c": 4, CLASSES: 3}
    with pytest.raises(ProtocolError, match="tensor 'b' gives group 'c' 5 channels, expected 4"):
        groups({"a": (Axis(4, "c"),), "b": (Axis(10, "c", 2),)})


def test_joined_channels_by_hand():
    """Two positions of groups a (2 channels) and b (4): half of them are 0 | 2 3, then 6 | 8 9."""
    layout = {"w": (Axis(12, None, 2, (Axis(2, "a"), Axis(4, "b"))),)}
    region = Region(layout, nested(layout, 0.5))
    assert region.cut({"w": np.arange(12, dtype=np.float32)})["w"].tolist() == [0, 2, 3, 6, 8, 9]
    assert region.subnetwork.size(layout["w"][0]) == 6
    assert groups(layout) == {"a": 2, "b": 4}
    assert layout_to_json(layout) == {"w": [[12, None, 2, [[2, "a", 1], [4, "b", 1]]]]}


@pytest.mark.parametrize("axis", [(4, "c", 1, (Axis(4),)), (4, None, 2, (Axis(4),)), (4, None, 1, (Axis(2), Axis(3)))])
def test_parts_make_up_an_axis(axis):
    with pytest.raises(ProtocolError, match="is not the sum of its parts"):
        Axis(*axis)


@pytest.mark.parametrize(("size", "repeat"), [(7, 2), (0, 1), (4, 0), (-4, 2), (2, 4), (1 << 31, 1)])
def test_an_axis_holds_whole_channels(size, repeat):
    with pytest.raises(ProtocolError, match=f"an axis of {size} cannot hold {repeat} positions"):
        Axis(size, "c", repeat)


# -- JSON


@QUICK
@given(layouts())
def test_a_layout_comes_back_equal_from_json(layout):
    assert layout_from_json(json.loads(json.dumps(layout_to_json(layout)))) == layout


def test_a_layout_as_json():
    assert layout_to_json(LAYOUT) == {
        "conv": [[2, None, 1], [3, None, 1], [4, "c", 1]],
        "dense": [[8, "c", 2], [3, "classes", 1]],
        "bias": [[3, "classes", 1]],
    }


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "an object of tensors, not list"),
        (None, "an object of tensors, not NoneType"),
        ({1: []}, "tensor 1 of the layout needs a list of at most 8 axes"),
        ({"w": {}}, "tensor 'w' of the layout needs a list"),
        ({"w": [[1, None, 1]] * 9}, "at most 8 axes"),
        ({"w": [4]}, "tensor 'w' has an axis 4, expected"),
        ({"w": [[4, "c"]]}, "tensor 'w' has an axis"),
        ({"w": [[4, None, 1, []]]}, "tensor 'w' has an axis"),
        ({"w": [[4, None, 1, [[4]]]]}, "tensor 'w' has an axis"),
        (
            {"w": [[1, None, 1, [[1, None, 1, [[1, None, 1, [[1, None, 1, [[1, None, 1, [[1, None, 1]]]]]]]]]]]]},
            "an axis",
        ),
        ({"w": [[4, "c", 1, 1]]}, "tensor 'w' has an axis"),
        ({"w": [["4", "c", 1]]}, "tensor 'w' has an axis"),
        ({"w": [[4.0, "c", 1]]}, "tensor 'w' has an axis"),
        ({"w": [[4, "c", True]]}, "tensor 'w' has an axis"),
        ({"w": [[4, 1, 1]]}, "tensor 'w' has an axis"),
        ({"w": [[7, "c", 2]]}, "an axis of 7 cannot hold 2 positions"),
        ({"w": [[10**30, "c", 1]]}, "cannot hold"),
        ({"w": [[4, "c", 1], [4, "c", 2]]}, "gives group 'c' 2 channels, expected 4"),
    ],
)
def test_what_is_no_layout_is_refused(value, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        layout_from_json(value)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_damaged_layout_is_a_valid_one_or_a_protocol_error(rounds):
    rng = random.Random(6)
    plain = layout_to_json(LAYOUT)
    valid = 0
    for _ in range(rounds):
        layout = read_or_refused(lambda data: layout_from_json(parse_json(data)), damage_json(rng, plain))
        if layout is not None:
            assert layout_from_json(layout_to_json(layout)) == layout
            assert Region(layout, nested(layout, 0.5)).parameters >= 0
            valid += 1
    assert 0 < valid < rounds / 2
