"""api, worker and webdemo as they are started: `python -m workloads.<name>`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

from tests.support import ROOT, network_namespace, popen
from tests.workloads.support import add_interface


@contextmanager
def program(name: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A demo program on a free port of loopback; yields the process and its port."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {"PATH": os.environ["PATH"], "PUBLIC_BIND": "off", "PORT": str(port), **environ}
    process = popen([sys.executable, "-m", f"workloads.{name}"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"{name}: listening on http://127.0.0.1:{port}\n"
        yield process, port
    finally:
        process.kill()
        process.communicate(timeout=10)


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and body."""
    connection = HTTPConnection(host, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_worker_says_who_it_is() -> None:
    """`/hello` has the template's text."""
    with program("worker", PEER_ID="worker-3") as (_, port):
        assert get(port, "/hello") == (200, "hello from worker-3\n")
        assert get(port, "/worker")[0] == 404


def test_api_calls_the_worker() -> None:
    """`/worker` passes the answer on, `/all` counts eight of them."""
    with program("worker", PEER_ID="worker-0") as (_, worker):
        url = f"http://127.0.0.1:{worker}/hello"
        with program("api", PEER_ID="api-0", WORKER_URL=url) as (_, port):
            assert get(port, "/hello") == (200, "hello from api-0\n")
            assert get(port, "/worker") == (200, "hello from worker-0\n")
            status, body = get(port, "/all")
            assert status == 200
            assert json.loads(body) == {"from": "api-0", "samples": 8, "results": {"hello from worker-0": 8}}


def test_api_says_why_the_worker_cannot_be_reached() -> None:
    """502 with the reason, and counted errors in the fan-out."""
    with program("worker") as (_, gone):
        pass
    with program("api", PEER_ID="api-0", FANOUT_N="2", WORKER_URL=f"http://127.0.0.1:{gone}/hello") as (_, port):
        status, body = get(port, "/worker")
        assert status == 502
        assert "Connection refused" in json.loads(body)["error"]
        results = json.loads(get(port, "/all")[1])["results"]
        assert results == {"error: ConnectionRefusedError: [Errno 111] Connection refused": 2}


def test_webdemo_calls_itself() -> None:
    """The template's `/all`: through the route of its own service."""
    with program("webdemo", PEER_ID="webdemo-0") as (process, port):
        assert get(port, "/hello") == (200, "hello from webdemo-0\n")
        assert process.poll() is None
    with program("worker", PEER_ID="webdemo-1") as (_, other):
        url = f"http://127.0.0.1:{other}/hello"
        with program("webdemo", PEER_ID="webdemo-0", WEBDEMO_URL=url) as (_, port):
            found = json.loads(get(port, "/all")[1])
    assert found == {"from": "webdemo-0", "samples": 8, "results": {"hello from webdemo-1": 8}}


@pytest.mark.netns
def test_a_public_address_is_served_beside_loopback() -> None:
    """Dual bind in a namespace: the port on loopback and on the interface of the default route, and no wildcard."""
    with network_namespace() as netns:
        add_interface(netns, "eth7", "10.3.0.2", gateway="10.3.0.1")
        script = (
            "import sys; from pyroute2 import netns; netns.setns(sys.argv.pop(1)); "
            "import runpy; runpy.run_module('workloads.api', run_name='__main__', alter_sys=True)"
        )
        env = {"PATH": os.environ["PATH"], "PEER_ID": "api-0"}
        process = popen([sys.executable, "-c", script, netns], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            assert [line.split("//")[1].strip() for line in lines] == ["127.0.0.1:8080", "10.3.0.2:8080"]
            assert [get_in(netns, host) for host in ("127.0.0.1", "10.3.0.2", "127.0.0.9")] == [
                "hello from api-0", "hello from api-0", "error: ConnectionRefusedError",
            ]  # fmt: skip
        finally:
            process.kill()
            process.communicate(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_also_while_a_connection_is_open(number: signal.Signals) -> None:
    """Exit code 0; a kept connection does not hold it up."""
    with program("worker") as (process, port):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/hello")
        connection.getresponse().read()
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
        connection.close()


@pytest.mark.parametrize(("name", "value"), [("PUBLIC_BIND", "0.0.0.0"), ("FANOUT_N", "many"), ("PORT", "-1")])
def test_bad_settings_end_it_with_2(name: str, value: str) -> None:
    """One line that names the variable."""
    env = {"PATH": os.environ["PATH"], "PUBLIC_BIND": "off", name: value}
    result = subprocess.run(
        [sys.executable, "-m", "workloads.api"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"api: {name} is '{value}'")
    assert result.stderr.count("\n") == 1


def get_in(netns: str, host: str) -> str:
    """What `/hello` on port 8080 of `host` answers inside the namespace."""
    script = (
        "import sys; from pyroute2 import netns; netns.setns(sys.argv[1])\n"
        "from workloads import calls\n"
        "try: print(calls.fetch(f'http://{sys.argv[2]}:8080/hello'))\n"
        "except calls.CallError as error: print(f'error: {error}'.rpartition(':')[0])"
    )
    command = [sys.executable, "-c", script, netns, host]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
