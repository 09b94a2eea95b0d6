"""Training that does not wait, gates and quarantine, hold-outs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("update", sa.Column("merges", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("update", sa.Column("scores", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("update", sa.Column("holdout_samples", sa.Integer(), nullable=True))
    op.add_column("update", sa.Column("holdout_loss", sa.Float(), nullable=True))
    op.add_column("update", sa.Column("holdout_accuracy", sa.Float(), nullable=True))
    op.add_column("device", sa.Column("quarantined_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("device", sa.Column("quarantine", sa.Text(), nullable=False, server_default=""))
    op.add_column("run", sa.Column("control", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "amendment",
        sa.Column("assignment_id", sa.String(80), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name="fk_amendment_assignment_id_assignment"),
        sa.PrimaryKeyConstraint("assignment_id", "number", name="pk_amendment"),
    )
    op.create_table(
        "refresh",
        sa.Column("assignment_id", sa.String(80), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("merge", sa.Float(), nullable=False),
        sa.Column("keep", sa.Float(), nullable=False),
        sa.Column("weights_sha256", sa.String(64), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignment.id"], name="fk_refresh_assignment_id_assignment"),
        sa.PrimaryKeyConstraint("assignment_id", "version", name="pk_refresh"),
    )


def downgrade() -> None:
    op.drop_table("refresh")
    op.drop_table("amendment")
    for column in ("holdout_accuracy", "holdout_loss", "holdout_samples", "scores", "merges"):
        op.drop_column("update", column)
    op.drop_column("device", "quarantine")
    op.drop_column("device", "quarantined_at")
    op.drop_column("run", "control")
