"""History: roll-ups of telemetry, indexes for questions about the past, and views with stable names.

A view must be dropped before a table under it is altered on SQLite, and made anew afterwards.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROLL_UPS = ("telemetry_5m", "telemetry_1h")
INDEXES = {
    "ix_telemetry_at": ("telemetry", ["at"]),
    "ix_update_at": ("update", ["at"]),
    "ix_update_run_id_applied_version": ("update", ["run_id", "applied_version"]),
    "ix_assignment_offered_at": ("assignment", ["offered_at"]),
}


class _Sqlite:
    """Instants are texts, ``2026-03-31 12:00:00.000000``."""

    percent = "%"

    @staticmethod
    def seconds(moment: str) -> str:
        # The fraction apart: strftime rounds to milliseconds, and may so move into the next second.
        return f"(CAST(strftime('%s', substr({moment}, 1, 19)) AS INTEGER) + CAST('0' || substr({moment}, 20) AS REAL))"

    @staticmethod
    def utc(moment: str, length: int = 19) -> str:
        return f"substr({moment}, 1, {length})"

    @staticmethod
    def number(value: str) -> str:
        return f"CAST({value} AS REAL)"


class _Postgresql:
    percent = "%"

    @staticmethod
    def seconds(moment: str) -> str:
        return f"CAST(extract(epoch FROM {moment}) AS double precision)"

    @staticmethod
    def utc(moment: str, length: int = 19) -> str:
        shape = {10: "YYYY-MM-DD", 19: "YYYY-MM-DD HH24:MI:SS"}[length]
        return f"to_char({moment} AT TIME ZONE 'UTC', '{shape}')"

    @staticmethod
    def number(value: str) -> str:
        return f"CAST({value} AS double precision)"


def _moment(q: type[_Sqlite] | type[_Postgresql], moment: str, name: str = "at") -> str:
    """One moment three times: as it is stored, as text, and as seconds since 1970."""
    return f"{moment} AS {name}, {q.utc(moment)} AS {name}_utc, {q.seconds(moment)} AS {name}_s"


def _update_ledger(q: type[_Sqlite] | type[_Postgresql]) -> str:
    # LEFT JOINs on primary keys: a question that asks for nothing of a joined table does not pay for it.
    return f"""
SELECT u.id, u.run_id, r.recipe_name AS recipe, u.device_id, d.name AS device, d."group" AS device_group,
  u.assignment_id, u."commit" AS commit_number, {_moment(q, "u.at")}, {q.utc("u.at", 10)} AS day,
  u.base_version, u.applied_version, u.staleness, u.width, u.weight, u.samples, u.steps, u.loss, u.accuracy, u.norm,
  u.bytes_up, u.bytes_down, u.seconds_download, u.seconds_train, u.seconds_upload,
  {q.seconds("u.at")} - {q.seconds("a.offered_at")} AS seconds_total, u.outcome, u.reason, u.sha256
FROM "update" u
LEFT JOIN device d ON d.id = u.device_id
LEFT JOIN run r ON r.id = u.run_id
LEFT JOIN assignment a ON a.id = u.assignment_id"""


def _run_summary(q: type[_Sqlite] | type[_Postgresql]) -> str:
    return f"""
SELECT r.id AS run_id, m.name AS model, r.recipe_name AS recipe, r.state, r.reason, r.seed, r.target, r.version,
  r.created_by, {_moment(q, "r.created_at", "created")}, {_moment(q, "r.ended_at", "ended")},
  coalesce(u.devices, 0) AS devices, coalesce(u.updates, 0) AS updates, coalesce(u.applied, 0) AS applied,
  coalesce(u.bytes_up, 0) AS bytes_up, coalesce(u.bytes_down, 0) AS bytes_down,
  coalesce(u.seconds_train, 0) AS seconds_train, best.value AS best_accuracy, last.value AS last_accuracy
FROM run r
JOIN model m ON m.id = r.model_id
LEFT JOIN (
  SELECT run_id, count(DISTINCT device_id) AS devices, count(*) AS updates,
    sum(CASE WHEN outcome = 'applied' THEN 1 ELSE 0 END) AS applied, CAST(sum(bytes_up) AS BIGINT) AS bytes_up,
    CAST(sum(bytes_down) AS BIGINT) AS bytes_down, sum(seconds_train) AS seconds_train
  FROM "update" GROUP BY run_id
) u ON u.run_id = r.id
LEFT JOIN (
  SELECT run_id, max(value) AS value, max(version) AS version FROM metric WHERE name = 'accuracy' GROUP BY run_id
) best ON best.run_id = r.id
LEFT JOIN metric last ON last.run_id = r.id AND last.name = 'accuracy' AND last.version = best.version"""


def _run_metric(q: type[_Sqlite] | type[_Postgresql]) -> str:
    return f"""
