"""What the status says of applications: containers that end, ports on which nobody is reached."""

from __future__ import annotations

from typing import Any

import pytest

from meshctl import applications


def container(name: str = "api", **changes: Any) -> dict[str, Any]:
    """A container of the raw status that runs."""
    usual = {"state": "running", "restarts": 0, "exit_code": None, "uptime_s": 60.0, "is_sidecar": False}
    return {"name": name, **usual, **changes}


def backend(name: str = "api", problem: str | None = None, holder: str | None = "api") -> dict[str, Any]:
    """A backend of the raw status on port 8080, held by a process of container `holder`."""
    listener = {"address": "127.0.0.1", "inode": 5, "container": holder, "process": "python3"}
    return {"name": name, "port": 8080, "listeners": [] if problem else [listener], "problem": problem}


def peer(*containers: dict[str, Any], backends: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A peer of the document, made of a machine of the raw status."""
    machine = {"containers": [container("sidecar", is_sidecar=True), *containers], "sidecar": {"backends": backends}}
    told, ports = applications.of_machine(machine)
    return {"peer_id": "api-0", "applications": told, "backends": ports}


def test_a_sound_application_is_one_line() -> None:
    """Its state, its port, and who listens there; nothing is wrong."""
    document = {"peers": [peer(container(), backends=(backend(),))]}
    assert applications.rows(document) == [("api-0", "api", "running", "api: port 8080 on 127.0.0.1 (python3)")]
    assert applications.trouble(document) == []


def test_an_application_that_keeps_ending_is_said() -> None:
    """Between two restarts, and in the moment in which it runs again."""
    gone = container(state="exited with code 3, restarting", restarts=7, exit_code=3, uptime_s=None)
    again = container(restarts=7, exit_code=3, uptime_s=0.2)
    for item, words in (
        (gone, "restarting, exit code 3, 7 restarts"),
        (again, "running, last exit code 3, 7 restarts"),
    ):
        document = {"peers": [peer(item)]}
        assert applications.rows(document) == [("api-0", "api", words, "-")]
        assert applications.trouble(document) == [f"api-0: api {words}; ./mesh logs api-0 shows why"]


def test_one_restart_long_ago_is_no_trouble() -> None:
    """What runs for longer than Docker's back-off remembers is steady."""
    assert applications.trouble({"peers": [peer(container(restarts=7, exit_code=1, uptime_s=11.0))]}) == []


def test_a_container_that_compose_gave_up_on_is_said() -> None:
    """Never started, with the reason."""
    told = "not started: the sidecar was unhealthy after 300 s"
    document = {"peers": [peer(container(state=told, uptime_s=None))]}
    assert document["peers"][0]["applications"][0]["state"] == "not started"
    assert told in applications.trouble(document)[0]


def test_a_port_on_which_nobody_is_reached_is_said() -> None:
    """In the container's line and as trouble, but not of a container that waits for the mesh."""
    wrong = "nothing listens on 127.0.0.1:8080"
    document = {"peers": [peer(container(), backends=(backend(problem=wrong),))]}
    assert applications.rows(document)[0][3] == f"api: {wrong}"
    assert applications.trouble(document) == [f"api-0: api: {wrong}"]
    waits = container(state="waiting for the sidecar's health", uptime_s=None)
    document = {"peers": [peer(waits, backends=(backend(problem=wrong),))]}
    assert applications.trouble(document) == []
    assert applications.rows(document)[0][3] == "port 8080"


@pytest.mark.parametrize(
    ("name", "problem", "holder", "wanted"),
    [
        ("api", None, "jobs", "jobs"),
        ("api", "nothing listens", None, "api"),
        ("other", "nothing listens", None, None),
        ("other", None, None, None),
    ],
)
def test_whose_port_it_is_among_several(name: str, problem: str | None, holder: str | None, wanted: str | None) -> None:
    """The container that listens, else the one of the backend's name, else nobody knows."""
    found = peer(container(), container("jobs"), backends=(backend(name, problem, holder),))
    assert found["backends"][0]["container"] == wanted
    lines = applications.rows({"peers": [found]})
    assert [line[1] for line in lines] == (["api", "jobs"] if wanted else ["api", "jobs", "-"])


@pytest.mark.parametrize(
    ("status", "state", "code"),
    [
        ("Up 3 minutes (healthy)", "running", None),
        ("Restarting (1) 5 seconds ago", "restarting", 1),
        ("Exited (137) 2 hours ago", "exited", 137),
        ("Created", "not started", None),
    ],
)
def test_the_engines_words(status: str, state: str, code: int | None) -> None:
    """Docker's sentence becomes the same words as the lab's."""
    found = peer(applications.from_engine("api", status))["applications"][0]
    assert (found["state"], found["exit_code"]) == (state, code)


def test_older_documents_have_no_applications() -> None:
    """A document without the fields is read as one in which nothing is known."""
    assert applications.trouble({"peers": [{"peer_id": "x"}]}) == []
    assert applications.rows({"peers": [{"peer_id": "x"}]}) == []
