"""What must survive a power cut: SQLite in WAL mode with a full fsync at every commit, and files for what is large.

One writer, the agent's main thread. Each method is one transaction: all of it is on disk, or none.

It is capped: half of the limit is for updates without a receipt, which are never evicted (the session makes no more
of them while that half is full), the other for what training needs. There the residuals of other runs give way to
the checkpoint, those used longest ago first, then that of the run in hand.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from protocol.errors import ProtocolError
from protocol.messages import Assignment, DeviceEvent, Update
from protocol.wire import decode, encode

from .checkpoint import Checkpoints
from .conversation import Saved
from .errors import HomeError, SpoolError
from .feedback import give_back
from .files import FileLost, Files
from .position import Checkpoint, File
from .spool_database import clearly, moved_aside, opened

NAME = "spool.db"
LIMIT = 64 << 20  # bytes
RUNS = 4  # residuals kept, those used last
FINISHED = 64  # finished assignments remembered
INLINE = 32 << 10  # bytes up to which bodies and residuals are rows of the database, beyond they are files
FOLDER = "spooled"
_PROBE = 64 << 10  # bytes that an agent needs at least to start
T = TypeVar("T")


class Spool:
    """The spool in ``home``, of ``limit`` bytes. ``damage``: a sentence about what was lost, None if nothing was.

    ``checkpoints`` are the files that the spool's checkpoint names.
    """

    def __init__(self, home: Path, limit: int = LIMIT) -> None:
        self._path = home / NAME
        self._half = limit // 2
        self.checkpoints = Checkpoints(home, self._half)
        self._files = Files(home / FOLDER, ".bin")
        self.damage: str | None = None
        with clearly(self._path):
            connection = opened(self._path)
            if connection is None:
                aside = moved_aside(self._path)
                self.damage = f"the spool was damaged and is now {aside.name}; updates not yet sent are lost"
                connection = opened(self._path)
                if connection is None:
                    raise SpoolError(
                        f"{self._path} is damaged again as soon as it is made: is the disk failing?"
                    )
        self._connection = connection

    def close(self) -> None:
        self._connection.close()

    def load(self) -> Saved:
        """Everything earlier processes left. What cannot be read is dropped and named in ``damage``."""
        with self._transaction():
            commits, checkpoint = self._checkpointed()
            held = list(self._readable("assignment", "text", lambda text: decode(Assignment, text)))
            updates = list(self._readable("outgoing", "header, body, file", self._outgoing))
            events = dict(self._readable("event", "text", lambda text: decode(DeviceEvent, text)))
            finished = list(self._readable("finished", "assignment", str))
        self.checkpoints.clear(checkpoint.files if checkpoint else ())
        self._sweep()
        return Saved(
            held=held[0][1] if held else None,
            commits=commits,
            updates=tuple(update for _, update in updates),
            events=events,
            finished=tuple(assignment for _, assignment in finished),
        )

    def hold(self, assignment: Assignment) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO assignment VALUES (1, ?)", (encode(assignment),))
            db.execute("DELETE FROM checkpoint WHERE assignment <> ?", (assignment.id,))

    def drop(self, finished: str | None = None) -> None:
        """No assignment any more; ``finished`` is one of which commits exist."""
        with self._transaction() as db:
            db.execute("DELETE FROM assignment")
            db.execute("DELETE FROM checkpoint")
            if finished is not None:
                self._finish(finished)
        self.checkpoints.clear(())

    def checkpoint(self, assignment: str) -> Checkpoint | None:
        """Where training of the assignment stands, None if it has not got that far."""
        with clearly(self._path):
            query = "SELECT text FROM checkpoint WHERE assignment = ?"
            row = self._connection.execute(query, (assignment,)).fetchone()
        return decode(Checkpoint, row[0]) if row else None

    def residual(self, run: str) -> bytes | None:
        """The residual of ``run`` in the tensors format, None if nothing is owed."""
        with clearly(self._path):
            query = "SELECT tensors, file FROM residual WHERE run = ?"
            row = self._connection.execute(query, (run,)).fetchone()
        if row is None:
            return None
        try:
            return self._content(*row)
        except ProtocolError as error:
            self.damage = f"what is owed to {run} is lost: {error}"
            return None

    def commit(
        self, update: Update, body: bytes, region: str, residual: bytes | None, checkpoint: Checkpoint | None = None
    ) -> None:
        """A commit is made: the update, the run's new residual, and where training goes on.

        Without ``checkpoint`` it was the last one: there is no assignment any more.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO outgoing (assignment, commit_number, run, header, region, body, file)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*update.key, update.run, encode(update), region, *self._put(body)),
            )
            self._owe(update.run, residual)
            if checkpoint is not None:
                self._save(checkpoint)
            else:
                db.execute("DELETE FROM assignment")
                db.execute("DELETE FROM checkpoint")
                self._finish(update.assignment)
        self._clear(checkpoint)
        self._sweep()

    def save(self, checkpoint: Checkpoint) -> None:
        """Training stands here by now."""
        with self._transaction():
            self._save(checkpoint)
        self._clear(checkpoint)
        self._sweep()  # residuals may have given way

    def settle(self, update: Update, returned: bool) -> None:
        """Forget the update; if ``returned``, what it carried is owed again."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT region, body, file FROM outgoing WHERE assignment = ? AND commit_number = ?", update.key
            ).fetchone()
            if row is None:
                return
            db.execute("DELETE FROM outgoing WHERE assignment = ? AND commit_number = ?", update.key)
            if returned:
                self._give_back(update, *row)
        self._sweep()

    def _give_back(self, update: Update, region: str, inline: bytes, file: bytes | None) -> None:
        residual = self.residual(update.run)
        try:
            self._owe(update.run, give_back(self._content(inline, file), update.coding, region, residual))
        except ProtocolError as error:  # written by an agent that spoke another dialect
            self.damage = f"what the update for {update.assignment} carried is lost: {error}"

    def keep(self, number: int, event: DeviceEvent) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO event VALUES (?, ?)", (number, encode(event)))

    def discard(self, number: int) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM event WHERE number = ?", (number,))

    def _save(self, checkpoint: Checkpoint) -> None:
        size = sum(file.size for file in checkpoint.files)
        self._connection.execute(
            "INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?, ?, ?)",
            (checkpoint.assignment, checkpoint.position.commit, size, encode(checkpoint)),
        )
        self._make_room()

    def _make_room(self) -> None:
        """The residuals used longest ago go until the rest and the checkpoint fit into their half."""
        db = self._connection
        (used,) = db.execute("SELECT COALESCE(SUM(bytes), 0) FROM checkpoint").fetchone()
        sizes = db.execute("SELECT number, bytes FROM residual ORDER BY number DESC").fetchall()
        for number, size in sizes:
            used += size
            if used > self._half:
                db.execute("DELETE FROM residual WHERE number = ?", (number,))

    def _finish(self, assignment: str) -> None:
        db = self._connection
        db.execute("INSERT OR REPLACE INTO finished (assignment) VALUES (?)", (assignment,))
        db.execute("DELETE FROM finished WHERE number <= (SELECT MAX(number) FROM finished) - ?", (FINISHED,))

    def _clear(self, checkpoint: Checkpoint | None) -> None:
        """Files that the checkpoint has replaced go; later ones may just be written."""
        if checkpoint is None:
            self.checkpoints.clear(())
        else:
            self.checkpoints.clear(checkpoint.files, before=checkpoint.weights.number)

    def _checkpointed(self) -> tuple[int, Checkpoint | None]:
        """The commits made of the assignment held, and its checkpoint.

        If that cannot be read although there were commits, the assignment cannot go on either.
        """
        db = self._connection
        row = db.execute("SELECT assignment, commits, text FROM checkpoint").fetchone()
        if row is None:
            return 0, None
        try:
            return int(row[1]), decode(Checkpoint, row[2])
        except ProtocolError as error:
            self.damage = f"where training of {row[0]} stood cannot be read: {error}"
            db.execute("DELETE FROM checkpoint")
            if row[1]:
                db.execute("DELETE FROM assignment")
                self._finish(row[0])
            return 0, None

    def _owe(self, run: str, residual: bytes | None) -> None:
        db = self._connection
        db.execute("DELETE FROM residual WHERE run = ?", (run,))
        if residual is not None:
            db.execute(
                "INSERT INTO residual (run, tensors, file, bytes) VALUES (?, ?, ?, ?)",
                (run, *self._put(residual), len(residual)),
            )
            db.execute(
                "DELETE FROM residual WHERE number NOT IN"
                " (SELECT number FROM residual ORDER BY number DESC LIMIT ?)",
                (RUNS,),
            )
            self._make_room()

    # What is large stands in files.

    def _put(self, data: bytes) -> tuple[bytes, bytes | None]:
        """What to write into a row for ``data``: itself, or the name of the file that has it."""
        if len(data) <= INLINE:
            return data, None
        return b"", encode(self._files.put([memoryview(data)]))

    def _content(self, inline: bytes, file: bytes | None) -> bytes:
        """What stands in a row, or in its file; ProtocolError if that is lost."""
        if file is None:
            return inline
        try:
            return self._files.get(decode(File, file))
        except FileLost as error:
            raise ProtocolError(str(error)) from error

    def _sweep(self) -> None:
        """Files that no row names go."""
        query = "SELECT file FROM outgoing UNION ALL SELECT file FROM residual"
        with clearly(self._path):
            named = [file for (file,) in self._connection.execute(query) if file is not None]
        with suppress(ProtocolError):  # whoever cannot read the names had better not remove anything
            self._files.clear({decode(File, file).number for file in named})

    def _outgoing(self, header: bytes, inline: bytes, file: bytes | None) -> tuple[Update, bytes]:
        update, body = decode(Update, header), self._content(inline, file)
        if hashlib.sha256(body).hexdigest() != update.sha256:
            raise ProtocolError(f"the body of the update for {update.assignment} is not what was stored")
        return update, body

    def _readable(self, table: str, columns: str, read: Callable[..., T]) -> Iterator[tuple[int, T]]:
        """Rows of one of our tables by number; a row that cannot be read is deleted."""
        query = f"SELECT number, {columns} FROM {table} ORDER BY number"  # noqa: S608  # our own names
        for number, *row in self._connection.execute(query).fetchall():
            try:
                yield number, read(*row)
            except ProtocolError as error:
                self._connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))  # noqa: S608
                self.damage = f"the spool held something this agent cannot read, which was dropped: {error}"

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with clearly(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def peek(home: Path) -> tuple[Assignment | None, list[Update]]:
    """The held assignment and the updates that wait, read beside a running agent."""
    path = home / NAME
    if not path.exists():
        return None, []
    with clearly(path), closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
        held = db.execute("SELECT text FROM assignment").fetchone()
        headers = db.execute("SELECT header FROM outgoing ORDER BY number").fetchall()
    try:
        return (decode(Assignment, held[0]) if held else None), [
            decode(Update, header) for (header,) in headers
        ]
    except ProtocolError as error:
        raise HomeError(f"{path} was written by another version of this agent: {error}") from error


def obstacle(home: Path) -> str | None:
    """Why an agent that does not run could not use the spool in ``home``, None if it could. Writes a little to see."""
    probe = home / f"{NAME}.probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"the spool in {home} cannot be written: {error.strerror}"
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    path = home / NAME
    if path.exists() and not os.access(path, os.W_OK):
        return f"the spool {path} cannot be written: it is read-only"
    return None
