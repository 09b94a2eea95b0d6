"""The spool: all or nothing, whatever moment the machine stops at."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from device_agent import spool as spools
from device_agent import status
from device_agent.errors import HomeError
from device_agent.position import Checkpoint
from device_agent.spool import Spool, obstacle, peek
from protocol import tensors
from protocol.messages import DeviceEvent, Lineage, Timings, Update
from protocol.subnetwork import Axis, layout_to_json
from tests.device_agent.conversation_partner import assignment, checkpoint
from tests.device_agent.full_disk import full_disk

LAYOUT = {"w": (Axis(4),)}
REGION = json.dumps({"layout": layout_to_json(LAYOUT), "channels": {}})


def body(value: float) -> bytes:
    return tensors.encode({"w": np.full(4, value, np.float32)})


def update(name: str, content: bytes, run: str = "run") -> Update:
    return Update(
        assignment=name,
        commit=1,
        run=run,
        lineage=Lineage(version=0, shape_epoch=0),
        samples=1,
        steps=1,
        loss=0.0,
        accuracy=0.0,
        squared_gradient={},
        squared_gradient_peak={},
        timings=Timings(download=0, train=0, upload=None),
        bytes_down=0,
        coding="float32",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        chunk=0,
    )


def commit(
    spool: Spool, name: str, value: float = 1.0, residual: bytes | None = None, run: str = "run"
) -> Update:
    sent = update(name, body(value), run)
    spool.commit(sent, body(value), REGION, residual)
    return sent


def owed(spool: Spool, run: str = "run") -> list[float]:
    residual = spool.residual(run)
    return tensors.decode(residual)[0]["w"].tolist() if residual else []


def test_everything_survives(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    work = assignment("c1", "next")
    sent = commit(spool, "a1", 2.0, b"left")
    spool.hold(work)
    spool.keep(3, DeviceEvent(kind="note", text="hello"))
    spool.close()
    again = Spool(tmp_path)
    saved = again.load()
    assert saved.held == work
    assert saved.updates == ((sent, body(2.0)),)
    assert saved.events == {3: DeviceEvent(kind="note", text="hello")}
    assert saved.finished == ("a1",)
    assert again.residual("run") == b"left"
    assert again.damage is None


def test_a_commit_ends_the_assignment(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold(assignment("c1", "a1"))
    commit(spool, "a1")
    assert spool.load().held is None


def test_what_was_not_used_is_owed_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.settle(commit(spool, "a1", 2.0), returned=True)
    spool.settle(commit(spool, "a2", 0.5, spool.residual("run")), returned=True)
    assert owed(spool) == [2.5] * 4
    assert spool.load().updates == ()


def test_what_was_stored_is_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.settle(commit(spool, "a1", 2.0), returned=False)
    assert owed(spool) == []


def test_settling_twice_owes_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    sent = commit(spool, "a1", 2.0)
    spool.settle(sent, returned=True)
    spool.settle(sent, returned=True)
    assert owed(spool) == [2.0] * 4


def test_residuals_belong_to_runs_and_the_oldest_go(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for run in "abcdef":
        commit(spool, f"of-{run}", residual=run.encode(), run=run)
    assert [spool.residual(run) for run in "abcdef"] == [None, None, b"c", b"d", b"e", b"f"]


def test_a_key_is_spooled_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    commit(spool, "a1", 1.0)
    with pytest.raises(HomeError):
        commit(spool, "a1", 2.0)
    assert spool.load().updates[0][1] == body(1.0)


def test_only_the_latest_finished_assignments_are_remembered(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(spools.FINISHED + 3):
        spool.settle(commit(spool, f"a{number}"), returned=False)
    assert spool.load().finished == tuple(f"a{number}" for number in range(3, spools.FINISHED + 3))


def test_a_row_that_cannot_be_read_is_dropped_and_named(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    commit(spool, "a1")
    whole = commit(spool, "a2")
    spool.close()
    with sqlite3.connect(tmp_path / spools.NAME) as db:
        db.execute("UPDATE outgoing SET body = x'00' WHERE assignment = 'a1'")
    db.close()
    again = Spool(tmp_path)
    assert [sent for sent, _ in again.load().updates] == [whole]
    assert again.damage is not None
    assert "a1" in again.damage


@pytest.mark.parametrize("harm", ["text", "middle", "header"])
def test_a_damaged_spool_is_moved_aside_and_a_fresh_one_goes_on(tmp_path: Path, harm: str) -> None:
    spool = Spool(tmp_path)
    for number in range(40):
        commit(spool, f"a{number}", residual=bytes(9000))
    spool.close()
    path = tmp_path / spools.NAME
    content = bytearray(path.read_bytes())
    if harm == "text":
        content = bytearray(b"this was a database once\n" * 100)
    elif harm == "header":
        content[:4096] = bytes(4096)
    else:
        content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    fresh = Spool(tmp_path)
    assert fresh.damage is not None
    assert "spool.corrupt-1" in fresh.damage
    assert (tmp_path / "spool.corrupt-1").read_bytes() == content
    assert fresh.load().updates == ()
    commit(fresh, "b1")
    fresh.close()
    path.write_bytes(b"again" * 500)
    assert "spool.corrupt-2" in str(Spool(tmp_path).damage)


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    Spool(tmp_path).close()
    with sqlite3.connect(tmp_path / spools.NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(HomeError, match="newer agent"):
        Spool(tmp_path)


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool._connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(HomeError, match="the disk is full"):
        spool.commit(update("a1", body(1.0)), body(1.0), 200_000 * " ", None)
    assert spool.load().updates == ()


def test_a_disk_that_is_full_loses_nothing_and_is_used_again_when_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    commit(spool, "a1")
    big = update("a2", bytes(900_000))
    with full_disk(300_000), pytest.raises(HomeError, match="cannot be used: File too large"):
        spool.commit(big, bytes(900_000), REGION, None)
    assert spooled(tmp_path) == []
    assert [one.assignment for one, _ in spool.load().updates] == ["a1"]
    spool.commit(big, bytes(900_000), REGION, None)
    spool.close()
    assert [one.assignment for one, _ in Spool(tmp_path).load().updates] == ["a1", "a2"]


def test_what_keeps_an_agent_from_starting_is_seen_while_none_runs(tmp_path: Path) -> None:
    """``status`` asks, and the answer changes when there is room again."""
    Spool(tmp_path).close()
    with full_disk(10_000):
        found = status.collect(tmp_path, "pi-1", "http://shoal")
        assert found["state"] == "stopped"
        assert found["reason"] == f"the spool in {tmp_path} cannot be written: File too large"
        assert f"  state: stopped: {found['reason']}" in status.sentences(found)
    found = status.collect(tmp_path, "pi-1", "http://shoal")
    assert found["reason"] is None
    assert len(status.sentences(found)) == 1
    assert not list(tmp_path.glob("*.probe"))
    assert "No such file" in str(obstacle(tmp_path / "gone"))


def test_a_home_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="cannot be opened"):
        Spool(tmp_path / "missing")


def test_status_reads_beside_a_running_agent(tmp_path: Path) -> None:
    assert peek(tmp_path) == (None, [])
    spool = Spool(tmp_path)
    sent = commit(spool, "a1")
    work = assignment("c", "a2")
    spool.hold(work)
    assert peek(tmp_path) == (work, [sent])


def test_the_spool_is_for_its_owner_only(tmp_path: Path) -> None:
    Spool(tmp_path)
    assert (tmp_path / spools.NAME).stat().st_mode & 0o077 == 0


WRITER = """
import sys
from pathlib import Path
from tests.device_agent.test_spool import Spool, assignment, body, commit, spools
spool = Spool(Path(sys.argv[1]))
number, spools.INLINE = int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
while True:
    number += 1
    name = f"a{number}"
    spool.hold(assignment("c", name))
    sent = commit(spool, name, float(number), body(float(number)))
    print(name, flush=True)
    if number % 3 == 0:
        spool.settle(sent, returned=False)
