"""May this statement run? Decided on the engine's own parse tree, so that no spelling hides a name. Pure.

The tree is the JSON of ClickHouse's `parseQueryToJSON`: comments, quotes, case and nesting are gone from it. Every node
is looked at, wherever it stands. Lists are in `clickhouse_lists`; the parsing is `clickhouse_engine`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.local import clickhouse_lists as lists
from deploy.local.clickhouse_error import EngineError, denied

Node = dict[str, Any]
# In a string that describes columns (`generateRandom('a String DEFAULT …')`) these begin an expression.
_EXPRESSION_OF_COLUMN = re.compile(r"\b(default|materialized|alias|ephemeral|codec|ttl)\b", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[\w$-]+(\.[\w$-]+)*\Z")


@dataclass(frozen=True)
class Rules:
    """`sources` are the names that the settings add, in lower case; `table_functions` all that the engine has."""

    reads_only: bool
    sources: frozenset[str] = frozenset()
    table_functions: frozenset[str] = frozenset()
    bounds: Mapping[str, float] = field(default_factory=dict)  # a reader's settings and the most that each may be

    def refused(self, kind: str, name: str) -> EngineError:
        return denied(
            f"{kind} {name!r} is not allowed on this server. To allow it: "
            f'allow_sources = ["{name}"] in the settings, then start anew'
        )


def check_tree(tree: Node, params: Mapping[str, str], rules: Rules) -> None:
    """Refuses a statement that uses what is on no list. Raises `EngineError` (497, 164)."""
    _check_verb(tree, rules)
    for node, key, parent in _nodes(tree):
        kind = node.get("type", "")
        if kind.endswith("Query") and kind != "SetQuery":
            _check_verb(node, rules)
        _check_keys(node, rules, of_explain=parent.get("type") == "ExplainQuery")
        check = _CHECKS.get(kind)
        if check:
            check(node, key, parent, rules)
        if kind == "QueryParameter" and node.get("param_type") == "Identifier":
            _check_named(params.get(node.get("name", ""), ""), rules)


def _nodes(tree: Node) -> Iterator[tuple[Node, str, Node]]:
    """Each object of the tree with the key under which it stands and the node around it, without recursion."""
    waiting: list[tuple[Any, str, Node]] = [(tree, "", {})]
    while waiting:
        value, key, parent = waiting.pop()
        if isinstance(value, dict):
            yield value, key, parent
            waiting += [(inner, name, value) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(inner, key, parent) for inner in value]


def _check_verb(node: Node, rules: Rules) -> None:
    kind = node.get("type", "")
    if kind in lists.READS:
        return
    word = lists.WRITES.get(kind) or kind.removesuffix("Query").upper() or "?"
    if rules.reads_only:
        raise EngineError(164, f"Code: 164. DB::Exception: {word}: {ONLY_READS}. (READONLY)")
    if kind in lists.WRITES or (kind == "SetQuery" and node.get("is_standalone")):
        return
    if word.lower() not in rules.sources:
        raise rules.refused("the statement", word)


ONLY_READS = (
    "this user, and a GET request of any user, only reads. What changes something takes the user tuneloop and POST "
    "(`tuneloop sql --write`)"
)


def _check_keys(node: Node, rules: Rules, of_explain: bool) -> None:
    """What any node may carry: a file, a cluster, a form of ATTACH, settings."""
    for key, name in (("out_file", "OUTFILE"), ("infile", "INFILE"), ("cluster", "CLUSTER")):
        if node.get(key) and (rules.reads_only or name.lower() not in rules.sources):
            raise rules.refused("the clause", name)
    if node.get("attach") is True or node.get("attach_from_path") or node.get("has_attach_from_path"):
        raise rules.refused("the statement", "ATTACH")
    if "func_name" in node:  # APPLY(name)
        _check_function_name(str(node["func_name"]), rules)
    if of_explain and node.get("type") == "SetQuery":
        return  # EXPLAIN header = 1: options of EXPLAIN alone
    for change in node.get("changes") or ():
        check_setting(str(change.get("name")), change.get("value"), rules)
    for name in node.get("default_settings") or ():
        check_setting(str(name), None, rules)


def check_setting(name: str, value: Any, rules: Rules) -> None:
    """Refuses a setting that would loosen what this server enforces. `value` is a tree's or the text of a URL's."""
    lower = name.lower()
    if lower in rules.bounds:
        _check_bound(lower, value, rules.bounds[lower])
    elif lower not in rules.sources and (
        not lists.SETTINGS.match(lower) or lists.REFUSED_SETTINGS.search(lower)
    ):
        raise rules.refused("the setting", name)
    elif rules.bounds and lists.REFUSED_TO_READERS.search(lower):
        raise denied(f"the setting {name!r} is not a reader's to change")


def _check_bound(name: str, value: Any, most: float) -> None:
    given = value.get("value") if isinstance(value, dict) else value
    try:
        number = float(str(given))
    except ValueError:
        number = 0.0
    if not 0 < number <= most:
        raise denied(f"the setting {name!r} may be more than 0 and at most {most:.15g} for a reader")


def _check_function(node: Node, key: str, parent: Node, rules: Rules) -> None:
    if key == "engine" and parent.get("type") == "Storage":
        return  # see _check_storage
    name = str(node.get("name"))
    lower = name.lower()
    of_a_table = key in ("table_function", "as_table_function")
    if of_a_table and lower not in lists.TABLE_FUNCTIONS | rules.sources:
        raise rules.refused("the table function", name)
    if not of_a_table:
        _check_function_name(name, rules)
    arguments = _arguments(node)
    if lower.removeprefix("global") in _IN:  # `x IN numbers(3)`
        for inner in arguments:
            if inner.get("type") == "Function":
                _check_table_function(str(inner.get("name")), rules)
    if of_a_table and arguments and _EXPRESSION_OF_COLUMN.search(_text(arguments[0])):
        raise denied(f"an expression for a column within a string of {name}")


_IN = frozenset(
    f"{negated}{null}in{of_set}" for negated in ("", "not") for null in ("", "null") for of_set in ("", "ignoreset")
)


def _arguments(node: Node) -> list[Node]:
    children = (node.get("arguments") or {}).get("children") or []
    return [child for child in children if isinstance(child, dict)]


def _text(node: Node) -> str:
    value = node.get("value") if node.get("type") == "Literal" else None
    text = value.get("value") if isinstance(value, dict) else None
    return text if isinstance(text, str) else ""


def _check_function_name(name: str, rules: Rules) -> None:
    lower = name.lower()
    if lower in lists.REFUSED_FUNCTIONS and lower not in rules.sources:
        raise rules.refused("the function", name)
    if lower not in _ALSO_SCALAR:
        _check_table_function(name, rules)


_ALSO_SCALAR = frozenset({"format", "fuzzquery"})  # names of table functions that are harmless in an expression


def _check_table_function(name: str, rules: Rules) -> None:
    lower = name.lower()
    if lower in rules.table_functions and lower not in lists.TABLE_FUNCTIONS | rules.sources:
        raise rules.refused("the table function", name)


def _check_storage(node: Node, key: str, parent: Node, rules: Rules) -> None:
    engine = node.get("engine")
    if not engine:
        return
    name = str(engine.get("name"))
    of_database = engine.get("kind") == "DATABASE_ENGINE"
    listed = lists.DATABASE_ENGINES if of_database else lists.TABLE_ENGINES
    if name.lower() not in listed | rules.sources:
        raise rules.refused("the database engine" if of_database else "the table engine", name)


def _check_source(node: Node, key: str, parent: Node, rules: Rules) -> None:
    if key != "source":
        return
    name = str(node.get("name")).lower()
    if name in rules.sources:
        return
    if name not in lists.DICTIONARY_SOURCES:
        raise rules.refused("the dictionary source", name)
    for pair in (node.get("elements") or {}).get("children") or ():
        if str(pair.get("first")).lower() not in lists.DICTIONARY_SOURCES[name]:
            raise rules.refused("a dictionary source with the key", str(pair.get("first")))


def _check_alter(node: Node, key: str, parent: Node, rules: Rules) -> None:
    command = str(node.get("command_type"))
    if command not in lists.ALTERS and command.lower() not in rules.sources:
        raise rules.refused("the command of ALTER", command)


def _check_drop(node: Node, key: str, parent: Node, rules: Rules) -> None:
    kind = str(node.get("kind"))
    if kind.lower() not in lists.DROPS | rules.sources:
        raise rules.refused("the statement", kind.upper())


def _check_identifier(node: Node, key: str, parent: Node, rules: Rules) -> None:
    parts = node.get("name_parts") or [node.get("name")]
    _check_name([str(part) for part in parts], rules, of_a_table=node.get("type") == "TableIdentifier")


def _check_named(value: str, rules: Rules) -> None:
    """The value of an `{x:Identifier}` parameter: a table, a database, or a function for `arrayMap`."""
    if not _PLAIN_NAME.match(value):
        raise denied("the value of an Identifier parameter must be a plain name")
    _check_name(value.split("."), rules, of_a_table=True)
    _check_function_name(value, rules)


def _check_name(parts: list[str], rules: Rules, of_a_table: bool) -> None:
    """A table of `system` that is closed; or, unqualified, the name of a function (`arrayMap(file, …)`)."""
    last = parts[-1].lower()
    if last in lists.REFUSED_SYSTEM_TABLES and last not in rules.sources and (of_a_table or parts[0] == "system"):
        raise rules.refused("the table", ".".join(parts))
    if len(parts) == 1 and not of_a_table and last in lists.REFUSED_FUNCTIONS and last not in rules.sources:
        raise denied(f"{parts[0]!r} alone may mean the function: for a column write TABLE.{parts[0]}")


_CHECKS = {
    "Function": _check_function, "Storage": _check_storage, "FunctionWithKeyValueArguments": _check_source,
    "AlterCommand": _check_alter, "DropQuery": _check_drop, "Identifier": _check_identifier,
    "TableIdentifier": _check_identifier,
}  # fmt: skip