SELECT m.run_id, m.version, m.name, m.value, {_moment(q, "m.at")},
  {q.seconds("m.at")} - {q.seconds("r.created_at")} AS seconds
FROM metric m JOIN run r ON r.id = m.run_id"""


def _run_progress(q: type[_Sqlite] | type[_Postgresql]) -> str:
    # One sum along time over updates and versions together is linear; a sum per version would be quadratic.
    return f"""
SELECT s.run_id, s.version, {_moment(q, "s.at")}, {q.seconds("s.at")} - {q.seconds("r.created_at")} AS seconds,
  accuracy.value AS accuracy, loss.value AS loss, v.step_norm, v.updates AS merged,
  s.updates, s.applied, s.bytes_up, s.bytes_down
FROM (
  SELECT run_id, version, at,
    CAST(sum(one) OVER (PARTITION BY run_id ORDER BY at) AS BIGINT) AS updates,
    CAST(sum(applied) OVER (PARTITION BY run_id ORDER BY at) AS BIGINT) AS applied,
    CAST(sum(bytes_up) OVER (PARTITION BY run_id ORDER BY at) AS BIGINT) AS bytes_up,
    CAST(sum(bytes_down) OVER (PARTITION BY run_id ORDER BY at) AS BIGINT) AS bytes_down
  FROM (
    SELECT run_id, NULL AS version, at, 1 AS one, CASE WHEN outcome = 'applied' THEN 1 ELSE 0 END AS applied,
      bytes_up, bytes_down FROM "update"
    UNION ALL
    SELECT run_id, version, at, 0, 0, 0, 0 FROM model_version
  ) both_kinds
) s
JOIN run r ON r.id = s.run_id
JOIN model_version v ON v.run_id = s.run_id AND v.version = s.version
LEFT JOIN metric accuracy ON accuracy.run_id = s.run_id AND accuracy.version = s.version AND accuracy.name = 'accuracy'
LEFT JOIN metric loss ON loss.run_id = s.run_id AND loss.version = s.version AND loss.name = 'loss'
WHERE s.version IS NOT NULL"""


def _device_contribution(q: type[_Sqlite] | type[_Postgresql]) -> str:
    def count(outcome: str) -> str:
        return f"sum(CASE WHEN outcome = '{outcome}' THEN 1 ELSE 0 END) AS {outcome}"

    return f"""
SELECT u.run_id, u.device_id, d.name AS device, d."group" AS device_group, u.updates, u.applied, u.stored, u.stale,
  u.refused, u.expired, u.samples, u.weight, u.weight / nullif(sum(u.weight) OVER (PARTITION BY u.run_id), 0) AS share,
  u.width, u.staleness, u.loss, u.bytes_up, u.bytes_down, u.seconds_train, u.seconds_link,
  {_moment(q, "u.first", "first")}, {_moment(q, "u.last", "last")}
FROM (
  SELECT run_id, device_id, count(*) AS updates, {count("applied")}, {count("stored")}, {count("stale")},
    {count("refused")}, {count("expired")},
    CAST(sum(CASE WHEN outcome = 'applied' THEN samples ELSE 0 END) AS BIGINT) AS samples,
    sum(CASE WHEN outcome = 'applied' THEN weight ELSE 0 END) AS weight,
    avg(width) AS width, {q.number("avg(staleness)")} AS staleness, avg(loss) AS loss,
    CAST(sum(bytes_up) AS BIGINT) AS bytes_up, CAST(sum(bytes_down) AS BIGINT) AS bytes_down,
    sum(seconds_train) AS seconds_train, sum(seconds_download + coalesce(seconds_upload, 0)) AS seconds_link,
    min(at) AS first, max(at) AS last
  FROM "update" GROUP BY run_id, device_id
) u
LEFT JOIN device d ON d.id = u.device_id"""


def _device_availability(q: type[_Sqlite] | type[_Postgresql]) -> str:
    return f"""
SELECT s.id, s.device_id, d.name AS device, d."group" AS device_group, s.status, s.reason, {_moment(q, "s.at")},
  {q.utc("s.at", 10)} AS day, {_moment(q, "s.until", "until")}, {q.seconds("s.until")} - {q.seconds("s.at")} AS seconds,
  CASE WHEN s.status IN ('idle', 'training') THEN 1 ELSE 0 END AS available
FROM (
  SELECT id, device_id, new AS status, reason, at, lead(at) OVER (PARTITION BY device_id ORDER BY at, id) AS until
  FROM status_change
) s
LEFT JOIN device d ON d.id = s.device_id"""


def _width_decisions(q: type[_Sqlite] | type[_Postgresql]) -> str:
    def looked_at(name: str) -> str:
        value = f"(w.explanation -> 'whale_fl' ->> '{name}')"
        return f"{q.number(value)} AS {name}"

    def heard(column: str) -> str:
        """The last heartbeat before the offer; once those are pruned, what was rolled up."""
        last = "t.device_id = w.device_id AND t.at <= w.offered_at ORDER BY t.at DESC LIMIT 1"
        return f"""coalesce(
    (SELECT t.{column} FROM telemetry t WHERE {last}),
    (SELECT t.{column} FROM telemetry_5m t WHERE {last}),
    (SELECT t.{column} FROM telemetry_1h t WHERE {last})) AS {column}"""

    return f"""
