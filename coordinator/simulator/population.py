"""Populations: what kinds of devices there are, how fast they compute and talk, and when they can be reached.

A population is a TOML file of groups. It is read strictly: an unknown key, a wrong type or a number out of range is
one sentence that names it. Times are written as ``90s``, ``15m``, ``6h`` or ``2d``.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from attrs import Attribute, evolve, field, fields, frozen

from coordinator.errors import ShoalError

DAY: Final = 86_400.0
_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_WINDOW = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")


def seconds(text: Any) -> float:
    """``15m`` as seconds; ValueError for anything else."""
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"is {text!r}, expected a span of time such as \"90s\", \"15m\", \"6h\" or \"2d\"")
    return float(found[1]) * _SECONDS[found[2]]


def _number(low: float, high: float, default: float = 0.0) -> Any:
    def convert(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"is {value!r}, expected a number from {low:g} to {high:g}")
        return float(value)

    return field(default=default, metadata={"read": convert})


def _read_as(read: Callable[[Any], Any], default: Any) -> Any:
    return field(default=default, metadata={"read": read})


def _span(default: float = 0.0) -> Any:
    return _read_as(seconds, default)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 2000:
        raise ValueError(f"is {str(value)[:60]!r}, expected a text")
    return value


def _by_width(value: Any) -> dict[float, float]:
    """Milliseconds per sample: one number for width 1, or a table by width."""
    table = {"1": value} if type(value) in (int, float) else value
    if not isinstance(table, dict) or not table:
        raise ValueError(f"is {value!r}, expected milliseconds, or a table of them by width")
    found = {}
    for width, one in table.items():
        try:
            key = float(width)
        except ValueError:
            key = math.nan
        if not 0 < key <= 1 or type(one) not in (int, float) or not 0 < one < 1e7:
            raise ValueError(f"has {width!r} = {one!r}, expected a width up to 1 and milliseconds above 0")
        found[key] = float(one)
    return found


def _changes(value: Any) -> tuple[tuple[float, float], ...]:
    """Moments and the factor on the speed from then on."""
    wanted = "expected a list of pairs such as [\"2h\", 0.5], times ascending"
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError(f"is {value!r}, {wanted}")
    found = tuple((seconds(at), float(factor)) for at, factor in value)
    if any(not 0 < factor <= 100 for _, factor in found) or list(found) != sorted(found):
        raise ValueError(f"is {value!r}, {wanted}, factors above 0 and up to 100")
    return found


def _windows(value: Any) -> tuple[tuple[float, float], ...]:
    """Spans of the day as seconds since midnight; one that ends before it begins goes past midnight."""
    found = []
    for one in value if isinstance(value, list) else [value]:
        match = _WINDOW.fullmatch(one) if isinstance(one, str) else None
        if match is None or any(int(match[n]) > 24 for n in (1, 3)) or any(int(match[n]) > 59 for n in (2, 4)):
            raise ValueError(f"holds {one!r}, expected spans of the day such as \"22:00-06:00\"")
        begin, end = (3600.0 * int(match[n]) + 60.0 * int(match[n + 1]) for n in (1, 3))
        found.append((begin, end if end > begin else end + DAY))
    return tuple(found)


@frozen(kw_only=True)
class Compute:
    """How long training takes. Either ``ms_per_sample`` at some widths (others by their FLOPs from the nearest one), or
    ``mflops`` that the board sustains; ``ms_per_step`` is added to every step.

    ``spread`` is the log-normal deviation of speeds between the devices of a group, ``jitter`` that between the
    assignments of one. ``changes`` are factors on the speed of all from given moments on; every ``change_every`` on
    average a device draws a factor of its own between ``change_low`` and ``change_high``.
    """

    ms_per_sample: Mapping[float, float] = _read_as(_by_width, None)
    mflops: float = _number(1e-3, 1e9)
    ms_per_step: float = _number(0, 1e6)
    spread: float = _number(0, 3)
    jitter: float = _number(0, 3)
    changes: tuple[tuple[float, float], ...] = _read_as(_changes, ())
    change_every: float = _span()
    change_low: float = _number(1e-3, 100, 1.0)
    change_high: float = _number(1e-3, 100, 1.0)


@frozen(kw_only=True)
class Link:
    """Rates in kbit/s (0: nothing takes time), drawn for every transfer with relative deviation ``deviation``.

    For ``outage`` of the time nothing gets through, for ``outage_length`` on average. ``trace`` is a CSV file with
    seconds, down and up in kbit/s, played over and over from a different moment for each device.
    """

    down_kbps: float = _number(0, 1e8)
    up_kbps: float = _number(0, 1e8)
    deviation: float = _number(0, 3)
    latency: float = _span()
    outage: float = _number(0, 0.95)
    outage_length: float = _span(5.0)
    trace: str = _read_as(_text, "")


@frozen(kw_only=True)
class Availability:
    """When a device can be reached: in ``windows`` of the day, moved by up to ``shift`` per device; and on for ``on``,
    then away for ``away``, exponentially distributed (0: never away). What it trains meanwhile goes on.

    ``crashes`` per day end what it trains; it is back after ``restart``. ``check_in`` is the least time between two
    check-ins of a device without work.
    """

    windows: tuple[tuple[float, float], ...] = _read_as(_windows, ())
    shift: float = _span()
    on: float = _span()
    away: float = _span()
    crashes: float = _number(0, 10_000)
    restart: float = _span(40.0)
    check_in: float = _span()


@frozen(kw_only=True)
class Energy:
    """Watts while training, transferring and idle. With a battery of ``battery_wh`` a device goes away when it is empty
    and comes back when ``charging_watts`` have filled half of it again."""

    training_watts: float = _number(0, 1000, 5.0)
    transfer_watts: float = _number(0, 1000, 3.0)
    idle_watts: float = _number(0, 1000, 2.0)
    battery_wh: float = _number(0, 1e5)
    charging_watts: float = _number(0, 1000)


@frozen(kw_only=True)
class Group:
    """Devices alike. ``share`` is a weight among the groups, ``links`` are dealt out in turn; ``label`` is what recipes
    call the group, its name where nothing else is said."""

    name: str
    label: str
    share: float = 1.0
    memory_mb: float = 0.0
    compute: Compute = Compute(mflops=1000.0)
    links: tuple[Link, ...] = (Link(),)
    availability: Availability = Availability()
    energy: Energy = Energy()


@frozen(kw_only=True)
class Population:
    """``devices`` is how many there are where nobody says otherwise."""

    name: str
    about: str
    devices: int
    groups: tuple[Group, ...]

    def members(self, devices: int) -> list[Group]:
        """The group of every device, dealt out by shares (largest remainder) and interleaved."""
        total = sum(group.share for group in self.groups)
        exact = [devices * group.share / total for group in self.groups]
        counts = [math.floor(one) for one in exact]
        by_rest = sorted(range(len(counts)), key=lambda place: (counts[place] - exact[place], place))
        for place in by_rest[: devices - sum(counts)]:
            counts[place] += 1
        # The n-th of c members stands at (n + ½) / c of the row: every prefix of the fleet is mixed alike.
        places = [((n + 0.5) / count, place) for place, count in enumerate(counts) for n in range(count)]
        return [self.groups[place] for _, place in sorted(places)]


def builtin() -> dict[str, str]:
    """The TOML text of every population that comes with Shoal, by name."""
    folder = files("coordinator.simulator") / "populations"
    found = {Path(file.name).stem: file.read_text() for file in folder.iterdir() if file.name.endswith(".toml")}
    return dict(sorted(found.items()))


def load(name: str) -> Population:
    """A population that comes with Shoal, or one from a TOML file; ShoalError ``bad-request`` says what is wrong."""
    known = builtin()
    if name in known:
        return parse(known[name], Path())
    path = Path(name)
    if not path.is_file():
        raise _wrong(f"There is no population {name[:80]!r}: expected one of {', '.join(known)}, or a TOML file")
    try:
        return parse(path.read_text(), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"The population {path} cannot be read: {error}") from error


def parse(text: str, folder: Path) -> Population:
    """Read TOML; traces are looked for in ``folder``."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(f"The population is not TOML: {error}") from error
    _known(table, {"name", "about", "devices", "group"}, "the population")
    groups = table.get("group")
    if not isinstance(groups, list) or not groups or not all(isinstance(one, dict) for one in groups):
        raise _wrong("The population has no groups: expected tables [[group]]")
    read = tuple(_group(one, number, folder) for number, one in enumerate(groups, 1))
    names = [group.name for group in read]
    if len(set(names)) < len(names):
        raise _wrong(f"Two groups have the same name: {', '.join(names)}")
    devices = table.get("devices", 20)
    if type(devices) is not int or not 1 <= devices <= 100_000:
        raise _wrong(f"devices is {devices!r}, expected a whole number from 1 to 100000")
    name, about = str(table.get("name", "custom")), str(table.get("about", ""))
    return Population(name=name[:80], about=" ".join(about.split()), devices=devices, groups=read)


