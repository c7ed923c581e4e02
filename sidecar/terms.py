"""Names of filter chains that cut no more than they must. Pure.

A new name closes every connection through a route (`xds.spec.EgressRoute.generation`), as another sole endpoint does.
It is for an Envoy that misses some of the changes: one that held to a leader which lost its role and has it again sees
another name. Where there was nobody there is nothing to leave, and the name stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from xds.spec import EgressRoute, Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A route as it was published last."""

    asked: str
    """The generation that was wished for."""
    number: int
    """How often the name had to change. It only grows: also an Envoy that misses some of the changes sees one."""
    empty: bool
    """There was nobody to lead to."""

    @property
    def name(self) -> str:
        """The generation that is published."""
        return str(self.number) if self.number else ""


def settle(before: Mapping[str, Term], spec: Spec) -> tuple[Mapping[str, Term], Spec]:
    """The terms after `before`, and `spec` with their names as generations."""
    terms = {}
    for route in spec.egress:
        old = before.get(route.name)
        number = 0 if old is None else old.number
        if old is not None and old.asked != route.generation and not old.empty:
            number += 1
        terms[route.name] = Term(asked=route.generation, number=number, empty=_leads_nowhere(route))
    return terms, replace(
        spec, egress=tuple(replace(route, generation=terms[route.name].name) for route in spec.egress)
    )


def _leads_nowhere(route: EgressRoute) -> bool:
    return not route.endpoints if route.sole is None else route.sole.endpoint is None
