"""A grammar of the family's own call format, for `tool_choice` required or a named tool.

    <tool_call>\\n<function=NAME>\\n<parameter=K>V</parameter>\\n ... </function>\\n</tool_call>

(protocol.md 4.1), one call or several without anything between. The grammar is narrower than the
schemas, so that whatever is generated parses into valid arguments:

- a call has all required parameters and any of the other declared ones, each at most once, in the
  schema's order, and no others;
- a parameter that may be a string is raw text: one of its enum, or what pattern, minLength and
  maxLength allow, without the markup at which a reader of the format ends a value. `format` is an
  annotation, as in the standard. Where null is allowed too, it is spelled `null`;
- any other parameter is JSON of its schema.

A schema that says more than can be kept is refused, and the message names the keyword.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import RequestError
from mimo_engine.grammar.library import JSON_OPTIONS, MAX_GRAMMAR_BYTES, regex_source

__all__ = ["tool_grammar"]

# Of all tools together, in keys looked at and 16ths of characters: several times what fits into a
# grammar. References may name one subschema over and over, so far more may be read than is said.
_MAX_WORK = 200_000
# Of an object, what a list of parameters in fixed order cannot keep.
_UNKEPT = (
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "const", "enum"),
    *("patternProperties", "propertyNames", "maxProperties"),
    *("dependentRequired", "dependentSchemas", "dependencies"),
)
# MARKUP below, as Python reads it.
_MARKUP = re.compile(r"</parameter>|</?tool_call>|(?:^|\n)(?:<parameter=|<function=|</function>)")
_NULL: list[dict[str, Any]] = [{"values": ["null"]}]
_STRING_KEYWORDS = ("minLength", "maxLength", "pattern")

_PRELUDE = r"""
// Where a reader ends a value: a closing tag anywhere, other markup at the start of a line.
MARKUP: /(?s:.*)(<\/parameter>|<\/?tool_call>)(?s:.*)/ | LINE
LINE: /(?s:(.*\n)?)(<parameter=|<function=|<\/function>)(?s:.*)/
TEXT: /(?s:.*)/ & ~MARKUP
text[lazy]: TEXT "</parameter>\n"
"""
_END_VALUE = r'"</parameter>\n"'
_END_FUNCTION = r'"</function>\n"'


def tool_grammar(tools: Sequence[Mapping[str, Any]], *, parallel: bool = True) -> GrammarSpec:
    """For a call of any of `tools`, in the form of an OpenAI request; at least one.

    Their names are such as the format can carry (chat/tools.py sees to it). `parallel`: one call or
    more; without it, exactly one. RequestError: a schema cannot be kept.
    `GrammarCompiler.check` of the result has the last word on schemas.
    """
    assert tools
    chosen = [tool["function"] for tool in tools]
    lines = [
        "start: call+" if parallel else "start: call",
        f"call: <tool_call> ({_either(f'f{i}' for i in range(len(chosen)))}) </tool_call>",
        _PRELUDE,
    ]
    size = 0
    work = _Work()
    for i, function in enumerate(chosen):
        for line in _Function(f"f{i}", function, work).lines():
            lines.append(line)
            # Definitions are copied to each of their users: stop before that is large.
            size += len(line)
            if size > MAX_GRAMMAR_BYTES:
                raise RequestError(
                    f"the grammar of these tools has more than {MAX_GRAMMAR_BYTES} bytes: name one "
                    "tool, or use fewer definitions",
                    param="tools",
                )
    return GrammarSpec(kind="tools", text="\n".join(lines))


class _Work:
    """What may still be read for one request. It counts, so that the same tools always pass."""

    def __init__(self) -> None:
        self._left = _MAX_WORK

    def spend(self, amount: int) -> bool:
        """False when that is more than there is left."""
        self._left -= amount
        return self._left >= 0


class _Function:
    """The rules of one function; their names begin with `prefix`."""

    def __init__(self, prefix: str, function: Mapping[str, Any], work: _Work) -> None:
        self._prefix = prefix
        self._work = work
        self._name = function["name"]
        self._root = self._mapping(function.get("parameters") or {})

    def lines(self) -> Iterator[str]:
        """RequestError as `tool_grammar`."""
        try:
            yield from self._lines()
        except RecursionError:
            raise self._refusal("a schema is nested too deeply, or leads in a circle") from None

    def _lines(self) -> Iterator[str]:
        schema = self._resolve(self._root)
        declared = self._mapping(schema.get("properties", {}))
        names = self._list(schema, "required")
        if not all(isinstance(key, str) for key in names):
            raise self._refusal("'required' must be a list of names")
        required = dict.fromkeys(names)
        self._check_kept(schema, required)
        body: list[str] = []
        for i, key in enumerate(dict.fromkeys((*declared, *required))):
            value = declared.get(key, schema.get("additionalProperties", True))
            rule = f"{self._prefix}p{i}"
            rules = self._value(rule, key, value)
            if rules:
                body.append(rule if key in required else f"{rule}?")
                yield from rules
            elif key in required:
                raise self._refusal(f"no value is allowed for the required {key!r:.80}")
        head = _literal(f"\n<function={self._name}>\n")
        yield f"{self._prefix}: {head} {' '.join(body)} {_END_FUNCTION}"

    def _check_kept(self, schema: Mapping[str, Any], required: Collection[str]) -> None:
        unkept = next((keyword for keyword in _UNKEPT if keyword in schema), None)
        if unkept is None and self._count(schema, "minProperties", 0) > len(required):
            unkept = "minProperties"
        if unkept is not None:
            raise self._refusal(
                f"{unkept!r} at the top of parameters cannot be guaranteed under a required or "
                "named tool_choice; use auto, or say it inside a property"
            )

    def _value(self, rule: str, key: str, schema: Any) -> list[str]:
        """The rules of one parameter with its tags; none when nothing is valid."""
        head = _literal(f"<parameter={key}>")
        forms = self._string_forms(schema)
        if forms is None:
            return [f"{rule}: {head} {rule}v {_END_VALUE}", f"{rule}v: %json {self._json(schema)}"]
        if not any(form.get("values", True) for form in forms):
            return []
        if any(form == {} for form in forms):
            return [f"{rule}: {head} text"]
        rules = []
        for i, form in enumerate(forms):
            rules += self._string_rule(f"{rule}s{i}", form)
        return [f"{rule}: {head} ({_either(f'{rule}s{i}' for i in range(len(forms)))})", *rules]

    def _string_rule(self, rule: str, form: Mapping[str, Any]) -> list[str]:
        """A raw value of `form` and its closing tag."""
        if "values" in form:
            # With its end each literal is no other's beginning.
            ends = (_literal(f"{value}</parameter>\n") for value in form["values"])
            return [f"{rule}: {_either(ends)}"]
        least, most = self._count(form, "minLength", 0), self._count(form, "maxLength", -1)
        parts = [f"/(?s:.{{{least},{most if most >= 0 else ''}}})/", "~MARKUP"]
        if "pattern" in form:
            if not isinstance(form["pattern"], str):
                raise self._refusal("'pattern' must be a string")
            self._spend(len(form["pattern"]))
            parts.append(f"/{regex_source(_anchored(form['pattern']))}/")
        terminal = rule.upper()
        return [f"{rule}[lazy]: {terminal} {_END_VALUE}", f"{terminal}: {' & '.join(parts)}"]

    def _json(self, schema: Any) -> str:
        """The text of `schema` with the definitions that it may refer to."""
        document = dict(self._mapping(schema))
        for name in ("$defs", "definitions"):
            if name in self._root and '"$ref"' in json.dumps(schema):
                document.setdefault(name, self._root[name])
        return json.dumps({**document, "x-guidance": JSON_OPTIONS})

    def _string_forms(self, schema: Any) -> list[dict[str, Any]] | None:
        """The ways in which a string is valid: {} for any, `values`, or keywords of strings. None
        when a string is not what the schema describes; empty when nothing is valid."""
        if isinstance(schema, bool):
            return [{}] if schema else []
        schema = self._resolve(self._mapping(schema))
        while "allOf" in schema:
            parts = self._list(schema, "allOf")
            schema = {key: value for key, value in schema.items() if key != "allOf"}
            for part in parts:
                schema = self._joined(schema, part)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                branches = [branch for branch in self._list(schema, union) if branch is not False]
                rest = {key: value for key, value in schema.items() if key != union}
                found = [self._string_forms(self._joined(rest, branch)) for branch in branches]
                forms = [form for some in found for form in some or ()]
                if union == "oneOf" and sum("values" not in form for form in forms) > 1:
                    raise self._refusal("oneOf with several kinds of string; use anyOf")
                has_null = any(_is_null(branch) for branch in branches)
                return [*forms, *(_NULL if has_null else [])] if forms else None
        return self._plain_forms(schema)

    def _plain_forms(self, schema: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """As _string_forms, of a schema without references and unions."""
        types = schema.get("type", "string")
        types = [types] if isinstance(types, str) else self._list(schema, "type")
        values = [schema["const"]] if "const" in schema else self._list(schema, "enum")
        if "const" in schema or "enum" in schema:
            strings = [value for value in values if isinstance(value, str) and "string" in types]
            if not strings:
                return None
            self._read(strings)
            spelled = [*strings, *(["null"] if None in values else [])]
            return [{"values": [value for value in spelled if not _MARKUP.search(value)]}]
        if "string" not in types:
            return None
        form = {key: schema[key] for key in _STRING_KEYWORDS if key in schema}
        return [form, *_NULL] if form and "null" in types else [form]

    def _joined(self, left: Mapping[str, Any], right: Any) -> dict[str, Any]:
        """Both schemas at once. RequestError: where they say different things."""
        right = {} if right is True else self._resolve(self._mapping(right))
        for key in left.keys() & right.keys() - {"title", "description", "default", "examples"}:
            self._read(left[key])
            if left[key] != right[key]:
                raise self._refusal(f"two different {key!r:.80} for one value cannot be kept")
        return {**left, **right}

    def _resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """`schema` with what its $ref says."""
        while True:
            # Every walk through a schema comes here: unions of references could double it.
            self._spend(1 + len(schema))
            if "$ref" not in schema:
                return schema
            self._read(schema["$ref"])
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**self._target(schema["$ref"]), **rest}

    def _read(self, value: Any) -> None:
        """Pays for a walk through all of a JSON value."""
        self._spend(len(json.dumps(value)) // 16)

    def _spend(self, amount: int) -> None:
        if not self._work.spend(amount):
            raise self._refusal(
                "references and unions lead in a circle, or those of all tools are too many: name "
                "one tool, or use fewer of them"
            )

    def _target(self, reference: Any) -> Mapping[str, Any]:
        target: Any = self._root
        for part in str(reference).removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        return self._mapping(target)

    def _mapping(self, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._refusal(f"{value!r:.80} is not a schema")
        return value

    def _list(self, schema: Mapping[str, Any], key: str) -> list[Any]:
        value = schema.get(key, [])
        if not isinstance(value, list):
            raise self._refusal(f"{key!r} must be a list")
        return value

    def _count(self, schema: Mapping[str, Any], key: str, default: int) -> int:
        value = schema.get(key, default)
        if type(value) is not int or (key in schema and value < 0):
            raise self._refusal(f"{key!r} must be a number of characters or properties, at least 0")
        return value

    def _refusal(self, message: str) -> RequestError:
        return RequestError(f"tool {self._name!r:.80}: {message}", param="tools")


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "null"


def _anchored(pattern: str) -> str:
    """`pattern`, which the standard searches for anywhere, as one that matches whole values.

    Anchors are understood at the ends of its alternatives; elsewhere the library refuses them.
    """
    branches = []
    for branch in _alternatives(pattern):
        head, tail = "(?s:.*)", "(?s:.*)"
        if branch.startswith("^"):
            branch, head = branch[1:], ""
        if re.search(r"(?<!\\)(?:\\\\)*\$\Z", branch):
            branch, tail = branch[:-1], ""
        branches.append(f"{head}(?:{branch}){tail}")
    return "|".join(branches)


def _alternatives(pattern: str) -> list[str]:
    """`pattern` cut at each `|` that stands in no group, class or escape."""
    pieces: list[list[str]] = [[]]
    depth, in_class = 0, False
    for token in re.findall(r"\\.|.", pattern, re.DOTALL):
        if token == "|" and not depth and not in_class:
            pieces.append([])
            continue
        if in_class:
            in_class = token != "]"
        elif token == "[":
            in_class = True
        else:
            depth += {"(": 1, ")": -1}.get(token, 0)
        pieces[-1].append(token)
    return ["".join(piece) for piece in pieces]


def _either(rules: Iterable[str]) -> str:
    return " | ".join(rules)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
