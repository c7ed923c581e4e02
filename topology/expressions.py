"""Evaluates the part of HCL that a cluster may use: literals, templates, maps, lists and references. Pure.

Functions, operators, conditionals, `for`, splats and heredocs are refused with their own text in the message: they are
Terraform's, and two evaluators of one language would sooner or later disagree about what a CVM gets.
Works on the parse tree of python-hcl2, because only that tree has line numbers and shows a key written twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from hcl2.utils import process_escape_sequences
from lark import Token, Tree

from topology.problems import Problems, Where

Syntax: TypeAlias = "Tree[Token]"


class Unknown:
    """The value of an expression that was refused. The problem is noted already; readers pass over it."""


Value: TypeAlias = "str | int | float | bool | tuple[Node, ...] | dict[str, Node] | Unknown | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A value and where it was written."""

    value: Value
    where: Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file as it was read."""

    file: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """An expression that was not evaluated yet."""

    syntax: Syntax
    source: Source

    @property
    def where(self) -> Where:
        """The line on which the expression starts."""
        return Where(file=self.source.file, line=self.syntax.meta.line if not self.syntax.meta.empty else None)

    @property
    def text(self) -> str:
        """The expression as written, on one line, at most 80 characters."""
        written = self.source.text[self.syntax.meta.start_pos : self.syntax.meta.end_pos]
        return " ".join(written.split())[:80]


class Scope(Protocol):
    """What references mean. Each method returns the value, or a string that says why there is none."""

    def variable(self, name: str) -> Node | str:
        """`var.<name>`."""

    def local(self, name: str) -> Node | str:
        """`local.<name>`."""

    def path(self, name: str) -> Node | str:
        """`path.<name>`."""


def evaluate(expression: Expression, scope: Scope | None, entry: str, problems: Problems) -> Node:
    """The value of `expression`; parts that are refused become `Unknown` and a problem that names `entry`.

    `scope=None` is a place where only literals may stand (variable defaults, terraform.tfvars).
    """
    return _Evaluator(expression.source, scope, problems).node(expression.syntax, entry)


def parts(syntax: Syntax) -> Iterator[Syntax]:
    """The subtrees of `syntax` without punctuation, newlines and comments."""
    for child in syntax.children:
        if isinstance(child, Tree) and child.data != "new_line_or_comment":
            yield child


def crowded(syntax: Syntax, kind: str) -> Iterator[Syntax]:
    """The elements of that `kind` in `syntax` that stand on one line with the one before, and no comma between them.
    python-hcl2 takes them, and Terraform does not.
    """
    parted = True
    for child in syntax.children:
        if isinstance(child, Tree) and child.data == kind:
            if not parted:
                yield child
            parted = False
        elif isinstance(child, Tree):
            parted = parted or any("\n" in str(token) for token in child.scan_values(lambda _: True))
        else:
            parted = parted or child.type == "COMMA"


def plain_string(syntax: Syntax) -> str | None:
    """The text of an identifier or of a quoted string without templates; None for anything else."""
    if syntax.data in ("identifier", "keyword", "literal_value"):
        return str(syntax.children[0])
    if syntax.data != "string":
        return None
    tokens = [part.children[0] for part in parts(syntax)]
    if any(isinstance(token, Tree) for token in tokens):
        return None
    return "".join(_literal(token) for token in tokens if isinstance(token, Token))


def _literal(token: Token) -> str:
    if token.type in ("ESCAPED_INTERPOLATION", "ESCAPED_DIRECTIVE"):
        return str(token)[1:]
    return str(process_escape_sequences(str(token)))


class _Evaluator:
    def __init__(self, source: Source, scope: Scope | None, problems: Problems) -> None:
        self._source = source
        self._scope = scope
        self._problems = problems

    def node(self, syntax: Syntax, entry: str) -> Node:
        return Node(value=self._value(syntax, entry), where=self._expression(syntax).where)

    def _value(self, syntax: Syntax, entry: str) -> Value:
        kind = str(syntax.data)
        if kind == "expr_term":
            return self._value(next(parts(syntax)), entry)
        if kind in ("int_lit", "float_lit", "literal_value"):
            return _number_or_word(syntax)
        if kind == "string":
            return self._template(syntax, entry)
        if kind == "tuple":
            return tuple(self.node(part, f"{entry}[{index}]") for index, part in enumerate(parts(syntax)))
        if kind == "object":
            return self._object(syntax, entry)
        if kind == "unary_op":
            return self._negative(syntax, entry)
        if kind in ("get_attr_expr_term", "index_expr_term"):
            return self._reference(syntax, entry)
        return self._refuse(syntax, entry)

    def _negative(self, syntax: Syntax, entry: str) -> Value:
        operand = self._value(next(parts(syntax)), entry)
        sign = syntax.children[0]
        if isinstance(operand, int | float) and not isinstance(operand, bool) and str(sign) == "-":
            return -operand
        return self._refuse(syntax, entry)

    def _object(self, syntax: Syntax, entry: str) -> dict[str, Node] | Unknown:
        for element in crowded(syntax, "object_elem"):
            message = f"`{self._expression(element).text}` follows on one line without a comma; write one before it"
            self._problems.add(self._expression(element).where, entry, message)
        found: dict[str, Node] = {}
        for element in parts(syntax):
            if element.data != "object_elem":
                return self._refuse(syntax, entry)
            key_syntax, value_syntax = parts(element)
            inner = next(parts(key_syntax), key_syntax)
            while inner.data == "expr_term":
                inner = next(parts(inner))
            key = plain_string(inner) if len(key_syntax.children) == 1 else None
            if inner.data == "int_lit":
                key = str(inner.children[0])
            if key is None:
                self._refuse(key_syntax, entry)
                continue
            if key in found:
                first = found[key].where.line
                message = (
                    f"is written twice (first on line {first}); Terraform would drop one silently, remove or rename it"
                )
                self._problems.add(self._expression(key_syntax).where, f"{entry}.{key}", message)
            value = self.node(value_syntax, f"{entry}.{key}")
            # The key's line is what a person looks for; a map's own brace may stand elsewhere.
            found[key] = replace(value, where=self._expression(key_syntax).where)
        return found

    def _template(self, syntax: Syntax, entry: str) -> Value:
        pieces = list(parts(syntax))
        contents = [piece.children[0] for piece in pieces]
        if len(contents) == 1 and isinstance(contents[0], Tree) and contents[0].data == "interpolation":
            # HCL: a template that is one interpolation only has that value's own type.
            return self._value(next(parts(contents[0])), entry)
        words: list[str] = []
        for content in contents:
            if isinstance(content, Token):
                words.append(_literal(content))
                continue
            if content.data != "interpolation":
                return self._refuse(content, entry)
            value = self._value(next(parts(content)), entry)
            if isinstance(value, Unknown):
                return value
            if value is None or isinstance(value, dict | tuple):
                return self._refuse(
                    content, entry, "is not text, a number or a bool, so it cannot stand inside a string"
                )
            words.append(str(value).lower() if isinstance(value, bool) else str(value))
        return "".join(words)

    def _reference(self, syntax: Syntax, entry: str) -> Value:
        steps = _steps(syntax)
        if steps is None or len(steps) < 2 or steps[0] not in ("var", "local", "path"):
            return self._refuse(syntax, entry)
        if self._scope is None:
            return self._refuse(syntax, entry, "is a reference where only a literal may stand; write the value itself")
        lookup = {"var": self._scope.variable, "local": self._scope.local, "path": self._scope.path}[steps[0]]
        found = lookup(steps[1])
        if isinstance(found, str):
            return self._refuse(syntax, entry, found)
        value = found.value
        for step in steps[2:]:
            if isinstance(value, dict) and step in value:
                value = value[step].value
            elif isinstance(value, tuple) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)].value
            elif isinstance(value, Unknown):
                return value
            else:
                return self._refuse(
                    syntax, entry, f"has no element {step!r}; see where {steps[0]}.{steps[1]} is defined"
                )
        return value

    def _refuse(self, syntax: Syntax, entry: str, why: str = "") -> Unknown:
        reason = why or (
            'is not supported here: use literals, var.*, local.*, path.module and "${…}" strings, '
            "and compute the value in terraform.tfvars or by hand"
        )
        expression = self._expression(syntax)
        self._problems.add(expression.where, entry, f"the expression `{expression.text}` {reason}")
        return Unknown()

    def _expression(self, syntax: Syntax) -> Expression:
        return Expression(syntax=syntax, source=self._source)


def _number_or_word(syntax: Syntax) -> int | float | bool | None:
    token = str(syntax.children[0])
    if syntax.data == "int_lit":
        return int(token)
    if syntax.data == "float_lit":
        return float(token)
    return {"true": True, "false": False}.get(token)


def _steps(syntax: Syntax) -> list[str] | None:
    """`var.a["b"][0]` as `["var", "a", "b", "0"]`; None when it is not such a plain path."""
    if syntax.data == "expr_term" and len(syntax.children) == 1:
        return _steps(next(parts(syntax)))
    if syntax.data == "identifier":
        return [str(syntax.children[0])]
    if syntax.data not in ("get_attr_expr_term", "index_expr_term"):
        return None
    base, step = parts(syntax)
    before = _steps(base)
    if before is None:
        return None
    if step.data == "short_index":
        return [*before, str(step.children[-1])]
    last = list(parts(step))[-1]
    while last.data == "expr_term":
        last = next(parts(last))
    name = str(last.children[0]) if last.data == "int_lit" else plain_string(last)
    return None if name is None else [*before, name]
