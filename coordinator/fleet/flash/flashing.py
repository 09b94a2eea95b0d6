"""``shoal flash`` from begin to end: check, unpack, write, read back, and tell."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from coordinator.fleet.flash import card, disk
from coordinator.fleet.flash.card import Card, Written
from coordinator.fleet.flash.disk import Disk
from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.firstboot import Method
from coordinator.fleet.flash.source import Progress, announced, sha256_of, unpack

_INIT_FORMATS = {"cloudinit": "cloudinit-rpi", "systemd": "none"}
"""What Raspberry Pi Imager may add to such a card: with ``systemd`` its script and ours would both want the line."""


@frozen(kw_only=True)
class Receipt:
    """What was written where; no secret is in it. ``kept``: files of the image's own that were left as they were."""

    name: str
    group: str
    coordinator: str
    token: str
    expires_at: float
    image: str | None
    image_sha256: str | None
    image_checked: bool
    output: str
    method: Method
    partition: int
    free: int
    kept: tuple[str, ...]
    bundles: tuple[str, ...]
    files: dict[str, dict[str, Any]]
    written_at: str
    seconds: float


@frozen(kw_only=True)
class Order:
    """``method`` None finds out by itself. ``sha256`` is that of the image as it lies there; without one, a file beside
    the image is asked. ``target`` a disk, a file, or a folder for a seed (then there is no ``image``)."""

    image: Path | None
    target: Disk | Path
    method: Method | None = None
    sha256: str | None = None


@frozen
class Claim:
    """What the coordinator made for this card: the token's text and id, the group it puts the board into, its end."""

    text: str
    id: str
    group: str
    expires_at: float


def flash(order: Order, claim: Callable[[], Claim], card_of: Callable[[Claim], Card], progress: Progress) -> Receipt:
    """Write a card. ``claim`` is asked once everything else is known to fit, so that no token is made for nothing."""
    started, at = time.monotonic(), datetime.now(UTC)
    try:
        if order.image is None:
            assert isinstance(order.target, Path)
            claimed = claim()
            written = card.write_seed(order.target, card_of(claimed), at)
            return _receipt(order, claimed, card_of(claimed), written, (None, False), at, started)
        checked = _check(order, progress)
        folder = order.target.parent if isinstance(order.target, Path) else Path(tempfile.gettempdir())
        with tempfile.TemporaryDirectory(prefix=".shoal-flash-", dir=folder) as temporary:
            unpacked = Path(temporary) / "card.img"
            unpacked.touch(0o600)  # it is going to hold a token
            size = unpack(order.image, unpacked, progress)
            if isinstance(order.target, Disk) and order.target.size < size:
                raise FlashError(f"{order.target.path} has {order.target.size} bytes, the image {size}")
            claimed = claim()
            written = card.write(unpacked, card_of(claimed), at, order.method)
            if isinstance(order.target, Disk):
                disk.burn(unpacked, order.target.path, progress)
            else:
                with open(unpacked, "rb") as file:
                    os.fsync(file.fileno())
                unpacked.replace(order.target)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        raise FlashError(f"{what}{error.strerror or error}") from error
    return _receipt(order, claimed, card_of(claimed), written, checked, at, started)


def manifest(image: Path, method: Method, progress: Progress) -> dict[str, Any]:
    """What Raspberry Pi Imager wants to know of a local image (``.rpi-imager-manifest``), so that it offers the
    customisation that goes with the card's method."""
    sha256, size = sha256_of(image, progress), image.stat().st_size
    about = {
        "name": f"Shoal: {image.name}",
        "description": "Enrols by itself at the first boot. For one board: its token counts once.",
        "url": image.resolve().as_uri(),
        "extract_size": size,
        "extract_sha256": sha256,
        "image_download_size": size,
        "image_download_sha256": sha256,
        "release_date": f"{datetime.now(UTC):%Y-%m-%d}",
        "init_format": _INIT_FORMATS[method],
    }
    return {"os_list": [about]}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _check(order: Order, progress: Progress) -> tuple[str, bool]:
    """The image's sha256, and whether somebody has told what it must be."""
    assert order.image is not None
    wanted = order.sha256.lower() if order.sha256 else announced(order.image)
    found = sha256_of(order.image, progress)
    if wanted is not None and found != wanted:
        raise FlashError(f"{order.image} has sha256 {found}, expected {wanted}: download it again")
    return found, wanted is not None


def _receipt(
    order: Order, claimed: Claim, made: Card, written: Written, checked: tuple[str | None, bool], at: datetime,
    started: float,
) -> Receipt:  # fmt: skip
    return Receipt(
        name=made.name,
        group=claimed.group,
        coordinator=made.url,
        token=claimed.id,
        expires_at=claimed.expires_at,
        image=str(order.image) if order.image else None,
        image_sha256=checked[0],
        image_checked=checked[1],
        output=str(order.target.path if isinstance(order.target, Disk) else order.target),
        bundles=tuple(one.target for one in made.bundles),
        written_at=at.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 2),
        **asdict(written),
    )
