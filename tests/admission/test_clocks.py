from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.clocks import MAX_SKEW, WARN_SECONDS, Skew, measured

NOW = 1_790_000_000.0


@given(ahead=st.floats(-1e6, 1e6), before=st.floats(0, 30), after=st.floats(0, 30), fraction=st.floats(0, 0.999))
def test_the_true_skew_is_within_what_is_measured(ahead: float, before: float, after: float, fraction: float) -> None:
    """Whenever the header was written, and however long request and answer were under way."""
    written = NOW + fraction
    header = formatdate(written, usegmt=True)
    found = measured(header, written + ahead - before, written + ahead + after)
    assert found is not None
    assert found.least - 1e-3 <= ahead <= found.most + 1e-3
    assert abs(found.certain) <= abs(ahead) + 1e-3


def test_only_what_is_certain_is_a_problem() -> None:
    """A slow answer makes no clock look wrong; from five seconds on it is said, with the side."""
    assert Skew(-20.0, 0.5).problem == ""
    assert Skew(WARN_SECONDS - 0.1, 30.0).problem == ""
    assert "is 240 s behind its coordinator's" in Skew(-241.0, -240.0).problem
    assert "is 6 s ahead of its coordinator's" in Skew(6.0, 7.0).problem
    assert f"from {MAX_SKEW:.0f} s on no coordinator admits" in Skew(6.0, 7.0).problem


@pytest.mark.parametrize("header", [None, "", "yesterday", "Mon, 99 Nov 2026 99:99:99 GMT", "9" * 5_000, "\ud800"])
def test_a_header_that_says_nothing_is_no_measurement(header: str | None) -> None:
    """Whatever a server writes there."""
    assert measured(header, NOW, NOW) is None


def test_a_clock_that_was_set_in_between_measures_nothing() -> None:
    """Then neither moment is to be believed."""
    assert measured(formatdate(NOW, usegmt=True), NOW, NOW - 1) is None
