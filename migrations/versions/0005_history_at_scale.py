"""History at a million updates: what questions join or sort for is stored or indexed; telemetry by days; labels.

On PostgreSQL telemetry is partitioned by day from here on. The table that was there becomes the partition of
everything up to the day after its last row, without a row being copied.
"""

from __future__ import annotations

from datetime import UTC, timedelta
from types import ModuleType
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_update_device_id_run_id_outcome": ("update", ["device_id", "run_id", "outcome"]),
    "ix_assignment_run_id_device_id_offered_at_width": (
        "assignment",
        ["run_id", "device_id", "offered_at", "width"],
    ),
}
# The view's own expression, and the columns it sums: nothing is sorted, and no row of the table is read.
DAYS = 'CREATE INDEX ix_update_day ON "update" (substr(at, 1, 10), run_id, device_id, at, bytes_up, bytes_down)'
TELEMETRY_INDEXES = {"ix_telemetry_device_id_at": "device_id, at", "ix_telemetry_at": "at"}


COLUMNS = {
    "device": {"labels": sa.JSON},
    "assignment": {"temperature": sa.Float, "load": sa.Float},
    "update": {"seconds_total": sa.Float},
}

# A list taken apart: (from, class, samples) by dialect.
LISTS = {
    "sqlite": ("json_each(d.labels) l", "l.key", "l.value"),
    "postgresql": (
        "json_array_elements_text(d.labels) WITH ORDINALITY AS l(value, place)",
        "CAST(l.place - 1 AS integer)",
        "CAST(l.value AS bigint)",
    ),
}


def _update_ledger(q: Any) -> str:
    # What few questions ask for is looked up where they do; the others do not pay for it.
    return f"""
SELECT u.id, u.run_id, (SELECT r.recipe_name FROM run r WHERE r.id = u.run_id) AS recipe, u.device_id,
  d.name AS device, d."group" AS device_group, u.assignment_id, u."commit" AS commit_number,
  u.at, {q.utc("u.at")} AS at_utc, {q.seconds("u.at")} AS at_s, {q.utc("u.at", 10)} AS day,
  u.base_version, u.applied_version, u.staleness, u.width, u.weight, u.samples, u.steps, u.loss, u.accuracy, u.norm,
  u.bytes_up, u.bytes_down, u.seconds_download, u.seconds_train, u.seconds_upload, u.seconds_total,
  u.outcome, u.reason, u.sha256
FROM "update" u
LEFT JOIN device d ON d.id = u.device_id"""


def _width_decisions(q: Any) -> str:
    def looked_at(name: str) -> str:
        value = f"(w.explanation -> 'whale_fl' ->> '{name}')"
        return f"{q.number(value)} AS {name}"

    return f"""
SELECT w.id AS assignment_id, w.run_id, r.recipe_name AS recipe, w.device_id, d.name AS device,
  d."group" AS device_group, w.offered_at AS offered, {q.utc("w.offered_at")} AS offered_utc,
  {q.seconds("w.offered_at")} AS offered_s, w.version, w.width,
  (SELECT p.width FROM assignment p WHERE p.device_id = w.device_id AND p.run_id = w.run_id
    AND p.offered_at < w.offered_at ORDER BY p.offered_at DESC LIMIT 1) AS previous_width,
  CASE WHEN w.explanation -> 'whale_fl' IS NOT NULL THEN 'whale_fl'
    WHEN w.explanation -> 'heterofl' IS NOT NULL THEN 'heterofl'
    WHEN w.explanation -> 'fixed' IS NOT NULL THEN 'fixed' END AS policy,
  {looked_at("samples")}, {looked_at("fisher")}, {looked_at("seconds")}, {looked_at("reference")},
  {looked_at("utility")}, {looked_at("scale")}, {looked_at("share")},
  w.explanation -> 'whale_fl' ->> 'warm_up' AS warm_up, w.temperature, w.load, w.state, w.reason, w.bytes_down,
  {q.seconds("w.closed_at")} - {q.seconds("w.offered_at")} AS seconds_open, w.explanation
FROM assignment w
LEFT JOIN device d ON d.id = w.device_id
LEFT JOIN run r ON r.id = w.run_id"""


def _device_labels(dialect: str) -> str:
    elements, label, samples = LISTS[dialect]
    return f"""
SELECT s.device_id, s.device, s.device_group, s.class, s.samples, s.samples / nullif(s.whole, 0) AS share
FROM (
  SELECT d.id AS device_id, d.name AS device, d."group" AS device_group, {label} AS class, {samples} AS samples,
    CAST(sum({samples}) OVER (PARTITION BY d.id) AS double precision) AS whole
  FROM device d, {elements}
) s"""


