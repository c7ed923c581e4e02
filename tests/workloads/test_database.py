"""webdemo's `/db` without a database; the patroni demo's end-to-end test has a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads import database


def test_target_comes_from_the_environment() -> None:
    """The demo's names are the defaults."""
    assert database.target({}).master == "postgres-master"
    assert database.target({"DATABASE_USER": "shop", "DATABASE_PORT": "6000"}).user == "shop"


def test_missing_secret_is_explained(tmp_path: Path) -> None:
    """A group without the secret is told so."""
    where = database.target({"DATABASE_SECRET": str(tmp_path / "none")})
    with pytest.raises(database.DatabaseError, match="grant this group a secret"):
        database.visit("webdemo-0", where)


def test_unreachable_database_is_one_line(tmp_path: Path) -> None:
    """A database that is not there is an error of one line, without the password."""
    secret = tmp_path / "secret"
    secret.write_text("not-to-be-seen")
    where = database.target({"DATABASE_SECRET": str(secret), "DATABASE_MASTER": "127.0.0.1", "DATABASE_PORT": "1"})
    with pytest.raises(database.DatabaseError) as caught:
        database.visit("webdemo-0", where)
    assert "\n" not in str(caught.value)
    assert "not-to-be-seen" not in str(caught.value)
