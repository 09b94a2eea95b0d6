"""Alembic's entry: migrates over the connection that the program hands in."""

from __future__ import annotations

from typing import Any

from alembic import context

from coordinator.store.models import Base, Instant


def render_item(kind: str, item: Any, _: Any) -> str | bool:
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, Instant) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
    compare_type=True,
    render_item=render_item,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