"""


def _kill_while_writing(home: Path, start: int, wait: float, inline: int) -> list[str]:
    """Run the writer, kill it without warning; the commits it had been told of."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home), str(start), str(inline)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    told = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    return told


def _check_all_or_nothing(home: Path, told: list[str]) -> int:
    """After a kill: every commit told of is there, and nothing stands half. The number of the last commit."""
    spool = Spool(home)
    saved = spool.load()
    assert spool.damage is None
    last = int(saved.finished[-1][1:])
    assert not told or last >= int(told[-1][1:]), "an acknowledged commit is lost"
    assert owed(spool) == [float(last)] * 4, "the residual is that of the last commit"
    kept = [sent.assignment for sent, _ in saved.updates]
    for number in range(max(1, last - spools.FINISHED + 1), last + 1):
        if number % 3:
            assert f"a{number}" in kept
    if saved.held is not None:
        assert saved.held.id == f"a{last + 1}", "a committed assignment is held no more"
    for sent, content in saved.updates:
        assert content == body(float(sent.assignment[1:]))
    assert len(list((home / spools.FOLDER).glob("*"))) in (0, len(saved.updates) + 1), "no file is left over"
    spool.close()
    return last


def _kills(home: Path, count: int, inline: int) -> None:
    start = 0
    for number in range(count):
        told = _kill_while_writing(home, start, 0.05 + 0.013 * (number % 17), inline)
        if (home / spools.NAME).exists() and (told or start):
            start = _check_all_or_nothing(home, told)