def _group(table: Mapping[str, Any], number: int, folder: Path) -> Group:
    where = f"group {table.get('name', number)!r}"
    _known(table, {"name", "label", "share", "memory_mb", "compute", "link", "availability", "energy"}, where)
    name = table.get("name")
    if not isinstance(name, str) or not 1 <= len(name) <= 40:
        raise _wrong(f"{where}: name is {name!r}, expected 1 to 40 characters")
    label = table.get("label", name)
    if not isinstance(label, str) or len(label) > 80:
        raise _wrong(f"{where}: label is {label!r}, expected up to 80 characters")
    numbers = {key: table.get(key, 1.0 if key == "share" else 0.0) for key in ("share", "memory_mb")}
    for key, value in numbers.items():
        if type(value) not in (int, float) or not 0 <= value <= 1e7 or (key == "share" and not value):
            raise _wrong(f"{where}: {key} is {value!r}, expected a number above 0")
    compute: Compute = _section(Compute, table.get("compute", {"mflops": 1000}), f"{where}: compute")
    if (compute.ms_per_sample is None) == (compute.mflops == 0):
        raise _wrong(f"{where}: compute needs either ms_per_sample or mflops")
    if compute.change_low > compute.change_high:
        raise _wrong(f"{where}: compute: change_low is above change_high")
    links = table.get("link", {})
    links = links if isinstance(links, list) and links else [links]
    return Group(
        name=name,
        label=label,
        share=float(numbers["share"]),
        memory_mb=float(numbers["memory_mb"]),
        compute=compute,
        links=tuple(_link(one, f"{where}: link", folder) for one in links),
        availability=_availability(table.get("availability", {}), f"{where}: availability"),
        energy=_section(Energy, table.get("energy", {}), f"{where}: energy"),
    )


