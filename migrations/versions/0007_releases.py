"""Releases, their rollouts, and what each device runs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _release()
    _device_release()
    _rollout()
    _execution()
    _execution_change()
    _outcomes()


def downgrade() -> None:
    op.execute("DROP VIEW v_rollout_outcomes")
    for table in ("execution_change", "execution", "rollout", "device_release", "release"):
        op.drop_table(table)


def _release() -> None:
    op.create_table(
        "release",
        sa.Column("id", KEY, nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("version", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=40), nullable=True),
        sa.Column("model_version", sa.Integer(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("withdrawn_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id", "model_version"],
            ["model_version.run_id", "model_version.version"],
            name=op.f("fk_release_run_id_model_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
        sa.UniqueConstraint("sha256", name=op.f("uq_release_sha256")),
    )
    op.create_index(op.f("ix_release_kind_number"), "release", ["kind", "number"], unique=True)
    op.create_index(op.f("ix_release_kind_version"), "release", ["kind", "version"], unique=True)


def _device_release() -> None:
    op.create_table(
        "device_release",
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("version", sa.String(length=40), nullable=False),
        sa.Column("release_id", KEY, nullable=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_release_device_id_device")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_device_release_release_id_release")),
        sa.PrimaryKeyConstraint("device_id", "kind", name=op.f("pk_device_release")),
    )
    op.create_index(op.f("ix_device_release_kind_release_id"), "device_release", ["kind", "release_id"])


def _rollout() -> None:
    op.create_table(
        "rollout",
        sa.Column("id", KEY, nullable=False),
        sa.Column("release_id", KEY, nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("pause", sa.String(length=12), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("target", sa.JSON(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("wave_at", MOMENT, nullable=False),
        sa.Column("passed_at", MOMENT, nullable=True),
        sa.Column("back_of", KEY, nullable=True),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("state_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["back_of"], ["rollout.id"], name=op.f("fk_rollout_back_of_rollout")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_rollout_release_id_release")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
    )
    op.create_index(op.f("ix_rollout_state"), "rollout", ["state"])


def _execution() -> None:
    op.create_table(
        "execution",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("release_id", KEY, nullable=False),
        sa.Column("before_id", KEY, nullable=True),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("state_at", MOMENT, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=True),
        sa.Column("report", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("retry_at", MOMENT, nullable=True),
        sa.Column("accepted_at", MOMENT, nullable=True),
        sa.Column("step_until", MOMENT, nullable=True),
        sa.Column("until", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["before_id"], ["release.id"], name=op.f("fk_execution_before_id_release")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_execution_device_id_device")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_execution_release_id_release")),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"], name=op.f("fk_execution_rollout_id_rollout")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution")),
    )
    op.create_index(op.f("ix_execution_device_id_kind_state"), "execution", ["device_id", "kind", "state"])
    op.create_index(op.f("ix_execution_rollout_id_device_id"), "execution", ["rollout_id", "device_id"], unique=True)
    op.create_index(op.f("ix_execution_rollout_id_state"), "execution", ["rollout_id", "state"])


def _execution_change() -> None:
    op.create_table(
        "execution_change",
        sa.Column("id", KEY, nullable=False),
        sa.Column("execution_id", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["execution_id"], ["execution.id"], name=op.f("fk_execution_change_execution_id_execution")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_execution_change")),
    )
    op.create_index(op.f("ix_execution_change_execution_id_id"), "execution_change", ["execution_id", "id"])


def _outcomes() -> None:
    """Every device of every rollout, with names instead of numbers; moments as in the other views."""
    dialect = op.get_bind().dialect.name
    script = op.get_context().script
    assert script is not None
    earlier = script.get_revision("0002").module
    q: Any = earlier._Sqlite if dialect == "sqlite" else earlier._Postgresql
    body = f"""
CREATE VIEW v_rollout_outcomes AS
SELECT e.id AS execution_id, e.rollout_id, o.state AS rollout_state, o.back_of, r.kind, r.version, r.number,
  e.device_id, d.name AS device, d."group" AS device_group, e.wave, e.place, e.state, e.text, e.attempts,
  b.version AS before, {earlier._moment(q, "o.created_at", "begun")}, {earlier._moment(q, "e.accepted_at", "accepted")},
  {earlier._moment(q, "e.state_at")}, {q.seconds("e.state_at")} - {q.seconds("e.accepted_at")} AS seconds, e.facts
FROM execution e
JOIN rollout o ON o.id = e.rollout_id
JOIN release r ON r.id = e.release_id
LEFT JOIN release b ON b.id = e.before_id
LEFT JOIN device d ON d.id = e.device_id"""
    op.get_bind().exec_driver_sql(body.replace("%", q.percent))
    if dialect == "postgresql":
        _allow("v_rollout_outcomes", "v_update_ledger")


def _allow(view: str, like: str) -> None:
    """Whoever may read another view of history may read this one."""
    query = (
        "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END"
        " FROM pg_class c, aclexplode(c.relacl) a"
        " WHERE c.oid = CAST(:name AS regclass) AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner"
    )
    for reader in op.get_bind().scalars(sa.text(query), {"name": like}).all():
        op.execute(f"GRANT SELECT ON {view} TO {reader}")
