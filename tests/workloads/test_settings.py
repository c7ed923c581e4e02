"""Names, ports and public addresses of the demo programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, network_namespace
from tests.workloads.support import add_interface
from workloads import settings

HEADER = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"


@pytest.mark.parametrize(
    ("content", "environ", "expected"),
    [
        (json.dumps({"peer_id": "api-1"}), {"PEER_ID": "env"}, "api-1"),
        (json.dumps({"peer_id": ""}), {"PEER_ID": "env"}, "env"),
        (json.dumps(["api-1"]), {"PEER_ID": "env"}, "env"),
        ("not json", {"PEER_ID": "env"}, "env"),
        (None, {"PEER_ID": "env"}, "env"),
    ],
)
def test_the_name_is_the_sidecars_else_the_environments(
    tmp_path: Path, content: str | None, environ: dict[str, str], expected: str
) -> None:
    """The admitted peer ID wins; a missing or broken file never stops the program."""
    file = tmp_path / "identity.json"
    if content is not None:
        file.write_text(content)
    assert settings.peer_name(environ, file) == expected


def test_without_any_name_the_host_has_one(tmp_path: Path) -> None:
    """The answer still says something."""
    assert settings.peer_name({}, tmp_path / "none")


def test_the_default_route_with_the_lowest_metric_wins(tmp_path: Path) -> None:
    """A second default route and narrower routes do not confuse it."""
    file = tmp_path / "route"
    file.write_text(
        HEADER
        + "eth1 00000000 0102A8C0 0003 0 0 200 00000000 0 0 0\n"
        + "eth0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\n"
        + "mesh0 00006064 00000000 0001 0 0 0 0000FFFF 0 0 0\n"
    )
    assert settings.default_interface(file) == "eth0"
    file.write_text(HEADER)
    assert settings.default_interface(file) is None
    assert settings.default_interface(tmp_path / "none") is None


def test_the_address_of_an_interface() -> None:
    """Loopback has one everywhere; an unknown name has none."""
    assert settings.interface_address("lo") == "127.0.0.1"
    assert settings.interface_address("no-such-device") is None


def test_off_and_a_given_address_are_taken_as_they_are() -> None:
    """No look-up is made for them."""
    assert settings.public_address("off") is None
    assert settings.public_address("192.0.2.7") == "192.0.2.7"


@pytest.mark.parametrize("choice", ["0.0.0.0", "127.0.0.1", "eth0", "::", "1.2.3"])
def test_an_address_that_would_take_more_than_its_own_is_refused(choice: str) -> None:
    """A wildcard takes the mesh address, loopback twice the port."""
    with pytest.raises(settings.SettingsError, match="PUBLIC_BIND"):
        settings.public_address(choice)


@pytest.mark.netns
def test_the_platforms_interface_wins_over_the_default_route() -> None:
    """In a namespace: nothing, then a default route, then dstack-wg0."""
    with network_namespace() as netns:
        assert _public_address_in(netns) == "None"
        add_interface(netns, "eth7", "10.3.0.2", gateway="10.3.0.1")
        assert _public_address_in(netns) == "10.3.0.2"
        add_interface(netns, settings.PLATFORM_INTERFACE, "10.4.0.2")
        assert _public_address_in(netns) == "10.4.0.2"


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "0"), ("PORT", "65536"), ("PORT", "http"), ("FANOUT_N", "257"), ("FANOUT_N", "-1")]
)
def test_a_number_out_of_range_is_refused(name: str, value: str) -> None:
    """The message names the variable and the range."""
    with pytest.raises(settings.SettingsError, match=f"{name} is '{value}', expected a whole number from 1"):
        settings.read({name: value, "PUBLIC_BIND": "off"}, port=80, target="", target_variable="X", public=True)


def test_defaults_and_overrides() -> None:
    """Eight samples, the program's own port and target, unless told otherwise."""
    environ = {"PEER_ID": "a"}
    found = settings.read(environ, port=8080, target="http://x/", target_variable="X_URL", public=False)
    assert (found.port, found.samples, found.target, found.public) == (8080, 8, "http://x/", None)
    environ |= {"PORT": "81", "FANOUT_N": "3", "X_URL": "http://y/"}
    found = settings.read(environ, port=8080, target="http://x/", target_variable="X_URL", public=False)
    assert (found.port, found.samples, found.target) == (81, 3, "http://y/")


def _public_address_in(netns: str) -> str:
    code = (
        "import os, sys; from pyroute2 import netns; netns.setns(sys.argv[1]); "
        "from workloads.settings import public_address; print(public_address('auto'))"
    )
    command = [sys.executable, "-c", code, netns]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("text", ["http://127.137.0.1:8081", "http://emoji:8080", "http://[::1]:1"])
def test_a_service_to_call_is_a_base_url(text: str) -> None:
    """From its variable, else the default."""
    assert settings.service_url({"EMOJI_URL": text}, "EMOJI_URL", "http://a:1") == text
    assert settings.service_url({"EMOJI_URL": ""}, "EMOJI_URL", "http://a:1") == "http://a:1"


@pytest.mark.parametrize(
    "text", ["emoji:8080", "https://emoji:1", "http://emoji", "http://a:1/x", "http://a:99999", "http://a b:1"]
)
def test_another_url_is_refused_by_its_variable(text: str) -> None:
    """With the form that is expected."""
    with pytest.raises(
        settings.SettingsError, match=r"^EMOJI_URL is .*, expected http://HOST:PORT, such as http://a:1$"
    ):
        settings.service_url({"EMOJI_URL": text}, "EMOJI_URL", "http://a:1")
