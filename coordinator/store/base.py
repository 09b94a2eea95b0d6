"""What all tables are made of. Times are UTC timestamps in the database and floats of seconds since 1970 in Python."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Integer,
    MetaData,
    Table,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase

Key = BigInteger().with_variant(Integer, "sqlite")


class Instant(TypeDecorator[float]):
    """Seconds since 1970 in Python, a timestamp in the database (microseconds, UTC)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Any) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(value, UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> float | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC).timestamp()


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {float: Instant, dict[str, Any]: JSON, list[Any]: JSON(none_as_null=True)}


def table_of(kind: type[Base]) -> Table:
    """The table itself: statements made of it once are several times faster than those made of classes each time."""
    return cast(Table, kind.__table__)