SELECT w.id AS assignment_id, w.run_id, r.recipe_name AS recipe, w.device_id, d.name AS device,
  d."group" AS device_group, {_moment(q, "w.offered_at", "offered")}, w.version, w.width,
  (SELECT p.width FROM assignment p WHERE p.device_id = w.device_id AND p.run_id = w.run_id
    AND p.offered_at < w.offered_at ORDER BY p.offered_at DESC LIMIT 1) AS previous_width,
  CASE WHEN w.explanation -> 'whale_fl' IS NOT NULL THEN 'whale_fl'
    WHEN w.explanation -> 'heterofl' IS NOT NULL THEN 'heterofl'
    WHEN w.explanation -> 'fixed' IS NOT NULL THEN 'fixed' END AS policy,
  {looked_at("samples")}, {looked_at("fisher")}, {looked_at("seconds")}, {looked_at("reference")},
  {looked_at("utility")}, {looked_at("scale")}, {looked_at("share")},
  w.explanation -> 'whale_fl' ->> 'warm_up' AS warm_up,
  {heard("temperature")}, {heard("load")}, w.state, w.reason, w.bytes_down,
  {q.seconds("w.closed_at")} - {q.seconds("w.offered_at")} AS seconds_open, w.explanation
FROM assignment w
LEFT JOIN device d ON d.id = w.device_id
LEFT JOIN run r ON r.id = w.run_id"""


def _bytes_by_day(q: type[_Sqlite] | type[_Postgresql]) -> str:
    day = q.utc("at", 10)
    return f"""
SELECT u.day, u.run_id, u.device_id, d.name AS device, d."group" AS device_group, u.updates, u.bytes_up, u.bytes_down
FROM (
  SELECT {day} AS day, run_id, device_id, count(*) AS updates, CAST(sum(bytes_up) AS BIGINT) AS bytes_up,
    CAST(sum(bytes_down) AS BIGINT) AS bytes_down
  FROM "update" GROUP BY {day}, run_id, device_id
) u
LEFT JOIN device d ON d.id = u.device_id"""


def _device_hours(q: type[_Sqlite] | type[_Postgresql]) -> str:
    return f"""
SELECT t.device_id, d.name AS device, d."group" AS device_group, {_moment(q, "t.at")}, {q.utc("t.at", 10)} AS day,
  t.beats, t.uptime, t.load, t.temperature, t.temperature_max, t.memory, t.memory_free_min, t.disk_free_min, t.spool_max
FROM telemetry_1h t LEFT JOIN device d ON d.id = t.device_id"""


VIEWS = {
    "v_update_ledger": _update_ledger,
    "v_run_summary": _run_summary,
    "v_run_metric": _run_metric,
    "v_run_progress": _run_progress,
    "v_device_contribution": _device_contribution,
    "v_device_availability": _device_availability,
    "v_width_decisions": _width_decisions,
    "v_bytes_by_day": _bytes_by_day,
    "v_device_hours": _device_hours,
}


def upgrade() -> None:
    for name in ROLL_UPS:
        op.create_table(
            name,
            sa.Column("device_id", sa.String(length=40), nullable=False),
            sa.Column("at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("beats", sa.Integer(), nullable=False),
            sa.Column("uptime", sa.Float(), nullable=False),
            sa.Column("load", sa.Float(), nullable=True),
            sa.Column("temperature", sa.Float(), nullable=True),
            sa.Column("temperature_max", sa.Float(), nullable=True),
            sa.Column("memory", sa.BigInteger(), nullable=False),
            sa.Column("memory_free_min", sa.BigInteger(), nullable=True),
            sa.Column("disk_free_min", sa.BigInteger(), nullable=True),
            sa.Column("spool_max", sa.BigInteger(), nullable=False),
            sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f(f"fk_{name}_device_id_device")),
            sa.PrimaryKeyConstraint("device_id", "at", name=op.f(f"pk_{name}")),
        )
        op.create_index(op.f(f"ix_{name}_at"), name, ["at"])
    for index, (table, columns) in INDEXES.items():
        op.create_index(op.f(index), table, columns)
    q = _Sqlite if op.get_bind().dialect.name == "sqlite" else _Postgresql
    for name, body in VIEWS.items():
        op.get_bind().exec_driver_sql(f"CREATE VIEW {name} AS {body(q)}".replace("%", q.percent))


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW {name}")
    for index, (table, _) in INDEXES.items():
        op.drop_index(op.f(index), table)
    for name in reversed(ROLL_UPS):
        op.drop_table(name)
