"""Which JSON schemas an engine can keep to: known keywords, well formed, cheap to compile; pure.

In: a schema as a client sent it. Out: the same, without what says how to read it (`$schema`,
`$id`), or the refusal that names the keyword. llama.cpp leaves out or drops what it cannot compile
and goes on without a word, so what is not on the list is refused here; the numbers are from
measurements of what one of its compilers (llguidance) then takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferbus_gateway.errors import ParameterError

MAX_SCHEMA_BYTES = 16 << 10
MAX_NODES = 256
MAX_DEPTH = 12
MAX_REPEAT = 256
MAX_NUMBER = (1 << 53) - 1
MAX_DIGITS = 9
"""Decimal places of a bound."""
MAX_OPTIONS = 96
MAX_BOUNDED = 48
"""Strings and numbers with bounds: more of them in one place fill the engine's lexer."""
_BOUNDED_COST = 4

Node = dict[str, Any]

_NOTES = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        "$comment",
    }
)
_READINGS = ("$schema", "$id")
"""They change where references lead and what keywords mean; here these are what they are."""
_PARTS = frozenset({"$defs", "definitions"})
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
_ALONE = ("$ref", "anyOf", "const", "enum")
"""Of these a schema has one, and beside it at most a `type` that says the same."""
_KNOWN = frozenset({"type", *_ALONE, *(name for names in _OF_TYPE.values() for name in names)})
OFFERED = (
    "type, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, "
    "minLength, maxLength, minimum, maximum, exclusiveMinimum, exclusiveMaximum, enum, const, "
    "anyOf, $ref and $defs"
)


class _SchemaError(Exception):
    """What is wrong, in words for the client."""


def check(schema: Any, param: str) -> int:
    """Check that an engine can keep to a schema; return what it costs, in parts without bounds.

    Raises:
        ParameterError: it cannot, or it costs too much.
    """
    _check_size(schema, param)
    try:
        document = _Document(schema)
        document.read(schema, "#")
        document.finish()
    except _SchemaError as error:
        raise ParameterError(param, f"a schema of {param} cannot be kept to: {error}") from None
    return len(document.nodes) + _BOUNDED_COST * document.n_bounded


def _check_size(schema: Any, param: str) -> None:
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise ParameterError(param, f"a schema of {param} is over {MAX_SCHEMA_BYTES >> 10} KiB")
    waiting = [(schema, 1)]
    n_nodes = 0
    while waiting:
        node, depth = waiting.pop()
        n_nodes += 1
        if n_nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ParameterError(
                param, f"a schema has at most {MAX_NODES} parts and is {MAX_DEPTH} deep"
            )
        below = node.values() if isinstance(node, dict) else node
        waiting += [(one, depth + 1) for one in below if isinstance(one, dict | list)]


