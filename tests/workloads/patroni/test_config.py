"""Patroni's configuration."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from patroni.config import Config

from runtime.secret import Secret
from tests.support import popen
from tests.workloads.patroni.test_settings import settings
from workloads.patroni import config
from workloads.patroni.life import let_go_on
from workloads.patroni.passwords import derive

PASSWORDS = derive(Secret("ab" * 32))


def rendered(**changes: str) -> Any:
    """The configuration of a member with `changes` to its environment, as Patroni reads it."""
    tree = config.render(settings(**changes), PASSWORDS, Secret("a-token"), Path("/pg/bin"))
    return json.loads(json.dumps(tree))


def test_session_names_no_check() -> None:
    """Nobody can take the leader key away by writing a check of that ID, and Patroni keeps no registration."""
    consul = rendered()["consul"]
    assert consul["checks"] == []
    assert consul["register_service"] is False
    assert (consul["host"], consul["token"]) == ("127.0.0.1:8500", "a-token")


def test_patroni_reads_what_every_acknowledged_write_is_in() -> None:
    """Not what a server answers before it has replayed its log: an earlier leader."""
    assert rendered()["consul"]["consistency"] == "consistent"


def test_the_leader_key_is_the_one_that_the_mesh_watches() -> None:
    """What Patroni makes of namespace and scope, below the key prefix that the group is given."""
    tree = rendered()
    assert f"{tree['namespace'].strip('/')}/{tree['scope']}/leader" == config.leader_key(settings())
    assert config.leader_key(settings()) == "service/demo/leader"


def test_members_follow_the_route() -> None:
    """Replication, rewind and base backups go to the leader's name; the server itself listens on loopback only."""
    postgres = rendered()["postgresql"]
    assert postgres["connect_address"] == "postgres-master:5432"
    assert postgres["listen"] == "127.0.0.1:5432"


def test_superuser_cannot_come_from_the_network() -> None:
    """The first rule that a connection of the superuser over TCP meets refuses it."""
    hosts = [rule.split() for rule in rendered()["postgresql"]["pg_hba"] if rule.startswith("host")]
    assert hosts[0] == ["host", "all", "postgres", "all", "reject"]
    assert all(rule[3] == "127.0.0.0/8" for rule in hosts[1:])


def test_nobody_changes_anything_over_the_rest_interface_without_the_password() -> None:
    """The REST interface is on loopback only, reached by a route of this slot, and has a password."""
    rest = rendered()["restapi"]
    assert (rest["listen"], rest["connect_address"]) == ("127.0.0.1:8008", "patroni-1:8008")
    other = rendered(POSTGRES_REST_ROUTE="db-rest", POSTGRES_REST_PORT="8009")["restapi"]
    assert (other["listen"], other["connect_address"]) == ("127.0.0.1:8009", "db-rest-1:8009")
    assert rest["authentication"]["password"] == PASSWORDS.rest.reveal()


def test_cluster_settings_hold_no_secret() -> None:
    """What goes into Consul's KV has no password and no token in it."""
    text = json.dumps(rendered()["bootstrap"])
    secrets = [getattr(PASSWORDS, name).reveal() for name in PASSWORDS.__slots__]
    assert not [secret for secret in [*secrets, "a-token"] if secret in text]


def test_asynchronous_mode_is_a_choice() -> None:
    """Synchronous unless told otherwise."""
    assert rendered()["bootstrap"]["dcs"]["synchronous_mode"] is True
    assert rendered(POSTGRES_SYNCHRONOUS="off")["bootstrap"]["dcs"]["synchronous_mode"] is False


def test_nothing_removes_a_data_directory(tmp_path: Path) -> None:
    """Not even what an operator writes into Consul: Patroni takes the member's own word for it."""
    file = tmp_path / "patroni.yml"
    file.write_text(json.dumps(rendered(POSTGRES_DATA=str(tmp_path / "data"))))
    found = Config(str(file), validator=None)
    names = [f"remove_data_directory_on_{why}" for why in ("rewind_failure", "diverged_timelines")]
    found.set_dynamic_configuration({"postgresql": {**dict.fromkeys(names, True), "basebackup": [{"waldir": "/x"}]}})
    assert [found["postgresql"][name] for name in names] == [False, False]
    assert found["postgresql"]["basebackup"] == [{"checkpoint": "fast"}]


def test_numbers_fit_patronis_rule() -> None:
    """`loop_wait + 2 * retry_timeout <= ttl`, or Patroni changes them."""
    dcs = rendered()["bootstrap"]["dcs"]
    assert dcs["loop_wait"] + 2 * dcs["retry_timeout"] <= dcs["ttl"]


def test_callback_writes_one_line_into_the_pipe(tmp_path: Path) -> None:
    """Called as Patroni does, the script hands action and role over and ends at once, from a noexec mount too."""
    run = tmp_path / "run folder"
    run.mkdir()
    pipe, script = run / config.EVENTS, run / config.CALLBACK
    os.mkfifo(pipe)
    script.write_text(config.callback_script(pipe))
    script.chmod(0o600)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        called = shlex.split(rendered(POSTGRES_RUN=str(run))["postgresql"]["callbacks"]["on_role_change"])
        subprocess.run([*called, "on_role_change", "primary", "demo"], check=True, timeout=10)
        assert os.read(reader, 4096) == b"on_role_change primary\n"
    finally:
        os.close(reader)


def test_stop_waits_for_the_supervisor(tmp_path: Path) -> None:
    """Called as Patroni does, the hook asks through the pipe and ends when it is answered, leaving nothing behind."""
    run = tmp_path / "run folder"
    run.mkdir()
    os.mkfifo(run / config.EVENTS)
    (run / config.BEFORE_STOP).write_text(config.before_stop_script(run))
    reader = os.open(run / config.EVENTS, os.O_RDWR)
    try:
        called = shlex.split(rendered(POSTGRES_RUN=str(run))["postgresql"]["before_stop"])
        with popen(called) as hook:
            action, number = os.read(reader, 4096).decode().split()
            assert action == "before_stop"
            assert hook.poll() is None
            let_go_on(run, number)
            assert hook.wait(timeout=30) == 0
        assert sorted(path.name for path in run.iterdir()) == sorted([config.EVENTS, config.BEFORE_STOP])
    finally:
        os.close(reader)
