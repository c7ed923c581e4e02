"""The supervisor's settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workloads.patroni.settings import AppUser, ConfigError, Settings, read

IDENTITY = json.dumps({"cluster": "demo", "group": "postgres", "peer_id": "postgres-1", "address": "100.96.1.2"})
GOOD = {"DERIVE_PATRONI_PASSWORDS": "1"}


def settings(**changes: str) -> Settings:
    """Settings with `changes` to the environment."""
    return read({**GOOD, **changes}, IDENTITY)


def test_defaults_are_those_of_the_demo() -> None:
    """With nothing but the switch set, the member registers the cluster's name and is synchronous."""
    found = settings()
    assert (found.service, found.port, found.synchronous, found.users) == ("demo", 5432, True, ())
    assert found.follow == ("postgres-master", 5432)
    assert found.data == Path("/pgdata/data")


def test_users_name_a_role_and_a_secret() -> None:
    """Several users are separated by commas or spaces."""
    assert settings(POSTGRES_USERS="web=db-web, shop=db.shop").users == (
        AppUser(role="web", secret="db-web"),
        AppUser(role="shop", secret="db.shop"),
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("POSTGRES_USERS", "web", "expected ROLE=SECRET"),
        ("POSTGRES_USERS", "postgres=x", "belongs to the database"),
        ("POSTGRES_USERS", "pg_x=x", "belongs to the database"),
        ("POSTGRES_USERS", "web=../x", "expected ROLE=SECRET"),
        ("POSTGRES_USERS", "web=a web=b", "names a role twice"),
        ("POSTGRES_SYNCHRONOUS", "true", "expected on or off"),
        ("POSTGRES_PORT", "0", "expected a port"),
        ("POSTGRES_DATA", "data", "expected an absolute path"),
        ("POSTGRES_FOLLOW", "postgres-master", "expected HOST:PORT"),
        ("POSTGRES_SYNCRONOUS", "on", "did you mean POSTGRES_SYNCHRONOUS"),
        ("DERIVE_PATRONI_PASSWORDS", "0", "no other source of passwords"),
        ("DERIVE_PATRONI_PASSWORDS", "", "is not set"),
    ],
)
def test_bad_values_are_refused(name: str, value: str, said: str) -> None:
    """Each bad value is one problem that names the variable and what was expected."""
    with pytest.raises(ConfigError) as caught:
        settings(**{name: value})
    assert [problem.variable for problem in caught.value.problems] == [name]
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"cluster": "demo"}', IDENTITY.replace("100.96.1.2", "nowhere"),
                                  IDENTITY.replace('"postgres-1"', "1")])  # fmt: skip
def test_identity_must_be_whole(text: str) -> None:
    """What the sidecar did not write whole is refused."""
    with pytest.raises(ConfigError, match="identity"):
        read(GOOD, text)
