"""The remote control of a program in a container: answers, errors, silence and death."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from meshctl import probes
from meshctl.probes import Probe, ProbeError
from meshctl.runs import run_of

ECHO = """
import json, sys
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "die": sys.exit(3)
    if command["do"] == "hang": continue
    print(json.dumps({"error": "no"} if command["do"] == "fail" else {"ok": command}), flush=True)
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Probe]:
    """Starts a program here in place of one in a container."""

    def make(program: str) -> Probe:
        monkeypatch.setattr(probes, "exec_argv", lambda *_: [sys.executable, "-c", program])
        return Probe(run_of("x"), "peer-0", "some.module")

    return make


def test_answers_come_back_in_order(start: Callable[[str], Probe]) -> None:
    """A command with its fields is answered; a large answer arrives whole."""
    probe = start(ECHO)
    try:
        assert probe.do("say", word="x" * 300_000)["word"] == "x" * 300_000
        assert probe.do("say", number=2) == {"do": "say", "number": 2}
    finally:
        probe.close()


def test_what_goes_wrong_is_one_kind_of_error(start: Callable[[str], Probe]) -> None:
    """An error that it answers, silence, and its death: ProbeError that names program and peer."""
    probe = start(ECHO)
    with pytest.raises(ProbeError, match=r"some\.module in peer-0: fail: no"):
        probe.do("fail")
    assert probe.do("say") == {"do": "say"}
    with pytest.raises(ProbeError, match="hang took too long"):
        probe.do("hang", _seconds=0.2)
    with pytest.raises(ProbeError, match="is gone"):
        probe.do("say")
    probe.close()
    dying = start(ECHO)
    with pytest.raises(ProbeError, match="ended during die"):
        dying.do("die")
    dying.close()
    dying.close()
