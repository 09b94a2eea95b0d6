"""Models: the specifications there are, what runs made of them, and their versions as files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, cast

from attrs import frozen
from flask import Blueprint, Response, send_file

from coordinator import auth
from coordinator.compiler.export import Format
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec, ModelSpecError
from coordinator.compiler.zoo import ZOO
from coordinator.errors import ShoalError
from coordinator.services import Services
from coordinator.store import lineage, queries
from coordinator.training import product
from protocol.subnetwork import Region, nested
from web import address, live
from web.wording import WIDTH_STEPS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_writing = BoundedSemaphore(1)
"""A file is seconds of work and holds a model in memory: one at a time."""


@frozen
class Size:
    """The part of a model that one width keeps."""

    width: float
    parameters: int
    bytes: int


@frozen(kw_only=True)
class Summary:
    """What a specification says; ``problem`` if it cannot be read."""

    name: str
    sha256: str
    input: tuple[int, ...] = ()
    classes: int = 0
    layers: tuple[Mapping[str, Any], ...] = ()
    parameters: int = 0
    problem: str = ""


def install(blueprint: Blueprint, services: Services) -> None:
    pages = Models(services)
    guard = auth.require("viewer")
    blueprint.add_url_rule("/models", "models", guard(pages.models))
    blueprint.add_url_rule("/models/<sha256>", "model", guard(pages.model))
    blueprint.add_url_rule("/runs/<id>/versions", "versions", guard(pages.versions))
    blueprint.add_url_rule("/runs/<id>/versions/<int:version>/lineage.json", "lineage", guard(pages.lineage))
    blueprint.add_url_rule("/runs/<id>/model", "product", guard(pages.product))


@frozen
class Models:
    services: Services

    def models(self) -> Response:
        """Those that were trained, and those that come with Shoal and were not."""

        def gather(session: Session, now: float) -> dict[str, Any]:
            trained = [(row, summary(row.name, row.sha256, row.spec)) for row in queries.models(session)]
            known = {row.sha256 for row, _ in trained}
            others = [summary(name, one.sha256, one) for name, one in ZOO.items() if one.sha256 not in known]
            return {"trained": trained, "others": others}

        return live.page(self.services, "models.html", gather)

    def model(self, sha256: str) -> Response:
        builtin = next((one for one in ZOO.values() if one.sha256 == sha256), None)

        def gather(session: Session, now: float) -> dict[str, Any]:
            try:
                row = queries.model(session, sha256)
            except ShoalError:
                if builtin is None:
                    raise
                found = summary(builtin.name, sha256, builtin)
                return {"found": found, "sizes": sizes(builtin), "runs": (), "row": None}
            about = summary(row.name, sha256, row.spec)
            runs = [queries.run(session, id, now).row for id in queries.runs_of(session, sha256, 30)]
            return {"found": about, "sizes": () if about.problem else sizes(row.spec), "runs": runs, "row": row}

        return live.page(self.services, "model.html", gather)

    def versions(self, id: str) -> Response:
        order = address.order("-version")

        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "id": id,
                "page": queries.versions(session, id, order),
                "model": queries.model_of(session, id),
                "steps": WIDTH_STEPS,
                "formats": formats(),
            }

        return live.page(self.services, "versions.html", gather)

    def lineage(self, id: str, version: int) -> Response:
        """Where a version comes from, as JSON that is written while it is read."""
        with self.services.database.read() as session:
            origin = lineage.origin(session, id, version)

        def parts() -> Iterator[str]:
            yield json.dumps(origin, ensure_ascii=False)[:-1]
            with self.services.database.read() as session:
                for name, rows in (("devices", lineage.devices), ("versions", lineage.versions)):
                    yield f', "{name}": '
                    before = "["
                    for row in rows(session, id, version):
                        yield f"{before}\n {json.dumps(row, ensure_ascii=False)}"
                        before = ","
                    yield "[]" if before == "[" else "\n]"
            yield "}\n"

        headers = {"Content-Disposition": f'attachment; filename="lineage-v{version}.json"'}
        return Response(parts(), content_type="application/json", headers=headers)

    def product(self, id: str) -> Response:
        """A version as a file; it is worked out on request, one after the other."""
        form = address.choice("format", formats())
        width, version = address.number("width"), address.text("version")
        number = None if not version else 0 if version == "0" else address.whole("version", 0)
        if not _writing.acquire(timeout=10):
            raise ShoalError("busy", "Another model is being written: ask again in a moment")
        try:
            with self.services.database.read() as session:
                content, name = product.product(
                    session, self.services.settings.home, id,
                    form=cast(Format, form), width=1.0 if width is None else width, version=number,
                )  # fmt: skip
        finally:
            _writing.release()
        return send_file(io.BytesIO(content), "application/octet-stream", as_attachment=True, download_name=name)


def formats() -> tuple[str, ...]:
    """What files can be had here: ONNX where its package is installed."""
    installed = find_spec("onnx") is not None
    return tuple(form for form in product.ENDINGS if form != "onnx" or installed)


def summary(name: str, sha256: str, given: ModelSpec | Mapping[str, Any]) -> Summary:
    """What a specification says of itself."""
    try:
        spec = given if isinstance(given, ModelSpec) else ModelSpec.from_json(given)
        count = Region(layout(spec)).parameters
    except ModelSpecError as error:
        return Summary(name=name, sha256=sha256, problem=str(error))
    layers = tuple(spec.to_json()["layers"])
    return Summary(
        name=name, sha256=sha256, input=spec.input, classes=spec.classes, layers=layers, parameters=count
    )


def sizes(given: ModelSpec | Mapping[str, Any]) -> tuple[Size, ...]:
    """What every width of the family keeps."""
    whole = layout(given if isinstance(given, ModelSpec) else ModelSpec.from_json(given))
    counts = [(1 / step, Region(whole, nested(whole, 1 / step)).parameters) for step in WIDTH_STEPS]
    return tuple(Size(width, count, 4 * count) for width, count in counts)