@pytest.mark.parametrize("inline", [0, 1 << 20], ids=["files", "rows"])
def test_killed_at_any_moment_all_or_nothing_is_there(tmp_path: Path, inline: int) -> None:
    _kills(tmp_path, 4, inline)


@pytest.mark.soak
@pytest.mark.parametrize("inline", [0, 1 << 20], ids=["files", "rows"])
def test_killed_two_hundred_times(tmp_path: Path, inline: int) -> None:
    _kills(tmp_path, 200, inline)


# What is large stands in files.


def spooled(home: Path) -> list[int]:
    return sorted(path.stat().st_size for path in (home / spools.FOLDER).glob("*"))


def test_large_bodies_and_residuals_are_files_that_go_with_their_rows(tmp_path: Path) -> None:
    spool, content, left = Spool(tmp_path), bytes(90_000), tensors.encode({"w": np.ones(50_000, np.float32)})
    sent = update("a1", content)
    spool.commit(sent, content, REGION, left)
    assert spooled(tmp_path) == [90_000, len(left)]
    assert spool._connection.execute("SELECT SUM(LENGTH(body)) FROM outgoing").fetchone() == (0,)
    spool.close()
    spool = Spool(tmp_path)
    assert spool.load().updates == ((sent, content),)
    assert spool.residual("run") == left
    spool.settle(sent, returned=False)
    assert spooled(tmp_path) == [len(left)]
    commit(spool, "a2", residual=None)
    assert spooled(tmp_path) == []


def test_a_file_that_is_lost_costs_its_row_and_is_named(tmp_path: Path) -> None:
    spool, left = Spool(tmp_path), tensors.encode({"w": np.ones(50_000, np.float32)})
    spool.commit(update("a1", bytes(90_000)), bytes(90_000), REGION, None)
    commit(spool, "a2", residual=left)
    for path in (tmp_path / spools.FOLDER).glob("*"):
        path.write_bytes(bytes(10))
    assert [sent.assignment for sent, _ in spool.load().updates] == ["a2"]
    assert "is damaged" in str(spool.damage)
    assert spool.residual("run") is None
    assert "what is owed to run is lost" in str(spool.damage)


# Checkpoints.


