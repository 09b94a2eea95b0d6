"""SQL that people write: one SELECT that can change nothing, sees no secret, and ends in time.

Three fences, one behind the other: the words of the statement, what the database lets the connection do (SQLite's
authorizer; on PostgreSQL a read-only transaction, a cursor, which takes nothing but queries, and the role
``shoal_reader`` where there is one), and limits of rows and time.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from decimal import Decimal
from itertools import chain, islice
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from coordinator.errors import ShoalError
from coordinator.export import Column, Kind, Sheet
from coordinator.store import views
from coordinator.store.database import Database
from coordinator.store.models import Base

MAX_LENGTH: Final = 10_000
"""Characters of a statement."""
READER: Final = "shoal_reader"
"""The role that a PostgreSQL session takes, if it exists and the session may."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SECRET: Final = frozenset({"credential", "enrolment_token", "api_token"})
TABLES: Final = frozenset({*Base.metadata.tables, *views.metadata.tables}) - SECRET

FUNCTIONS: Final = _words(
    "abs avg ceil ceiling char_length coalesce count cume_dist date date_part date_trunc dense_rank exp extract "
    "first_value floor ifnull julianday lag last_value lead length like ln log lower ltrim max min mod nth_value "
    "ntile nullif percent_rank percentile_cont percentile_disc position power rank round row_number rtrim sign "
    "sqrt stddev stddev_pop stddev_samp strftime substr substring sum time to_char to_timestamp total trim typeof "
    "unixepoch upper var_pop var_samp variance width_bucket datetime json_extract sin cos corr regr_slope "
    "greatest least"
)
"""What may be called. None of them waits, writes, reads files or makes much out of little."""

