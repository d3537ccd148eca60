"""The form that a request wants its answer in, as one grammar.

OpenAI says it with `response_format`, SGLang with `regex` and `ebnf`, vLLM with
`structured_outputs`. All of them end as a `GrammarSpec`; a request may use one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import RequestError

__all__ = ["FORMAT_FIELDS", "answer_format"]


def answer_format(fields: Mapping[str, Any]) -> tuple[str, GrammarSpec] | None:
    """The one of FORMAT_FIELDS that asks for a form, and its grammar. None: free text.

    RequestError: a field is malformed, or two of them ask.
    """
    found = []
    for name, read in _READERS.items():
        grammar = None if fields.get(name) is None else read(fields[name])
        if grammar is not None:
            found.append((name, grammar))
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise RequestError(f"{names} exclude each other: give one of them", param=found[1][0])
    return found[0] if found else None


def _response_format(given: Mapping[str, Any]) -> GrammarSpec | None:
    kind = given.get("type")
    if kind == "json_schema":
        _check_keys(given, "response_format", ("type", "json_schema"))
        inner, where = given.get("json_schema"), "response_format.json_schema"
        if not isinstance(inner, dict) or inner.get("schema") is None:
            raise RequestError(f"{where}.schema is required", param="response_format")
        _check_keys(inner, where, ("name", "description", "schema", "strict"))
        return _json_schema(inner["schema"], f"{where}.schema")
    _check_keys(given, "response_format", ("type",))
    if kind not in ("text", "json_object"):
        raise RequestError(
            f"response_format.type is {kind!r}: choose text, json_object or json_schema",
            param="response_format",
        )
    return _any_object() if kind == "json_object" else None


def _structured_outputs(given: Mapping[str, Any]) -> GrammarSpec | None:
    given = {key: value for key, value in given.items() if value not in (None, False)}
    where = "structured_outputs"
    _check_keys(given, where, ("json", "json_object", "regex", "choice", "grammar"))
    if len(given) != 1:
        raise RequestError(f"{where} must have exactly one key", param=where)
    match given:
        case {"json": str() as text}:
            return GrammarSpec(kind="json_schema", text=text)
        case {"json": schema}:
            return _json_schema(schema, f"{where}.json")
        case {"json_object": True}:
            return _any_object()
        case {"regex": str() as text}:
            return GrammarSpec(kind="regex", text=text)
        case {"grammar": str() as text}:
            return GrammarSpec(kind="lark", text=text)
        case {"choice": [_, *_] as texts} if all(isinstance(text, str) for text in texts):
            # A string literal of Lark is one of JSON.
            return GrammarSpec(kind="lark", text="start: " + " | ".join(map(json.dumps, texts)))
    raise RequestError(
        f"{where}.{next(iter(given))} has the wrong type: json is a schema, json_object is true, "
        "regex and grammar are strings, choice is a list of strings",
        param=where,
    )


def _json_schema(schema: Any, where: str) -> GrammarSpec:
    if not isinstance(schema, dict):
        raise RequestError(
            f"{where} must be a JSON schema, which is an object", param=where.partition(".")[0]
        )
    return GrammarSpec(kind="json_schema", text=json.dumps(schema))


def _any_object() -> GrammarSpec:
    return GrammarSpec(kind="json_schema", text='{"type": "object"}')


def _check_keys(given: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise RequestError(
                f"{where} has the key {key!r}; it takes {', '.join(known)}",
                param=where.partition(".")[0],
            )


_READERS: dict[str, Callable[[Any], GrammarSpec | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "regex": lambda text: GrammarSpec(kind="regex", text=text),
    "ebnf": lambda text: GrammarSpec(kind="lark", text=text),
}
FORMAT_FIELDS = tuple(_READERS)
