"""The votes of one process."""

from __future__ import annotations

import threading

import pytest

from workloads.voting import Ballot


def test_votes_are_counted_and_ranked() -> None:
    """The most first; of equals the one whose name comes first."""
    ballot = Ballot()
    assert ballot.results() == []
    assert [ballot.vote(code) for code in (":taco:", ":pizza:", ":beer:", ":taco:")] == [1, 1, 1, 2]
    assert ballot.results() == [(":taco:", 2), (":beer:", 1), (":pizza:", 1)]


def test_only_what_there_is_gets_votes() -> None:
    """So what callers send cannot fill the memory."""
    ballot = Ballot()
    with pytest.raises(KeyError):
        ballot.vote(":nobody:")
    assert ballot.results() == []


def test_no_vote_is_lost_between_threads() -> None:
    """Each request has its own thread."""
    ballot = Ballot()

    def votes() -> None:
        for _ in range(2000):
            ballot.vote(":taco:")

    threads = [threading.Thread(target=votes) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ballot.results() == [(":taco:", 8000)]
