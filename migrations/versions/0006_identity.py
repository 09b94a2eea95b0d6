"""Identity: secrets that follow one another, adoption by an operator, tags, and commands to devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("device", sa.Column("pending_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("enrolment_token", sa.Column("manual", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("credential", sa.Column("verifier", sa.String(length=140), nullable=False, server_default=""))
    op.add_column("credential", sa.Column("next", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "device_tag",
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("tag", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_tag_device_id_device")),
        sa.PrimaryKeyConstraint("device_id", "tag", name=op.f("pk_device_tag")),
    )
    op.create_index(op.f("ix_device_tag_tag"), "device_tag", ["tag"])
    op.create_table(
        "command",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("device_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_command_device_id_device")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_command")),
    )
    op.create_index(op.f("ix_command_device_id_created_at"), "command", ["device_id", "created_at"])
    op.create_index(op.f("ix_command_state_expires_at"), "command", ["state", "expires_at"])


def downgrade() -> None:
    op.drop_table("command")
    op.drop_table("device_tag")
    for table, column in (
        ("credential", "next"),
        ("credential", "verifier"),
        ("enrolment_token", "manual"),
        ("device", "pending_at"),
    ):
        op.drop_column(table, column)