def written(spool: Spool, name: str, commits: int, size: int = 4) -> Checkpoint:
    file = spool.checkpoints.write([np.zeros(size // 4, np.float32)])
    return evolve(checkpoint(name, commits), weights=file)


def files(home: Path) -> list[int]:
    return sorted(int(path.stem) for path in (home / "checkpoint").glob("*"))


def go_on(spool: Spool, name: str, number: int, place: Checkpoint | None) -> Update:
    sent = evolve(update(name, body(1.0)), commit=number, last=place is None)
    spool.commit(sent, body(1.0), REGION, None, place)
    return sent


def test_a_commit_and_where_training_goes_on_are_one_transaction(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold(assignment("c1", "a1"))
    place = written(spool, "a1", 1)
    go_on(spool, "a1", 1, place)
    spool.close()
    again = Spool(tmp_path)
    saved = again.load()
    assert (saved.held, saved.commits, saved.finished) == (assignment("c1", "a1"), 1, ())
    assert again.checkpoint("a1") == place
    assert again.checkpoint("a2") is None
    go_on(again, "a1", 2, None)
    saved = again.load()
    assert (saved.held, saved.commits, saved.finished) == (None, 0, ("a1",))
    assert [sent.commit for sent, _ in saved.updates] == [1, 2]
    assert again.checkpoint("a1") is None
    assert files(tmp_path) == []


def test_a_newer_checkpoint_replaces_the_older_one_but_not_one_just_being_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold(assignment("c1", "a1"))
    spool.save(written(spool, "a1", 0))
    second, third = written(spool, "a1", 0), written(spool, "a1", 0)
    spool.save(second)
    assert files(tmp_path) == [2, 3]
    spool.save(evolve(third, base=second.weights))
    spool.save(evolve(written(spool, "a1", 0), base=second.weights))
    assert files(tmp_path) == [2, 4]


def test_what_no_checkpoint_names_goes_at_the_start(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold(assignment("c1", "a1"))
    spool.save(written(spool, "a1", 0))
    written(spool, "a1", 0)
    spool.close()
    Spool(tmp_path).load()
    assert files(tmp_path) == [1]


def test_held_again_it_keeps_its_checkpoint_other_work_does_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold(assignment("c1", "a1"))
    place = written(spool, "a1", 0)
    spool.save(place)
    spool.hold(assignment("c2", "a1"))
    assert spool.checkpoint("a1") == place
    spool.hold(assignment("c3", "a2"))
    assert spool.checkpoint("a1") is None


def test_what_was_dropped_after_commits_is_never_begun_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.hold(assignment("c1", "a1"))
    spool.save(written(spool, "a1", 0))
    spool.drop("a1")
    saved = spool.load()
    assert (saved.held, saved.commits, saved.finished) == (None, 0, ("a1",))
    assert files(tmp_path) == []


@pytest.mark.parametrize("commits", [0, 2])
def test_a_checkpoint_that_cannot_be_read_costs_the_assignment_only_if_it_was_committed(
    tmp_path: Path, commits: int
) -> None:
    spool = Spool(tmp_path)
    spool.hold(assignment("c1", "a1"))
    spool.save(written(spool, "a1", commits))
    spool._connection.execute("UPDATE checkpoint SET text = x'00'")
    saved = spool.load()
    assert (saved.held is None) == bool(commits)
    assert saved.finished == (("a1",) if commits else ())
    assert spool.damage is not None


def test_residuals_give_way_to_the_checkpoint_the_oldest_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=200_000)
    for run in "abc":
        commit(spool, f"of-{run}", residual=bytes(30_000), run=run)
    spool.hold(assignment("c1", "a1"))
    spool.save(written(spool, "a1", 0, size=20_000))
    assert [spool.residual(run) is None for run in "abc"] == [True, False, False]
    spool.save(written(spool, "a1", 0, size=90_000))
    assert [spool.residual(run) is None for run in "abc"] == [True, True, True]
    assert len(spool.load().updates) == 3, "no update ever gives way"


@pytest.mark.parametrize("version", [1, 2])
def test_a_spool_of_an_earlier_format_is_taken_over(tmp_path: Path, version: int) -> None:
    spool = Spool(tmp_path)
    sent = commit(spool, "a1", residual=body(2.0))
    columns = ("outgoing DROP COLUMN file", "residual DROP COLUMN file", "residual DROP COLUMN bytes")
    older = "".join(f"ALTER TABLE {column};" for column in columns) + f"PRAGMA user_version = {version};"
    spool._connection.executescript("DROP TABLE checkpoint;" + older if version == 1 else older)
    spool.close()
    again = Spool(tmp_path)
    assert again.load().updates == ((sent, body(1.0)),)
    assert owed(again) == [2.0] * 4
    again.hold(assignment("c", "a2"))
    again.save(written(again, "a2", 0))
