"""Runs may begin with given weights."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("initial_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("run", "initial_sha256")
