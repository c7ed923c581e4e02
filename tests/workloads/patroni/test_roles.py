"""What a member publishes, and in which order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.patroni import roles
from workloads.patroni.roles import Place, Public, Write

PLACE = Place(
    service_id="demo-postgres-1", service="demo", address="100.96.1.2", port=21000
)  # fmt: skip
PUBLICS = st.builds(
    Public, member=st.booleans(), database=st.booleans(), role=st.sampled_from([None, "master", "replica"])
)


@given(PUBLICS)
def test_a_registration_stands_until_somebody_replaces_it(public: Public) -> None:
    """What we wrote is recognised; other tags, the sidecar's placeholder and nothing at all are not."""
    written = roles.registration(PLACE, public, "postgres-1")
    assert roles.stands(written, public)
    assert not roles.stands(written | {"Tags": ["other"]}, public)
    assert not roles.stands(written | {"Meta": written["Meta"] | {"mesh-stub": "1"}}, public)
    assert not roles.stands(None, public)


@pytest.mark.parametrize(
    ("entries", "index"),
    [
        ([{"Value": "cGctMA==", "Session": "5e55", "ModifyIndex": 9}], 9),
        ([{"Value": "cGctMA==", "ModifyIndex": 9}], None),
        ([{"Value": "cGctMQ==", "Session": "5e55", "ModifyIndex": 9}], None),
        ([{"Value": None, "Session": "5e55", "ModifyIndex": 9}], None),
        ([{"Value": "cGctMA==", "Session": "5e55"}], None),
        (["nonsense"], None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_own_leader_key(entries: Any, index: int | None) -> None:
    """It is ours while a session holds it in our name; anything else is not to be written to."""
    assert roles.own_index(entries, "pg-0") == index


@pytest.mark.parametrize(
    ("action", "role", "tag"),
    [
        ("on_role_change", "primary", "master"),
        ("on_start", "master", "master"),
        ("on_start", "replica", "replica"),
        ("on_restart", "standby_leader", "replica"),
        ("on_stop", "primary", None),
        ("on_role_change", "demoted", None),
        ("on_start", "uninitialized", None),
        ("on_start", "", None),
    ],
)
def test_announcements(action: str, role: str, tag: str | None) -> None:
    """Only a role that is published has a tag; one that stops has none."""
    assert roles.announced(action, role) == tag


@pytest.mark.parametrize(
    ("claim", "in_recovery", "tag"),
    [
        ("master", False, "master"),
        ("master", True, "replica"),
        ("replica", True, "replica"),
        ("replica", False, None),
        ("master", None, None),
        ("replica", None, None),
        (None, True, "x"),
        (None, False, "x"),
    ],
)
def test_tag_waits_for_the_database(claim: str | None, in_recovery: bool | None, tag: str | None) -> None:
    """A master is one that Patroni announced and that accepts writes; nothing is published of what is not known."""
    assert roles.confirmed(claim, in_recovery) == (None if tag == "x" else tag)


def test_stale_tags_go_at_once() -> None:
    """A leader that is none any more loses its tag before anything else is asked; a promotion keeps the old one."""
    assert roles.outdated(None, "replica")
    assert roles.outdated("replica", "master")
    assert not roles.outdated("master", "replica")
    assert not roles.outdated(None, None)


def test_registration_repeats_the_sidecars_place() -> None:
    """Same IDs, addresses and ports as the placeholder; no mark of a placeholder; the role as the only tag."""
    body = roles.registration(PLACE, Public(member=True, database=True, role="master"), "postgres-1")
    assert (body["ID"], body["Name"], body["Address"], body["Port"]) == ("demo-postgres-1", "demo", "100.96.1.2", 21000)
    assert body["Tags"] == ["master"]
    assert "mesh-stub" not in body["Meta"]
    assert {check["Status"] for check in body["Checks"]} == {"passing"}


def test_unknown_role_has_no_tag() -> None:
    """No role, no tag."""
    assert roles.registration(PLACE, Public(member=True, database=True), "postgres-1")["Tags"] == []


class Agent:
    """A Consul agent as far as these writes go."""

    def __init__(self) -> None:
        self.checks: dict[str, str] = {}
        self.tags: list[str] = []
        self.history: list[Public] = []

    def take(self, write: Write) -> None:
        body: dict[str, Any] = write.body
        if write.path.endswith("/register"):
            self.tags = body["Tags"]
            # The agent keeps the status of a check that it knows.
            self.checks = {c["CheckID"]: self.checks.get(c["CheckID"], c["Status"]) for c in body["Checks"]}
        else:
            check = write.path.rpartition("/update/")[2]
            assert check in self.checks, "a check is set that does not exist"
            self.checks[check] = body["Status"]
        self.history.append(self.state)

    @property
    def state(self) -> Public:
        return Public(
            member=self.checks.get(PLACE.member_check) == "passing",
            database=self.checks.get(PLACE.database_check) == "passing",
            role=self.tags[0] if self.tags else None,
        )


@given(PUBLICS, PUBLICS)
def test_writes_reach_what_is_wanted(before: Public, wanted: Public) -> None:
    """From any state that is known, and from one that is not, the calls end at what is wanted."""
    agent = Agent()
    for step, known in ((before, None), (wanted, before)):
        for write in roles.writes(PLACE, "postgres-1", known, step):
            agent.take(write)
        assert agent.state == step
    # The agent was lost and holds what it held: nothing is assumed of it.
    for write in roles.writes(PLACE, "postgres-1", None, wanted):
        agent.take(write)
    assert agent.state == wanted


@given(PUBLICS, PUBLICS)
def test_nothing_better_than_the_truth_is_shown_on_the_way(before: Public, wanted: Public) -> None:
    """In between, nobody is passing with a new role before the old one is gone, nor master when that is over."""
    agent = Agent()
    for write in roles.writes(PLACE, "postgres-1", None, before):
        agent.take(write)
    agent.history.clear()
    for write in roles.writes(PLACE, "postgres-1", before, wanted):
        agent.take(write)
    for seen in agent.history:
        assert not (seen.member and not (before.member or wanted.member))
        assert not (seen.database and not (before.database or wanted.database))
        assert seen.role in (before.role, wanted.role)


@given(PUBLICS)
def test_role_change_is_one_write(state: Public) -> None:
    """A role that changes alone costs one registration."""
    other = Public(member=state.member, database=state.database, role="master" if state.role is None else None)
    assert [w.path for w in roles.writes(PLACE, "postgres-1", state, other)] == ["/v1/agent/service/register"]


@given(PUBLICS)
def test_beats_renew_what_passes_only(state: Public) -> None:
    """A check that does not pass is not kept alive."""
    renewed = {w.path.rpartition("/")[2] for w in roles.beats(PLACE, state)}
    assert renewed == {
        check for check, good in ((PLACE.member_check, state.member), (PLACE.database_check, state.database)) if good
    }


@pytest.mark.parametrize("bad", [None, {}, {"ID": "x"}, {"ID": "x", "Service": "d", "Address": "a", "Port": "p"}])
def test_foreign_registration_is_refused(bad: Any) -> None:
    """What is not the sidecar's placeholder is a ValueError."""
    with pytest.raises(ValueError, match="registration"):
        roles.place(bad)


def _listed(**owners: str) -> list[dict[str, str]]:
    return [{"CheckID": f"{PLACE.service_id}:{name}", "ServiceID": owner} for name, owner in owners.items()]


@pytest.mark.parametrize(
    ("checks", "disturbed"),
    [
        ({"member": "", "database": ""}, []),
        ({"member": "web", "database": ""}, ["member"]),
        ({"member": ""}, ["database"]),
        ({}, ["database", "member"]),
        (None, []),
    ],
    ids=["ours", "another's", "one is missing", "all are missing", "no answer"],
)
def test_checks_are_ours_and_there(checks: dict[str, str] | None, disturbed: list[str]) -> None:
    """A check of our ID that belongs to another service, or is not there, is named; no answer names none."""
    own = {name: owner if owner == "web" else PLACE.service_id + owner for name, owner in (checks or {}).items()}
    answer = None if checks is None else [*_listed(**own), "text", {"CheckID": "serfHealth", "ServiceID": ""}]
    assert roles.disturbed(answer, PLACE) == [f"{PLACE.service_id}:{name}" for name in disturbed]
