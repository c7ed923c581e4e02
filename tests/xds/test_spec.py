"""Principals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xds.spec import Principal


@given(st.lists(st.sampled_from(["spiffe://a", "spiffe://b"]), max_size=2), st.booleans())
def test_coverage_of_principals_is_what_rbac_would_let_in(uris: list[str], prefix: bool) -> None:
    """`covers` never claims more than the matcher admits."""
    for left in uris:
        for right in uris:
            principal = Principal(uri=left, prefix=prefix)
            assert principal.covers(Principal(uri=right)) == (right.startswith(left) if prefix else right == left)
            assert not Principal(uri=left).covers(Principal(uri=right, prefix=True))