def upgrade() -> None:
    q, dialect = _before(), op.get_bind().dialect.name
    for table, columns in COLUMNS.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind(), nullable=True))
    offered = f"(SELECT {q.seconds('a.offered_at')} FROM assignment a WHERE a.id = assignment_id)"
    _run(f'UPDATE "update" SET seconds_total = {q.seconds("at")} - {offered}')
    _run(f"UPDATE assignment SET temperature = {_heard('temperature')}, load = {_heard('load')}")
    for index, (table, names) in INDEXES.items():
        op.create_index(op.f(index), table, names)
    _view("v_update_ledger", _update_ledger(q))
    _view("v_width_decisions", _width_decisions(q))
    _view("v_device_labels", _device_labels(dialect))
    if dialect == "sqlite":
        op.execute(DAYS)
    else:
        _allow("v_device_labels", _readers("v_update_ledger"))
        _partition()


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP INDEX ix_update_day")
    else:
        _join()
    op.execute("DROP VIEW v_device_labels")
    for name in ("v_update_ledger", "v_width_decisions"):
        _view(name, _module().VIEWS[name](_before()))
    for index, (table, _) in INDEXES.items():
        op.drop_index(op.f(index), table)
    for table, columns in COLUMNS.items():
        for name in columns:
            op.drop_column(table, name)


def _module() -> ModuleType:
    """The revision before: how it writes SQL for a dialect, and the views it made."""
    script = op.get_context().script
    assert script is not None
    return script.get_revision("0002").module


def _before() -> Any:
    names = {"sqlite": "_Sqlite", "postgresql": "_Postgresql"}
    return getattr(_module(), names[op.get_bind().dialect.name])


def _heard(column: str) -> str:
    """The last heartbeat before the offer; once those are pruned, what was rolled up."""
    last = "t.device_id = assignment.device_id AND t.at <= assignment.offered_at ORDER BY t.at DESC LIMIT 1"
    kept = ("telemetry", "telemetry_5m", "telemetry_1h")
    return f"coalesce({', '.join(f'(SELECT t.{column} FROM {table} t WHERE {last})' for table in kept)})"


def _run(statement: str) -> None:
    """As it stands: percent signs and colons are no parameters."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.get_bind().exec_driver_sql(statement.replace("%", "%%") if postgresql else statement)


def _view(name: str, body: str) -> None:
    """Make a view, or make it anew with the same columns; PostgreSQL keeps who may read it."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP VIEW IF EXISTS {name}")
        _run(f"CREATE VIEW {name} AS {body}")
    else:
        _run(f"CREATE OR REPLACE VIEW {name} AS {body}")


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def _partition() -> None:
    newest = op.get_bind().scalar(sa.text("SELECT max(at) FROM telemetry"))
    readers = _readers("telemetry")
    op.execute("ALTER TABLE telemetry RENAME TO telemetry_plain")
    op.execute("ALTER TABLE telemetry_plain DROP CONSTRAINT pk_telemetry")
    for index in TELEMETRY_INDEXES:
        op.execute(f"ALTER INDEX {index} RENAME TO {index}_plain")
    op.execute(
        "CREATE TABLE telemetry (LIKE telemetry_plain INCLUDING DEFAULTS, CONSTRAINT pk_telemetry PRIMARY KEY (id, at),"
        " CONSTRAINT fk_telemetry_device_id_device FOREIGN KEY (device_id) REFERENCES device (id))"
        " PARTITION BY RANGE (at)"
    )
    op.execute("ALTER SEQUENCE telemetry_id_seq OWNED BY telemetry.id")
    for index, columns in TELEMETRY_INDEXES.items():
        op.execute(f"CREATE INDEX {index} ON telemetry ({columns})")
    op.execute("CREATE TABLE telemetry_default PARTITION OF telemetry DEFAULT")
    if newest is None:
        op.execute("DROP TABLE telemetry_plain")
    else:
        after = newest.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        name = f"telemetry_before_{after:%Y%m%d}"
        op.execute(f"ALTER TABLE telemetry_plain RENAME TO {name}")
        _run(f"ALTER TABLE telemetry ATTACH PARTITION {name} FOR VALUES FROM (MINVALUE) TO ('{after.isoformat()}')")
    _allow("telemetry", readers)


def _join() -> None:
    readers = _readers("telemetry")
    op.execute(
        "CREATE TABLE telemetry_plain (LIKE telemetry INCLUDING DEFAULTS,"
        " CONSTRAINT fk_telemetry_device_id_device FOREIGN KEY (device_id) REFERENCES device (id))"
    )
    op.execute("INSERT INTO telemetry_plain SELECT * FROM telemetry")
    op.execute("ALTER SEQUENCE telemetry_id_seq OWNED BY telemetry_plain.id")
    op.execute("DROP TABLE telemetry")
    op.execute("ALTER TABLE telemetry_plain RENAME TO telemetry")
    op.execute("ALTER TABLE telemetry ADD CONSTRAINT pk_telemetry PRIMARY KEY (id)")
    for index, columns in TELEMETRY_INDEXES.items():
        op.execute(f"CREATE INDEX {index} ON telemetry ({columns})")
    _allow("telemetry", readers)


def _readers(relation: str) -> list[str]:
    """The roles that may read a table or view, other than its owner."""
    query = (
        "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END"
        " FROM pg_class c, aclexplode(c.relacl) a"
        " WHERE c.oid = CAST(:name AS regclass) AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner"
    )
    return list(op.get_bind().scalars(sa.text(query), {"name": relation}))


def _allow(relation: str, readers: list[str]) -> None:
    for role in readers:
        op.execute(f"GRANT SELECT ON {relation} TO {role}")
