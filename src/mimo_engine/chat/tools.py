"""A request's tools: their names, and what each of their parameters may be.

The call format has no quoting: a value is raw text, and only the tool's schema says whether `007`
is a number or a string (argument.py). Here a schema is reduced to a set of JSON types for each
parameter, once a request.

Schemas come from clients. References and unions are followed once each and to a limited depth, so
the work is linear in the schema, also when it refers to itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from mimo_engine.errors import RequestError

__all__ = ["MAX_NAME_LEN", "STRING", "JsonType", "ToolSchema", "TypeSet", "tool_schemas"]

JsonType = Literal["null", "boolean", "integer", "number", "string", "array", "object"]
TypeSet = frozenset[JsonType]

MAX_NAME_LEN = 256
"""Characters of a function's or parameter's name, in a request and in the model's text."""

STRING: TypeSet = frozenset({"string"})
"""What a parameter is of which nothing is known."""

_INTEGER_ONLY: TypeSet = frozenset({"integer"})
_NOTHING: TypeSet = frozenset()
_MAX_DEPTH = 100
_UNIONS = ("anyOf", "oneOf")

_FUNCTION_NAME = re.compile(rf"[^\s<>]{{1,{MAX_NAME_LEN}}}")
_INDEX = re.compile(r"[0-9]{1,9}")
_PARAMETER_NAME = re.compile(rf"[^<>\n]{{1,{MAX_NAME_LEN}}}")

