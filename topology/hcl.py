"""Reads the `*.tf` files and `terraform.tfvars` of a folder: variables, locals and the names of outputs.

Resources, modules and providers are parsed and passed over: they are Terraform's business. IO: reads that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import hcl2
from lark import UnexpectedInput
from lark.exceptions import LarkError

from topology.expressions import (
    Expression,
    Node,
    Source,
    Syntax,
    Unknown,
    Value,
    crowded,
    evaluate,
    parts,
    plain_string,
)
from topology.problems import Problems, Where, did_you_mean

TFVARS = "terraform.tfvars"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One `variable` block."""

    where: Where
    type: str
    """The type constraint as written, "" when there is none."""
    default: Expression | None


class Module:
    """A folder of Terraform files, and the scope in which its expressions are evaluated."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self.folder = folder
        self.variables: dict[str, Variable] = {}
        self.outputs: dict[str, Where] = {}
        self.locals: dict[str, Expression] = {}
        self.given: dict[str, Expression] = {}
        """What `terraform.tfvars` sets."""
        self.whole = True
        """False after `read` when a file could not be read: what is missing may be in it."""
        self._problems = problems
        self._overrides: dict[str, str] = {}
        self._known: dict[str, Node | str] = {}
        self._busy: list[str] = []

    def read(self) -> None:
        """Reads every file. What cannot be parsed is a problem; the rest is still read."""
        for file in sorted(self.folder.glob("*.tf")):
            if file.stem == "override" or file.stem.endswith("_override"):
                message = "override files are not supported; move the change into the file that it overrides"
                self._problems.add(Where(file=str(file)), file.name, message)
                continue
            for body, source in self._parse(file):
                self._read_body(body, source)
        tfvars = self.folder / TFVARS
        if tfvars.exists():
            for body, source in self._parse(tfvars):
                self.given = dict(self._attributes(body, source))
        for name, expression in self.given.items():
            if name not in self.variables:
                self._unknown_variable(expression.where, name)

    def override(self, values: Mapping[str, str]) -> None:
        """Sets variables from outside; they win over `terraform.tfvars`."""
        for name, text in values.items():
            if name in self.variables:
                self._overrides[name] = text
            else:
                self._unknown_variable(Where(file=f"override {name}"), name)

    def evaluate(self, expression: Expression, entry: str) -> Node:
        """The value of `expression` in this module."""
        return evaluate(expression, self, entry, self._problems)

    def variable(self, name: str) -> Node | str:
        """The value of `var.<name>`, or why it has none."""
        if name not in self.variables:
            return f"names a variable that does not exist; {did_you_mean(name, self.variables)}"
        return self._once(f"var.{name}", lambda: self._variable(name, self.variables[name]))

    def local(self, name: str) -> Node | str:
        """The value of `local.<name>`, or why it has none."""
        if name not in self.locals:
            return f"names a local that does not exist; {did_you_mean(name, self.locals)}"
        return self._once(f"local.{name}", lambda: self.evaluate(self.locals[name], f"local.{name}"))

    def path(self, name: str) -> Node | str:
        """`path.module` is the folder; Terraform's other paths depend on where it is started."""
        if name != "module":
            return "is not supported; use path.module"
        return Node(value=str(self.folder), where=Where(file=str(self.folder)))

    def _once(self, name: str, compute: Callable[[], Node | str]) -> Node | str:
        if name in self._busy:
            return f"depends on itself ({' -> '.join([*self._busy, name])}); break the circle"
        if name not in self._known:
            self._busy.append(name)
            self._known[name] = compute()
            self._busy.pop()
        return self._known[name]

    def _variable(self, name: str, variable: Variable) -> Node | str:
        entry = f"variable {name}"
        if name in self._overrides:
            where = Where(file=f"override {name}")
            value: Value = _from_text(self._overrides[name], variable, self._default_of(name, variable))
            return self._typed(Node(value=value, where=where), name, variable)
        expression = self.given.get(name, variable.default)
        if expression is None:
            return f"has no value: set {name} in {self.folder / TFVARS}, or give it a default"
        return self._typed(evaluate(expression, None, entry, self._problems), name, variable)

    def _default_of(self, name: str, variable: Variable) -> Value:
        if variable.default is None:
            return None
        return evaluate(variable.default, None, f"variable {name}", self._problems).value

    def _typed(self, node: Node, name: str, variable: Variable) -> Node:
        """Converts as Terraform does between text, numbers and bools; anything else must fit already."""
        value = node.value
        if value is None or isinstance(value, Unknown):
            return node
        converted = _convert(value, variable.type)
        if isinstance(converted, Unknown):
            shown = value if isinstance(value, str | int | float) else "a list or map"
            self._problems.add(node.where, f"variable {name}", f"is {shown!r}, expected a {variable.type}")
        return replace(node, value=converted)

    def _unknown_variable(self, where: Where, name: str) -> None:
        message = f"is not a variable of {self.folder}; {did_you_mean(name, self.variables)}"
        self._problems.add(where, name, message)

    def _parse(self, file: Path) -> Iterator[tuple[Syntax, Source]]:
        try:
            text = file.read_text(encoding="utf-8")
            tree = hcl2.parses_to_tree(text)
        except UnexpectedInput as error:
            self.whole = False
            # The end of the file has line -1.
            where = Where(file=str(file), line=error.line if error.line > 0 else None)
            self._problems.add(where, file.name, f"is not valid HCL {_wrong_where(error, text)}")
        except (LarkError, RecursionError, UnicodeDecodeError, OSError) as error:
            self.whole = False
            self._problems.add(Where(file=str(file)), file.name, f"cannot be read: {error}")
        else:
            yield next(parts(tree)), Source(file=str(file), text=text)

    def _read_body(self, body: Syntax, source: Source) -> None:
        for block in parts(body):
            if block.data != "block":
                continue
            *label_parts, inner = parts(block)
            labels = [plain_string(part) or "" for part in label_parts]
            where = Where(file=source.file, line=block.meta.line)
            if labels == ["locals"]:
                for name, expression in self._attributes(inner, source):
                    self._first(self.locals, f"local.{name}", name, expression, expression.where)
            elif labels[0] == "variable" and len(labels) == 2:
                fields = dict(self._attributes(inner, source))
                kind = fields["type"].text if "type" in fields else ""
                made = Variable(where=where, type=kind, default=fields.get("default"))
                self._first(self.variables, f"variable {labels[1]}", labels[1], made, where)
            elif labels[0] == "output" and len(labels) == 2:
                self._first(self.outputs, f"output {labels[1]}", labels[1], where, where)

    def _first(self, table: dict[str, T], entry: str, name: str, made: T, at: Where) -> None:
        if name in table:
            self._problems.add(at, entry, "is defined twice; remove one of them")
        else:
            table[name] = made

    def _attributes(self, body: Syntax, source: Source) -> Iterator[tuple[str, Expression]]:
        seen: set[str] = set()
        for attribute in crowded(body, "attribute"):
            written = Expression(syntax=attribute, source=source)
            message = f"`{written.text}` follows on one line; write it on a line of its own"
            self._problems.add(written.where, plain_string(next(parts(attribute))) or "", message)
        for attribute in parts(body):
            if attribute.data != "attribute":
                continue
            name_syntax, value = parts(attribute)
            name = plain_string(name_syntax) or ""
            if name in seen:
                where = Where(file=source.file, line=attribute.meta.line)
                self._problems.add(where, name, "is set twice; remove one of them")
                continue
            seen.add(name)
            yield name, Expression(syntax=value, source=source)


