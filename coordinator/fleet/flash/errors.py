"""What can be wrong with an image or a card."""

from __future__ import annotations

from coordinator.errors import ShoalError


class FlashError(ShoalError):
    """An image, a card or a wish that does not fit; the text names what, and what was expected."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad-request", detail)
