"""Who may follow a leader that shuts down."""

from __future__ import annotations

from typing import Any

import pytest

from workloads.patroni.succession import End, has_everything, successor

END = End(lsn=1000, timeline=3)
WHOLE = {"role": "replica", "timeline": 3, "xlog": {"received_location": 1001, "replayed_location": 990}}


@pytest.mark.parametrize(
    ("status", "has"),
    [
        (WHOLE, True),
        ({**WHOLE, "xlog": {"replayed_location": 1120}}, True),
        ({**WHOLE, "xlog": {"received_location": 1000}}, False),
        ({**WHOLE, "timeline": 2}, False),
        ({**WHOLE, "role": "primary"}, False),
        ({**WHOLE, "tags": {"nofailover": True}}, False),
        ({**WHOLE, "xlog": {"received_location": "1001"}}, False),
        ({**WHOLE, "xlog": []}, False),
        ({"state": "starting", "role": "replica"}, False),
        ([], False),
        (None, False),
    ],
)
def test_a_member_has_everything_with_the_shutdown_checkpoint_on_the_same_timeline(status: Any, has: bool) -> None:
    """The log beyond the start of the checkpoint record counts, on the leader's timeline alone; nonsense does not."""
    assert has_everything(status, END) is has


@pytest.mark.parametrize(
    ("named", "answers", "name"),
    [
        ([], {"b": WHOLE, "a": WHOLE}, "a"),
        (["b"], {"a": WHOLE, "b": WHOLE}, None),
        (["c"], {"a": WHOLE}, "a"),
        (["c"], {"a": {**WHOLE, "timeline": 2}}, None),
        ([], {}, None),
    ],
)
def test_successor_is_named_where_nobody_named_has_everything(
    named: list[str], answers: dict[str, Any], name: str | None
) -> None:
    """A standby in the `sync` key that has everything needs no other name; a silent one gives way to one that has."""
    assert successor(named, answers, END) == name
