from __future__ import annotations

import pytest

from sidecar.phases import PHASES, Progress


def test_first_phase_that_is_not_done_is_shown_with_every_reason() -> None:
    """Phases overlap; the report lists all that is missing, in order."""
    progress = Progress()
    progress.done("names")
    progress.wait("identity", "no guest agent")
    report = progress.report()
    assert report.phase == "identity"
    assert not report.ready
    assert report.reasons[:2] == ("identity: no guest agent", "admission: has not begun")


def test_ready_when_all_are_done_and_only_envoy_can_take_it_back() -> None:
    """Losing the agent or the coordinators later keeps a mesh ready; losing Envoy does not."""
    progress = Progress()
    for phase in PHASES:
        progress.done(phase)
    assert progress.report().ready
    assert progress.report().reasons == ()
    progress.wait("consul", "the agent is down")
    assert progress.report().ready
    progress.wait("envoy", "has just started")
    assert progress.report().phase == "envoy"
    progress.done("envoy")
    assert progress.report().ready


def test_an_admission_that_was_lost_takes_it_back() -> None:
    """A CVM that coordinators refused is not ready, says why, and is ready again with the next admission."""
    progress = Progress()
    for phase in PHASES:
        progress.done(phase)
    progress.wait("admission", "asks")
    assert progress.report().ready, "asking again is no loss"
    progress.lost("admission", "SLOT_TAKEN")
    assert progress.report().reasons == ("admission: SLOT_TAKEN",)
    progress.done("admission")
    assert progress.report().ready


def test_unknown_phase_is_a_mistake_of_ours() -> None:
    """A misspelt phase is found at once."""
    with pytest.raises(KeyError):
        Progress().wait("envoi", "x")
    with pytest.raises(KeyError):
        Progress().done("envoi")
    with pytest.raises(KeyError):
        Progress().lost("envoi", "x")