def _from_text(text: str, variable: Variable, default: Value) -> Value:
    """The value of an override: text, read as what the variable's type, or else its default, says."""
    kind = variable.type or {bool: "bool", int: "number", float: "number"}.get(type(default), "string")
    if kind in ("string", "any"):
        return text
    converted = _convert(text, kind)
    return text if isinstance(converted, Unknown) else converted


def _wrong_where(error: UnexpectedInput, text: str) -> str:
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return "at its end: a '}', ']', ')' or '\"' is missing, here or further up"
    near = " ".join(error.get_context(text, 30).split("\n")[0].split())
    return f"near `{near}`; terraform validate shows more"


def _convert(value: Value, kind: str) -> Value:
    if kind == "string" and isinstance(value, int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if kind == "number" and isinstance(value, str):
        return _number(value)
    if kind == "bool" and isinstance(value, str):
        return {"true": True, "false": False}.get(value, Unknown())
    wanted = {"string": str, "number": int | float, "bool": bool}.get(kind)
    fits = wanted is None or (isinstance(value, wanted) and not (kind == "number" and isinstance(value, bool)))
    if kind.startswith(("list", "set", "tuple")):
        fits = isinstance(value, tuple)
    if kind.startswith(("map", "object")):
        fits = isinstance(value, dict)
    return value if fits else Unknown()


def _number(text: str) -> Value:
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return Unknown()
