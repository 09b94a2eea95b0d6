"""The OpenAPI 3.1 document, made from the table of endpoints and the classes they read and return."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from attrs import NOTHING, fields, has

from coordinator import __version__
from coordinator.api import problems
from coordinator.api.endpoint import Endpoint, File
from coordinator.api.shapes import alternatives, plain
from coordinator.errors import CATALOGUE
from coordinator.store.queries import Page

_PRIMITIVE: Final[Mapping[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    Any: {},
}

_PROBLEM: Final = {
    "type": "object",
    "description": "An error, after RFC 9457.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"enum": sorted(CATALOGUE)},
    },
}

_SECURITY: Final[Mapping[str, list[dict[str, list[str]]]]] = {
    "open": [],
    "device": [{"device": []}],
    "viewer": [{"token": []}, {"session": []}],
    "operator": [{"token": []}, {"session": []}],
    "admin": [{"token": []}, {"session": []}],
}


def document(endpoints: Sequence[Endpoint], prefix: str) -> dict[str, Any]:
    """The description of all endpoints, as plain JSON values."""
    components: dict[str, Any] = {"Problem": _PROBLEM}
    paths: dict[str, dict[str, Any]] = {}
    for one in endpoints:
        path = re.sub(r"<(\w+)>", r"{\1}", one.path)
        paths.setdefault(path, {})[one.method.lower()] = _operation(one, components)
    paths["/openapi.json"] = {"get": _own_operation()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal",
            "version": __version__,
            "description": "Times are seconds since 1970, sizes are bytes. Errors are problem documents (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "shoal-api.<id>.<secret>"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "shoal_session",
                    "description": "The session of a browser; whatever is not a GET also needs the header X-CSRF.",
                },
                "device": {"type": "http", "scheme": "basic", "description": "A device's id and its secret."},
            },
        },
    }


def schema(kind: Any, components: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a type; classes are added to ``components`` and referred to."""
    if kind in _PRIMITIVE:
        return dict(_PRIMITIVE[kind])
    options = alternatives(kind)
    if len(options) > 1:
        return {"anyOf": [schema(option, components) for option in options]}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is Page:
        return _page(arguments[0], components)
    if origin is dict:
        return {"type": "object", "additionalProperties": schema(arguments[1], components)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": schema(arguments[0], components)}
    if has(kind):
        return _class(kind, components)
    raise TypeError(f"{kind} has no schema")


def _operation(one: Endpoint, components: dict[str, Any]) -> dict[str, Any]:
    problem = {"content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    found: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "description": _needs(one),
        "tags": [one.call.__module__.rpartition(".")[2]],
        "security": _SECURITY[one.access],
        "parameters": _parameters(one, components),
        "responses": {
            str(one.status): {"description": "Done", "content": _content(one.answer, components)},
            "default": {"description": "Refused", **problem},
        },
    }
    if one.body is not None:
        content = {"application/json": {"schema": schema(one.body, components)}}
        found["requestBody"] = {"required": True, "content": content}
    if not found["parameters"]:
        del found["parameters"]
    return found


def _own_operation() -> dict[str, Any]:
    return {
        "operationId": "openapi",
        "summary": "This document",
        "tags": ["health"],
        "security": [],
        "responses": {"200": {"description": "Done", "content": {"application/json": {"schema": {"type": "object"}}}}},
    }


def _needs(one: Endpoint) -> str:
    match one.access:
        case "open":
            return "Open to everybody."
        case "device":
            return "For devices."
        case role:
            return f"Needs the role {role}."


def _content(answer: Any, components: dict[str, Any]) -> dict[str, Any]:
    if isinstance(answer, File):
        return {answer.media_type: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": schema(answer, components)}}


def _parameters(one: Endpoint, components: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"<(\w+)>", one.path)
    ]
    if one.query is not None:
        hints = get_type_hints(one.query)
        for field in fields(one.query):
            # A parameter is given or not, never null.
            kinds = [kind for kind in alternatives(hints[field.name]) if kind is not NoneType]
            shown = schema(kinds[0], components)
            if field.default is not None:
                shown["default"] = field.default
            found.append({"name": field.name, "in": "query", "required": False, "schema": shown})
    return found


def _class(kind: type[Any], components: dict[str, Any]) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    if kind.__name__ in components:
        return reference
    found: dict[str, Any] = {"type": "object"}
    components[kind.__name__] = found
    hints = get_type_hints(kind)
    properties: dict[str, Any] = {}
    for field in fields(kind):
        properties[field.name] = schema(hints[field.name], components)
        if field.default is not NOTHING and "$ref" not in properties[field.name]:
            properties[field.name]["default"] = plain(field.default)
    found.update(
        description=re.sub(r"\s+", " ", kind.__doc__ or ""),
        required=[field.name for field in fields(kind) if field.default is NOTHING],
        properties=properties,
        additionalProperties=False,
    )
    return reference


def _page(row: type[Any], components: dict[str, Any]) -> dict[str, Any]:
    name = f"PageOf{row.__name__}"
    components[name] = {
        "type": "object",
        "description": "One page of a list that has ``total`` rows.",
        "required": ["rows", "total", "page", "size"],
        "properties": {
            "rows": {"type": "array", "items": schema(row, components)},
            **{part: {"type": "integer"} for part in ("total", "page", "size")},
        },
        "additionalProperties": False,
    }
    return {"$ref": f"#/components/schemas/{name}"}
