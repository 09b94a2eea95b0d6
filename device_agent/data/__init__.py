"""The device's own training data, which never leaves it: where it may come from, one module a kind of source."""

from __future__ import annotations