def _link(table: Any, where: str, folder: Path) -> Link:
    link: Link = _section(Link, table, where)
    if link.trace:
        path = folder / link.trace
        if not path.is_file():
            raise _wrong(f"{where}: there is no trace {path}")
        return evolve(link, trace=str(path.resolve()))
    if (link.down_kbps == 0) != (link.up_kbps == 0):
        raise _wrong(f"{where}: down_kbps and up_kbps are given both or not at all")
    return link


def _availability(table: Any, where: str) -> Availability:
    found: Availability = _section(Availability, table, where)
    if (found.on == 0) != (found.away == 0):
        raise _wrong(f"{where}: on and away are given both or not at all")
    return found


def _section(cls: type[Any], table: Any, where: str) -> Any:
    if not isinstance(table, dict):
        raise _wrong(f"{where} is {table!r}, expected a table")
    known: dict[str, Attribute[Any]] = {one.name: one for one in fields(cls)}
    _known(table, set(known), where)
    values = {}
    for key, value in table.items():
        try:
            values[key] = known[key].metadata["read"](value)
        except (ValueError, TypeError) as error:
            raise _wrong(f"{where}: {key} {error}") from error
    return cls(**values)


def _known(table: Mapping[str, Any], names: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - names):
        raise _wrong(f"{where}: unknown key {unknown[0]!r}, expected {', '.join(sorted(names))}")


def _wrong(sentence: str) -> ShoalError:
    return ShoalError("bad-request", sentence)