_CALLED: Final = FUNCTIONS | {"->", "->>"}
LABELS: Final = ("v_device_labels", "json_each")
"""A view of ours, and what it takes a list apart with on SQLite; nobody else may."""
_BEFORE_BRACKETS: Final = _words(
    "all and any as between by case cast distinct else except exists filter from group having in intersect is "
    "join like limit materialized not numeric decimal offset on or order over partition select then union using values "
    "varchar when where within"
)
_FORBIDDEN: Final = _words(
    "alter attach call copy create delete detach drop execute grant insert into merge pragma recursive revoke "
    "truncate update vacuum"
)
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)|(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")*")
    |(?P<word>[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)|(?P<number>\.?\d[\w.]*)|(?P<sign>[-+*/%<>=!|,.()~:;])""",
    re.VERBOSE | re.DOTALL,
)


def check(sql: str) -> str:
    """The statement without what ends it; ShoalError bad-request names what is not allowed in it."""
    if len(sql) > MAX_LENGTH or "\0" in sql:
        raise _refused(f"it has {len(sql)} characters, at most {MAX_LENGTH} and no NUL are taken")
    tokens = [token for token in _tokens(sql) if token[0] != "space"]
    while tokens and tokens[-1][1] == ";":
        tokens.pop()
    if not tokens or tokens[0][0] != "word" or tokens[0][1].lower() not in ("select", "with", "values"):
        raise _refused("it has to begin with SELECT or WITH")
    for token, following in zip(tokens, [*tokens[1:], ("end", "")], strict=True):
        _check_token(token, following)
    return sql.strip().rstrip("; \t\r\n") if not re.search(r"--|/\*", sql) else _without_comments(sql)


@contextmanager
def ask(url: str, sql: str, *, limit: int, seconds: float) -> Iterator[Sheet]:
    """At most ``limit`` rows of one SELECT over the database at ``url``, within ``seconds``; rows are read as they are
    taken. ShoalError bad-request if the statement is refused, fails or takes too long."""
    statement = check(sql)
    ends = time.monotonic() + seconds
    database = Database(url, read_only=True)
    run = _on_sqlite if database.engine.dialect.name == "sqlite" else _on_postgresql
    try:
        with run(database, statement, ends) as sheet:
            yield Sheet(sheet.columns, _in_time(islice(sheet.rows, limit), ends))
    except _Overtime as error:
        raise ShoalError("bad-request", f"The statement was stopped after {seconds:g} s: narrow it down") from error
    finally:
        database.close()


class _Overtime(Exception):
    """The statement takes too long."""


def _tokens(sql: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(sql):
        found = _TOKEN.match(sql, place)
        if found is None:
            raise _refused(f"{sql[place : place + 20]!r} is not understood here")
        kind = found.lastgroup or ""
        if kind in ("word", "number") and sql[found.end() : found.end() + 1] in ("'", '"'):
            raise _refused(f"texts with a prefix such as {found[0][:10]}'…' are not taken")
        yield kind, found[0]
        place = found.end()


def _check_token(token: tuple[str, str], following: tuple[str, str]) -> None:
    kind, text = token
    if text == ";":
        raise _refused("it is more than one statement")
    if kind not in ("word", "quoted"):
        return
    name = text[1:-1].lower() if kind == "quoted" else text.lower()
    if name in SECRET or name.startswith(("pg_", "sqlite_", "pragma_", "information_schema")):
        raise _refused(f"{name} is not for reading")
    if kind == "word" and name in _FORBIDDEN:
        hint = ' (the table is written "update")' if name in ("update", "commit") else ""
        raise _refused(f"{text.upper()} is not allowed{hint}")
    if following[1] == "(" and name not in FUNCTIONS and (kind == "quoted" or name not in _BEFORE_BRACKETS):
        raise _refused(f"the function {name[:40]} is not allowed")


def _without_comments(sql: str) -> str:
    kept = "".join(" " if kind == "space" else text for kind, text in _tokens(sql))
    return kept.strip().rstrip("; ")


def _refused(why: str) -> ShoalError:
    return ShoalError("bad-request", f"The statement is refused: {why}")


def _in_time(rows: Iterable[Sequence[Any]], ends: float) -> Iterator[Sequence[Any]]:
    for row in rows:
        if time.monotonic() > ends:
            raise _Overtime
        yield row


def _failed(error: Exception) -> ShoalError:
    said = str(error).strip().partition("\n")[0]
    return ShoalError("bad-request", f"The statement failed: {said or type(error).__name__}")


# -- SQLite --------------------------------------------------------------------------------------------------------

_SQLITE_KINDS: Final[dict[frozenset[type[Any]], Kind]] = {
    frozenset({int}): "integer",
    frozenset({float}): "number",
    frozenset({int, float}): "number",
}
_SAMPLE: Final = 2000


@contextmanager
def _on_sqlite(database: Database, statement: str, ends: float) -> Iterator[Sheet]:
    # As it is opened for looking: without the pragmas, and with an authorizer from the first statement on.
    url = database.engine.url
    asked = "&".join(f"{name}={value}" for name, value in url.query.items())
    with closing(sqlite3.connect(f"{url.database}?{asked}", uri=True, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA busy_timeout=10000")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 8 << 20)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.set_authorizer(_allowed)
        connection.set_progress_handler(lambda: int(time.monotonic() > ends), 20_000)
        try:
            found = connection.execute(statement)
            yield _inferred([column[0] for column in found.description], found)
        except sqlite3.Error as error:
            raise _Overtime if "interrupted" in str(error) else _failed(error) from error


def _allowed(action: int, first: str | None, second: str | None, _: str | None, source: str | None) -> int:
    """Select and read our tables, call what is harmless; nothing else."""
    allowed = (
        action == sqlite3.SQLITE_SELECT
        or (action == sqlite3.SQLITE_READ and (not first or first.lower() in TABLES or (source, first) == LABELS))
        or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _CALLED)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _inferred(names: Sequence[str], found: Iterator[Sequence[Any]]) -> Sheet:
    """SQLite's values have types, its columns have not: the first rows say what a column holds."""
    first = list(islice(found, _SAMPLE))
    held = [frozenset(type(row[place]) for row in first) - {type(None)} for place in range(len(names))]
    columns = tuple(Column(name, _SQLITE_KINDS.get(types, "text")) for name, types in zip(names, held, strict=True))
    return Sheet(columns, (_told(row, columns) for row in chain(first, found)))


def _told(row: Sequence[Any], columns: Sequence[Column]) -> list[Any]:
    """Columns of mixed values, or of bytes, are told as text."""
    return [
        str(value) if column.kind == "text" and value is not None else value
        for value, column in zip(row, columns, strict=True)
    ]


# -- PostgreSQL ----------------------------------------------------------------------------------------------------

_POSTGRESQL_KINDS: Final[dict[int, Kind]] = {
    16: "boolean",
    **dict.fromkeys((20, 21, 23), "integer"),
    **dict.fromkeys((700, 701, 1700), "number"),
    **dict.fromkeys((1114, 1184), "time"),
    **dict.fromkeys((114, 3802), "json"),
}
"""Object ids of types, as PostgreSQL has them built in."""


@contextmanager
def _on_postgresql(database: Database, statement: str, ends: float) -> Iterator[Sheet]:
    try:
        with closing(database.engine.raw_connection()) as pooled:
            connection: Any = pooled.driver_connection
            connection.rollback()
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute(f"SET LOCAL statement_timeout = {max(1, int((ends - time.monotonic()) * 1000))}")
            connection.execute("SET LOCAL lock_timeout = 1000")
            _become_reader(connection)
            # DECLARE takes one query and nothing else; a cursor of the server's hands over rows as they are taken.
            with connection.cursor(name="console") as cursor:
                cursor.itersize = _SAMPLE
                cursor.execute(statement)
                columns = tuple(Column(c.name, _POSTGRESQL_KINDS.get(c.type_code, "text")) for c in cursor.description)
                yield Sheet(columns, ([_plain(*pair) for pair in zip(row, columns, strict=True)] for row in cursor))
    except (database.engine.dialect.loaded_dbapi.Error, DBAPIError) as error:
        raise _Overtime if type(error).__name__ == "QueryCanceled" else _failed(error) from error


def _become_reader(connection: Any) -> None:
    may = (
        "SELECT 1 FROM pg_roles WHERE rolname = %s AND pg_has_role(current_user, oid, 'MEMBER')"
        " AND has_table_privilege(oid, 'device', 'SELECT')"
    )
    if connection.execute(may, (READER,)).fetchone():
        connection.execute(f"SET LOCAL ROLE {READER}")


def _plain(value: Any, column: Column) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return str(value) if column.kind == "text" and value is not None else value