# JSON's own names, and those of other languages that tool authors use (protocol.md 4.3).
_TYPE_NAMES: Mapping[str, TypeSet | None] = {
    "null": frozenset({"null"}),
    **dict.fromkeys(("string", "str", "text", "varchar", "char", "enum"), STRING),
    **dict.fromkeys(("boolean", "bool", "binary"), frozenset[JsonType]({"boolean"})),
    **dict.fromkeys(
        ("integer", "int", "int32", "int64", "uint", "long", "short", "unsigned", "bigint"),
        frozenset[JsonType]({"integer"}),
    ),
    **dict.fromkeys(("number", "num", "float", "double"), frozenset[JsonType]({"number"})),
    **dict.fromkeys(("array", "arr", "list", "tuple"), frozenset[JsonType]({"array"})),
    **dict.fromkeys(("object", "dict"), frozenset[JsonType]({"object"})),
    "any": None,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSchema:
    """One function: its name, and the types that each named parameter may have."""

    name: str
    parameters: Mapping[str, TypeSet]

    def types_of(self, parameter: str) -> TypeSet:
        """A parameter that the schema does not name is a string."""
        return self.parameters.get(parameter, STRING)


def tool_schemas(tools: Sequence[Any]) -> dict[str, ToolSchema]:
    """By name, from the `tools` of an OpenAI request, parsed but not validated.

    RequestError: not function tools, a name that the call format cannot carry or that occurs
    twice, or a `parameters` schema that is not one of an object.
    """
    schemas: dict[str, ToolSchema] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
            raise RequestError(
                f'{where} is not a function tool: send {{"type": "function", "function": ...}}',
                param=where,
            )
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise RequestError(f"{where}.function must be an object with a name", param=where)
        name = function.get("name")
        if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
            raise RequestError(
                f"{where}.function.name must be a string of 1 to {MAX_NAME_LEN} characters "
                f"without white space, '<' or '>', not {name!r:.80}",
                param=f"{where}.function.name",
            )
        if name in schemas:
            raise RequestError(
                f"{where}.function.name: {name!r:.80} is already the name of another tool",
                param=f"{where}.function.name",
            )
        try:
            parameters = _parameter_types(function.get("parameters"))
        except _SchemaError as error:
            raise RequestError(
                f"Tool {index} function has invalid 'parameters' schema: {error}",
                param=f"{where}.function.parameters",
            ) from None
        schemas[name] = ToolSchema(name=name, parameters=parameters)
    return schemas


class _SchemaError(Exception):
    """Why a schema is refused."""


def _parameter_types(schema: Any) -> dict[str, TypeSet]:
    if schema is None:
        return {}
    if not isinstance(schema, Mapping):
        raise _SchemaError("it must be an object")
    resolver = _Resolver(schema)
    if "object" not in (resolver.types(schema) or {"object"}):
        raise _SchemaError('its type must be "object"')
    found: dict[str, TypeSet] = {}
    for name, value in resolver.properties(schema):
        if not _PARAMETER_NAME.fullmatch(name):
            raise _SchemaError(
                f"the name {name!r:.80} cannot be written in a call: use 1 to {MAX_NAME_LEN} "
                "characters without '<', '>' or a newline"
            )
        # The branches of a union may declare the same parameter differently.
        found[name] = found.get(name, _NOTHING) | (resolver.types(value) or STRING)
    return found


class _Resolver:
    """Reads type sets out of one schema document. Each subschema is visited once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        # By identity of the subschema; the empty set, neutral everywhere, while it is visited.
        self._types: dict[int, TypeSet | None] = {}

    def types(self, schema: Any, depth: int = 0) -> TypeSet | None:
        """What an instance may be. None: nothing is said. Empty: only itself, in a circle."""
        if isinstance(schema, bool):
            return None
        _check_depth(depth)
        if not isinstance(schema, Mapping):
            raise _SchemaError(f"a schema must be an object or a boolean, not {schema!r:.80}")
        if id(schema) in self._types:
            return self._types[id(schema)]
        self._types[id(schema)] = _NOTHING
        result = self._visit(schema, depth + 1)
        self._types[id(schema)] = result
        return result

    def _visit(self, schema: Mapping[str, Any], depth: int) -> TypeSet | None:
        result: TypeSet | None = None
        if "type" in schema:
            result = _declared(schema["type"])
        if "const" in schema:
            result = _both(result, frozenset({_type_of(schema["const"])}))
        if isinstance(values := schema.get("enum"), list) and values:
            result = _both(result, frozenset(_type_of(value) for value in values))
        if "$ref" in schema:
            result = _both(result, self.types(self._target(schema["$ref"]), depth))
        for branch in _branches(schema, "allOf"):
            result = _both(result, self.types(branch, depth))
        for keyword in _UNIONS:
            if branches := _branches(schema, keyword):
                result = _both(result, _any([self.types(branch, depth) for branch in branches]))
        return result

    def properties(self, root: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """The parameters that `root` declares itself, by reference, or in a branch."""
        visited: set[int] = set()
        pending: list[Any] = [root]
        while pending:
            schema = pending.pop()
            if not isinstance(schema, Mapping) or id(schema) in visited:
                continue
            visited.add(id(schema))
            declared = schema.get("properties", {})
            if not isinstance(declared, Mapping):
                raise _SchemaError("properties must be an object")
            yield from declared.items()
            if "$ref" in schema:
                pending.append(self._target(schema["$ref"]))
            for keyword in ("allOf", *_UNIONS):
                pending.extend(_branches(schema, keyword))

    def _target(self, reference: Any) -> Any:
        """The subschema at a JSON pointer, such as "#/$defs/Point"."""
        if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
            raise _SchemaError(
                f'$ref {reference!r:.80} must point into the same schema ("#/$defs/...")'
            )
        target: Any = self._root
        for part in unquote(reference).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and key in target:
                target = target[key]
            elif isinstance(target, list) and _INDEX.fullmatch(key) and int(key) < len(target):
                target = target[int(key)]
            else:
                raise _SchemaError(f"$ref {reference!r:.80} points to nothing")
        return target


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _SchemaError(f"unions and references are nested more than {_MAX_DEPTH} deep")


def _branches(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    branches = schema.get(keyword, [])
    if not isinstance(branches, list):
        raise _SchemaError(f"{keyword} must be an array")
    return branches


def _declared(names: Any) -> TypeSet | None:
    sets: list[TypeSet | None] = []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name not in _TYPE_NAMES:
            raise _SchemaError(f"unknown type {name!r:.80}: use JSON schema's type names")
        sets.append(_TYPE_NAMES[name])
    return _any(sets)


def _any(sets: Sequence[TypeSet | None]) -> TypeSet | None:
    """The union. Where one says nothing, anything is allowed."""
    known = [types for types in sets if types is not None]
    return _NOTHING.union(*known) if len(known) == len(sets) else None


def _both(left: TypeSet | None, right: TypeSet | None) -> TypeSet | None:
    """The intersection, in which saying nothing is neutral, and so is a contradiction."""
    if not left or not right:
        return left or right
    common = left & right
    if "integer" in left | right and "number" in left | right:
        common |= _INTEGER_ONLY
    return common or left


def _type_of(value: Any) -> JsonType:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, Mapping) else "array"
