"""Dataclasses as JSON text, and names that are there once."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

import pytest

from runtime.jsons import canonical, once, text
from runtime.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """One that is nested."""

    z: int = 1
    a: str = "ü"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """One that nests."""

    name: str = "x"
    several: tuple[Inner, ...] = (Inner(), Inner(z=2))
    by_name: dict[str, Inner] = field(default_factory=lambda: {"b": Inner(), "a": Inner(a="")})
    nothing: Inner | None = None


def test_the_text_is_that_of_the_copied_value() -> None:
    """In both forms, nested ones too."""
    for value in (Outer(), Inner(), {"list": [Inner()]}, [], None):
        plain = dataclasses.asdict(value) if isinstance(value, Outer | Inner) else json.loads(text(value))
        assert text(value) == json.dumps(plain)
        assert canonical(value) == json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("value", [Secret("hidden"), {"a": Secret("hidden")}, Inner, object(), b"bytes"])
def test_what_has_no_form_is_refused(value: object) -> None:
    """A secret is revealed where it is needed, and not by the way; a type is no value."""
    for form in (text, canonical):
        with pytest.raises(TypeError, match="has no form in JSON") as caught:
            form(value)
        assert "hidden" not in str(caught.value)


def test_a_name_counts_once() -> None:
    """An object without repetition is read as ever; with one it is refused, wherever it stands, by name."""
    assert json.loads('{"a":1,"b":{"a":2}}', object_pairs_hook=once) == {"a": 1, "b": {"a": 2}}
    for doubled in ('{"a":1,"a":1}', '[{"b":{"a":1,"a":2}}]'):
        with pytest.raises(ValueError, match="'a' is there twice"):
            json.loads(doubled, object_pairs_hook=once)