@dataclass(slots=True)
class _Document:
    """A schema while it is read.

    Invariants: `nodes` holds every part that was read as a schema, by its pointer; a reference
    leads to one of them, or the schema is refused.
    """

    root: Any
    nodes: dict[str, Any] = field(default_factory=dict)
    n_options: int = 0
    n_bounded: int = 0

    def read(self, node: Any, at: str) -> None:
        """Read a part and all below it."""
        self.nodes[at] = node
        if not isinstance(node, dict):
            raise _SchemaError(f"{_shown(at)} must be an object")
        for name in _READINGS:
            node.pop(name, None)
        one = node.get("allOf")
        if isinstance(one, list) and len(one) == 1 and "anyOf" not in node:
            # Generators write a reference with notes beside it so.
            node["anyOf"] = node.pop("allOf")
        for name in node:
            if name not in _KNOWN and name not in _NOTES and name not in _PARTS:
                raise _SchemaError(f"{_shown(name)} is not supported; what is: {OFFERED}")
        _check_alone(node)
        types = _types(node)
        for look in (_check_object, _check_array, _check_string):
            look(node)
        if any(name in node for name in _OF_TYPE["integer"]):
            _check_bounds(node, types)
        _check_values(node, types)
        self._count(node)
        for part, below in _below(node):
            if part == "additionalProperties" and isinstance(below, bool):
                self.nodes[f"{at}/{part}"] = below
            else:
                self.read(below, f"{at}/{part}")

    def _count(self, node: Node) -> None:
        self.n_options += len(node.get("anyOf", ()))
        self.n_bounded += any(
            name in node for kind in ("string", "number") for name in _OF_TYPE[kind]
        )
        if self.n_options > MAX_OPTIONS:
            raise _SchemaError(f"all anyOf together have at most {MAX_OPTIONS} options")
        if self.n_bounded > MAX_BOUNDED:
            raise _SchemaError(f"at most {MAX_BOUNDED} strings and numbers have bounds")

    def finish(self) -> None:
        """Check what only the whole tells: where references lead, and that a value can end."""
        for node in self.nodes.values():
            if isinstance(node, dict) and "$ref" in node:
                self._target(node)
        done: set[int] = set()
        for node in self.nodes.values():
            self._check_moves(node, done, set())
        ends: set[str] = set()
        left = list(self.nodes)
        while left:
            before = len(left)
            for at in left:
                if self._ends(at, ends):
                    ends.add(at)
            # Backwards, since what a part needs mostly stands below it.
            left = [at for at in reversed(left) if at not in ends]
            if len(left) == before:
                break
        if endless := [at for at in left if self.nodes[at] is not False]:
            raise _SchemaError(f"no finite value follows {_shown(min(endless))}")

    def _target(self, node: Node) -> str:
        to: object = node["$ref"]
        # Engines differ in how they read what is escaped, and one knows no reference to the whole.
        if not isinstance(to, str) or {"%", "~"} & set(to) or to == "#" or to not in self.nodes:
            raise _SchemaError("$ref must lead to a schema within the document, as #/$defs/name")
        return to

    def _check_moves(self, node: Any, done: set[int], path: set[int]) -> None:
        """Check that references and options come to something else than where they began."""
        if not isinstance(node, dict) or id(node) in done:
            return
        if id(node) in path:
            raise _SchemaError("$ref leads back to itself with nothing between")
        path.add(id(node))
        on = [self.nodes[self._target(node)]] if "$ref" in node else node.get("anyOf", [])
        for each in on:
            self._check_moves(each, done, path)
        path.remove(id(node))
        done.add(id(node))

    def _ends(self, at: str, ends: set[str]) -> bool:
        """Tell whether some value of a part is finite, given the parts of which that is known."""
        node = self.nodes[at]
        if not isinstance(node, dict):
            return node is True
        if "$ref" in node:
            return self._target(node) in ends
        if "anyOf" in node:
            return any(f"{at}/anyOf/{number}" in ends for number in range(len(node["anyOf"])))
        types = _types(node)
        if set(types) - {"object", "array"}:
            return True
        return any(all(where in ends for where in _needed(node, at, kind)) for kind in types)


def _needed(node: Node, at: str, kind: str) -> list[str]:
    """Return the parts without which there is no value of this type."""
    if kind == "object":
        return [f"{at}/properties/{_escaped(name)}" for name in node.get("required", ())]
    n_first = len(node.get("prefixItems", ()))
    first = [f"{at}/prefixItems/{number}" for number in range(n_first)]
    more = [f"{at}/items"] if node.get("minItems") and "items" in node else []
    return first + more


