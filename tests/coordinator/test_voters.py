"""Which servers leave Raft, in which order, and by whose hand."""

from __future__ import annotations

import itertools

from coordinator.voters import Lead, Remove, Server, next_step

A, B, C, D, E = (f"100.96.0.{n}" for n in range(1, 6))


def servers(*addresses: str, leader: str = A, dead: tuple[str, ...] = (), silent: tuple[str, ...] = ()) -> list[Server]:
    """Servers at these addresses; `silent` ones do not vote yet."""
    return [
        Server(
            server_id=f"id-{each}", address=each, leads=each == leader, votes=each not in silent, alive=each not in dead
        )
        for each in addresses
    ]


def removed(step: object) -> str | None:
    """The address of the server that a step takes out."""
    return step.server.address if isinstance(step, Remove) else None


def test_nobody_leaves_whom_the_manifest_lists() -> None:
    """Dead or alive."""
    for dead in ((), (B,), (B, C)):
        assert next_step(servers(A, B, C, dead=dead), (A, B, C, D), A) is None


def test_who_does_not_answer_leaves_first() -> None:
    """Of three, one stays and one is dead: with the living one out first, nobody would be left to agree."""
    assert removed(next_step(servers(A, B, C, dead=(C,)), (A,), A)) == C
    assert removed(next_step(servers(A, B, C, dead=(B,)), (A,), A)) == B
    assert removed(next_step(servers(A, B), (A,), A)) == B


def test_each_removal_has_a_majority_of_those_that_are_left() -> None:
    """From five to any that stay, with any that are dead, as long as they had a leader and those that stay live."""
    everybody = (A, B, C, D, E)
    for size, lost in itertools.product(range(1, 5), range(3)):
        staying = everybody[:size]
        for dead in itertools.combinations(everybody[size:], lost):
            left = list(everybody)
            while (out := removed(next_step(servers(*left, dead=dead), staying, A))) is not None:
                left.remove(out)
                alive = [each for each in left if each not in dead]
                assert len(alive) > len(left) // 2, (staying, dead, left)
            assert tuple(left) == staying


def test_only_the_leader_takes_servers_out() -> None:
    """One hand: two at once would be in each other's way."""
    assert next_step(servers(A, B, C), (A, B), B) is None
    assert next_step(servers(A, B, C, leader=""), (A, B), A) is None
    assert next_step(servers(A, B, C), (A, B), D) is None


def test_a_leader_that_leaves_hands_over() -> None:
    """To one that stays and votes, and does nothing itself."""
    three = servers(A, B, C, leader=C)
    for own in (A, B):
        step = next_step(three, (A, B), own)
        assert isinstance(step, Lead)
        assert step.server.address == own
    assert next_step(three, (A, B), C) is None
    assert next_step(servers(A, B, C, leader=C, silent=(A,)), (A, B), A) is None
