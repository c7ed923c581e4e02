"""Patroni's daemon as a member runs it."""

from __future__ import annotations

import importlib
import inspect

import pytest

from workloads.patroni.daemon import ask_twice, consul_address, has_failed


@pytest.mark.parametrize(
    ("checks", "failed"),
    [
        ([{"CheckID": "serfHealth", "Status": "critical"}, "nonsense"], True),
        ([{"CheckID": "serfHealth", "Status": "passing"}, {"CheckID": "x:member", "Status": "critical"}], False),
        ([], False),
    ],
)
def test_gossip_says_who_has_failed(checks: list[object], failed: bool) -> None:
    """Only gossip's own check counts: a member whose Patroni has just ended is asked as any other."""
    assert has_failed(checks) is failed


def test_agent_is_found_before_and_after_patroni_took_its_address_apart() -> None:
    """Patroni's own client does so, to the very section that is read here."""
    section: dict[str, object] = {"host": "127.0.0.1:8511", "token": "t", "ttl": 20, "retry_timeout": 5, "loop_wait": 2}
    assert consul_address(section) == "127.0.0.1:8511"
    importlib.import_module("patroni.postgresql")
    source = inspect.getsource(importlib.import_module("patroni.dcs.consul").Consul.__init__)
    assert "config['host'] = host" in source
    assert "config['port'] = int(port)" in source
    assert consul_address({"host": "127.0.0.1", "port": 8511}) == "127.0.0.1:8511"


@pytest.mark.parametrize(
    ("answers_within", "gone", "asked", "answered"),
    [
        (0.1, False, [0.3], True),
        (1.0, False, [0.3, 1.7], True),
        (9.0, False, [0.3, 1.7], False),
        (9.0, True, [0.3], False),
    ],
)
def test_only_who_is_late_is_looked_up(answers_within: float, gone: bool, asked: list[float], answered: bool) -> None:
    """Who answers at once costs no other question; who does not gets the rest of the time unless gossip gave it up."""
    limits: list[float] = []
    looked_up: list[bool] = []

    def ask(seconds: float) -> bool:
        limits.append(seconds)
        if answers_within > seconds:
            raise TimeoutError
        return True

    def failed() -> bool:
        looked_up.append(gone)
        return gone

    if answered:
        assert ask_twice(ask, 2.0, failed) is True
    else:
        with pytest.raises(TimeoutError):
            ask_twice(ask, 2.0, failed)
    assert limits == pytest.approx(asked)
    assert len(looked_up) == (answers_within > 0.3)


def test_another_error_is_handed_on_at_once() -> None:
    """A refusal says enough: nobody is asked again, nor Consul at all."""

    def refuse(seconds: float) -> None:
        raise ConnectionRefusedError(seconds)

    with pytest.raises(ConnectionRefusedError, match=r"0\.3"):
        ask_twice(refuse, 2.0, lambda: pytest.fail("nobody needs to be looked up"))


def test_patroni_asks_as_expected() -> None:
    """The question that is asked twice is told from the others by its arguments."""
    importlib.import_module("patroni.postgresql")
    ha = importlib.import_module("patroni.ha")
    assert "self.patroni.request(member, timeout=2, retries=0)" in inspect.getsource(ha.Ha.fetch_node_status)