def _below(node: Node) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a schema that are schemas, with their places."""
    for name in ("properties", *sorted(_PARTS)):
        found = node.get(name, {})
        if not isinstance(found, dict):
            raise _SchemaError(f"{name} must be an object")
        for key, below in found.items():
            yield f"{name}/{_escaped(key)}", below
    for name in ("anyOf", "prefixItems"):
        for number, below in enumerate(node.get(name, ())):
            yield f"{name}/{number}", below
    for name in ("items", "additionalProperties"):
        if name in node:
            yield name, node[name]


def _check_alone(node: Node) -> None:
    alone = [name for name in _ALONE if name in node]
    if not alone:
        return
    name, *more = alone
    beside = [one for one in node if one in _KNOWN and one not in {name, "type"}]
    if more or beside or ("type" in node and name in {"$ref", "anyOf"}):
        other = next(iter(more or beside), "type")
        raise _SchemaError(f"{other} beside {name} is not supported; put it into what {name} names")
    if name == "anyOf" and not (isinstance(node[name], list) and node[name]):
        raise _SchemaError("anyOf must be a list of schemas")


def _types(node: Node) -> tuple[str, ...]:
    """Return the types that a schema allows: those of `type`, all where nothing is said."""
    if "type" not in node:
        return tuple(one for one in _OF_TYPE if one != "integer")
    said = node["type"] if isinstance(node["type"], list) else [node["type"]]
    known = [one for one in said if isinstance(one, str) and one in _OF_TYPE]
    if not said or len(known) != len(said) or len(set(known)) != len(known):
        raise _SchemaError(f"type must be one of {', '.join(_OF_TYPE)}, or a list of some of them")
    return tuple(known)


def _check_values(node: Node, types: tuple[str, ...]) -> None:
    if "const" not in node and "enum" not in node:
        return
    name = "const" if "const" in node else "enum"
    values = [node[name]] if name == "const" else node[name]
    if not isinstance(values, list) or not values:
        raise _SchemaError("enum must be a list of at least one value")
    for value in values:
        kind = _kind(value)
        if kind is None:
            raise _SchemaError(f"the values of {name} must be texts, numbers, true, false or null")
        if kind not in types and not (kind == "integer" and "number" in types):
            raise _SchemaError(f"a value of {name} is not of the type beside it")
        if kind in ("integer", "number"):
            _number(value, name)


def _kind(value: Any) -> str | None:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, float):
        return "number"
    return "integer" if isinstance(value, int) else None


def _count_of(node: Node, least: str, most: str) -> tuple[int, int]:
    """Return a pair of counts, in order and within bounds."""
    for name in (least, most):
        said = node.get(name, 0)
        if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said <= MAX_REPEAT:
            raise _SchemaError(f"{name} must be a whole number from 0 to {MAX_REPEAT}")
    low, high = node.get(least, 0), node.get(most, MAX_REPEAT)
    if low > high:
        raise _SchemaError(f"{least} is more than {most}")
    return low, high


def _check_string(node: Node) -> None:
    _count_of(node, "minLength", "maxLength")


def _check_array(node: Node) -> None:
    low, _ = _count_of(node, "minItems", "maxItems")
    first = node.get("prefixItems", [])
    if not isinstance(first, list) or ("prefixItems" in node and not first):
        raise _SchemaError("prefixItems must be a list of schemas")
    if first and (
        "items" in node or {low or len(first), node.get("maxItems", len(first))} != {len(first)}
    ):
        raise _SchemaError(
            "prefixItems stands without items, and minItems and maxItems say its length"
        )


def _check_object(node: Node) -> None:
    said = node.get("properties", {})
    required = node.get("required", [])
    if not isinstance(said, dict):
        raise _SchemaError("properties must be an object")
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        raise _SchemaError("required must be a list of names")
    if not set(required) <= set(said):
        raise _SchemaError("required names what is not among the properties")


def _check_bounds(node: Node, types: tuple[str, ...]) -> None:
    if types != ("integer",):
        raise _SchemaError("minimum, maximum and the like are kept for integers only")
    for name in _OF_TYPE["integer"]:
        _number(node.get(name, 0), name)
    low = max(
        math.ceil(node.get("minimum", -MAX_NUMBER)),
        math.floor(node.get("exclusiveMinimum", -MAX_NUMBER - 1)) + 1,
    )
    high = min(
        math.floor(node.get("maximum", MAX_NUMBER)),
        math.ceil(node.get("exclusiveMaximum", MAX_NUMBER + 1)) - 1,
    )
    if low > high:
        raise _SchemaError("the bounds of an integer leave no value")


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_NUMBER:
        raise _SchemaError(f"{name} must be a number of at most {MAX_NUMBER} in size")
    if round(value, MAX_DIGITS) != value:
        raise _SchemaError(f"{name} has at most {MAX_DIGITS} decimal places")
    return value


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) < 64 else "a part"  # noqa: PLR2004 -- worth showing
