"""Compose files: what is read, what is refused, and interpolation as Docker Compose does it.

Long because it is a list: each field and each refusal is a case of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ROOT
from tests.topology.support import COMPOSE, COORDINATOR, only
from topology import compose
from topology.health import HealthCheck
from topology.problems import ClusterError

WAITS = "    depends_on:\n      sidecar:\n        condition: service_healthy\n"
COMMITTED = sorted((ROOT / "clusters").glob("*/compose/*.yaml"))


def refused(text: str) -> list[str]:
    """The problems of a compose file with this text."""
    with pytest.raises(ClusterError) as caught:
        compose.parse(text, Path("c.yaml"))
    return caught.value.problems


def test_a_good_file_is_read() -> None:
    """Services in order, with what the lab needs to start them."""
    found = compose.parse(COMPOSE, Path("c.yaml"))
    assert [service.name for service in found.services] == ["sidecar", "app"]
    sidecar, app = found.sidecar, found.applications[0]
    assert (sidecar.is_sidecar, sidecar.command, sidecar.line) == (True, ("sidecar",), 2)
    assert (app.entrypoint, app.command, app.line) == (("/run/mesh/exec.sh",), ("/app/app",), 9)
    assert app.volumes == ("/tmp/dstack-runtime/mesh:/run/mesh:ro",)
    assert (app.depends_on, app.waits_healthy, app.restart) == (("sidecar",), ("sidecar",), "no")
    assert found.text == COMPOSE


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_committed_files_are_in_dstacks_form(path: Path) -> None:
    """Each has the sidecar, a literal owner key placeholder, and only variables that the mesh or compose_env sets."""
    found = compose.load(path)
    assert found.sidecar.environment["MESH_OWNERS"] == "REPLACE_WITH_YOUR_OWNER_KEY"
    assert found.sidecar.restart == "unless-stopped"
    assert "/var/run/dstack.sock:/var/run/dstack.sock" in found.sidecar.volumes
    assert "/tmp/dstack-runtime/mesh:/run/mesh" in found.sidecar.volumes
    assert found.sidecar.command == (("coordinator",) if path.stem == "coordinator" else ("sidecar",))
    insecure = [name for name in compose.variables(found.text) if "INSECURE" in name]
    assert not insecure, "the environment is not measured: a host could switch the protection off"


def with_environment(text: str) -> str:
    """The good file, whose application has `text` as its environment."""
    return COMPOSE.replace(
        '    command: ["/app/app"]\n', f'    command: ["/app/app"]\n    environment:\n      {text}\n'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("on", "X: $X"),
        ("on", "X: ${X}"),
        ("on", "X: ${X:-off}"),
        ("on", "X: ${X-off}"),
        ("on", "X: ${X:?missing}"),
        ("", "X: ${X-off}"),
        ("", 'X: "${X:-}"'),
        ("on", 'Y: "not ${X}"'),
        ("on", 'XX: "off"'),
    ],
)
def test_a_signed_variable_is_passed_on_under_its_own_name(value: str, text: str) -> None:
    """Or not at all: then there is nothing that would be held against the manifest."""
    found = compose.parse(with_environment(text), Path("c.yaml"), signed={"X": value})
    for service in found.applications:
        for name, written in service.environment.items():
            assert name != "X" or compose.interpolate(written, {"X": value}) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("on", 'X: "on"'),
        ("on", 'X: "off"'),
        ("on", "X: ${Y}"),
        ("on", 'X: "${X} "'),
        ("on", "X: ${X:+off}"),
        ("", "X: ${X:-off}"),
        ("", "X: ${X:?missing}"),
    ],
)
def test_a_container_that_would_never_start_is_refused(value: str, text: str) -> None:
    """exec.sh goes by the name, so a name of compose_env cannot have a value of its own; the sidecar is not asked."""
    with pytest.raises(ClusterError) as caught:
        compose.parse(with_environment(text), Path("c.yaml"), signed={"X": value, "Z": "1"})
    only(caught.value.problems, "c.yaml:13: services.app.environment", "gives X another value", "write X: ${X}")
    assert compose.parse(with_environment(text), Path("c.yaml")).applications
    assert compose.parse(COMPOSE, Path("c.yaml"), signed={"MESH_OWNERS": "x"}).applications


@pytest.mark.parametrize("text", ["X:", "- X"])
def test_a_signed_variable_that_the_host_could_leave_out_is_refused(text: str) -> None:
    """Compose leaves out what is written without a value and not set, and a program would go by its own default."""
    with pytest.raises(ClusterError) as caught:
        compose.parse(with_environment(text), Path("c.yaml"), signed={"X": "on"})
    only(caught.value.problems, "c.yaml:13: services.app.environment", "X without a value", "write X: ${X}")


def test_variables_that_no_container_has_under_their_name_are_unseen() -> None:
    """Used in a command, a volume, another variable, or by the sidecar: nothing can hold them against the manifest."""
    text = with_environment('A: ${A}\n      B: "${A} ${C}"').replace('"/app/app"', '"/app/app", "--d=${D:-1}"')
    text = text.replace("    depends_on", "      - data:/tmp/${C}\n    depends_on")
    text = text.replace("      MESH_OWNERS", '      SETTING: "${A}x"\n      MESH_OWNERS')
    assert compose.unseen(compose.parse(text, Path("c.yaml")), {"A", "C", "D"}) == (
        "services.app.command: D",
        "services.app.environment: A",
        "services.app.environment: C",
        "services.app.volumes: C",
        "services.sidecar.environment: A",
    )
    assert compose.unseen(compose.parse(with_environment("A: ${A}"), Path("c.yaml")), {"A"}) == ()


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ('user: "${A}"', "services.app.user"),
        ('labels: { x: { y: ["$A"] } }', "services.app.labels"),
        ('healthcheck: { test: ["CMD", "${A:-x}"] }', "services.app.healthcheck"),
        ('post_start: [{ command: ["${A}"] }]', "services.app.post_start"),
        ('working_dir: "/x/${A}"', "services.app.working_dir"),
        ('ulimits: &u { x: ["${A}", *u] }', "services.app.ulimits"),
        ('x-note: "${A}"', None),
        ('labels: { x: "$${A}" }', None),
    ],
)
def test_every_field_of_a_service_is_looked_at(written: str, place: str | None) -> None:
    """Compose replaces variables in each text of a file, whoever reads it then: the engine, or a shell."""
    text = with_environment("B: 1").replace("    environment:\n      B", f"    {written}\n    environment:\n      B")
    assert written in text
    found = compose.unseen(compose.parse(text, Path("c.yaml")), {"A"})
    assert found == ((f"{place}: A",) if place else ())


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ('configs:\n  c: { content: "mode=${A}" }\n', "configs.c"),
        ("configs:\n  c: { environment: A }\n", "configs.c"),
        ("secrets:\n  s: { environment: A }\n", "secrets.s"),
        ('volumes:\n  v: { driver_opts: { type: "${A}" } }\n', "volumes.v"),
        ('name: "${A}"\n', "name"),
    ],
)
def test_what_stands_beside_the_services_is_looked_at(written: str, place: str) -> None:
    """A config may have a variable in its content, and a secret may be one, by its bare name."""
    text = with_environment("B: 1") + written
    assert compose.unseen(compose.parse(text, Path("c.yaml")), {"A"}) == (f"{place}: A",)


def test_both_forms_of_lists_and_maps_are_read() -> None:
    """`environment`, `depends_on`, `volumes`, `command` in their other spelling."""
    text = (
        COMPOSE.replace(
            '    environment:\n      MESH_OWNERS: "R',
            '    environment:\n      - A=b=c\n      - PASS\n      - "MESH_OWNERS=R',
        )
        .replace(
            "    depends_on:\n      sidecar:\n        condition: service_healthy\n",
            "    depends_on: {sidecar: {condition: service_healthy}}\n",
        )
        .replace(
            "      - /tmp/dstack-runtime/mesh:/run/mesh:ro",
            "      - {type: bind, source: /tmp/dstack-runtime/mesh, target: /run/mesh, read_only: true}",
        )
        .replace('command: ["/app/app"]', "command: /app/app --name 'two words'\n    restart: no")
    )
    found = compose.parse(text, Path("c.yaml"))
    assert found.sidecar.environment == {"A": "b=c", "PASS": "${PASS}", "MESH_OWNERS": "REPLACE_WITH_YOUR_OWNER_KEY"}
    app = found.applications[0]
    assert app.volumes == ("/tmp/dstack-runtime/mesh:/run/mesh:ro",)
    assert app.command == ("/app/app", "--name", "two words")
    assert app.restart == "no"


def test_aliases_do_not_multiply() -> None:
    """A file that stands for more than anybody could read is refused at once, as one nested too deeply is."""
    rows = [f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (problem,) = refused("\n".join(['x-0: &a0 ["a"]', *rows, COMPOSE]))
    assert "stands for more than 20000 values" in problem
    assert len(problem) < 300
    (problem,) = refused("x-0: " + "[" * 5_000 + "]" * 5_000 + "\n" + COMPOSE)
    assert "nested too deeply" in problem
    text = COMPOSE.replace("  app:\n", "  app:\n    labels: &l { a: b, c: *l }\n")
    assert compose.parse(text, Path("c.yaml")).applications


def test_what_is_started_first_and_what_must_be_healthy_first() -> None:
    """A list only orders the starts; a map may demand a passed health check."""
    helper = "  helper:\n    image: x\n    entrypoint: [/run/mesh/exec.sh, /x]\n    network_mode: host\n"
    helper += "    volumes: [/tmp/dstack-runtime/mesh:/run/mesh:ro]\n" + WAITS + "      app:\n"
    found = compose.parse(COMPOSE + helper, Path("c.yaml"))
    assert (found.services[2].depends_on, found.services[2].waits_healthy) == (("sidecar", "app"), ("sidecar",))
    text = COMPOSE.replace('    command: ["sidecar"]', '    command: ["sidecar"]\n    depends_on: [app]')
    assert compose.parse(text, Path("c.yaml")).sidecar.depends_on == ("app",)


def test_a_value_without_text_takes_the_variable_of_its_name() -> None:
    """`NAME:` passes the variable on; numbers become text."""
    text = COMPOSE.replace("    environment:\n", "    environment:\n      PASS:\n      COUNT: 5\n")
    environment = compose.parse(text, Path("c.yaml")).sidecar.environment
    assert (environment["PASS"], environment["COUNT"]) == ("${PASS}", "5")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ghcr.io/example/app:1", "${IMAGE}", ("c.yaml:10:", "services.app.image", "not measured")),
        ("ghcr.io/example/app:1", "ghcr.io/example/app:${TAG:-1}", ("c.yaml:10:", "services.app.image")),
        ("ghcr.io/example/sidecar:1", "$IMAGE", ("c.yaml:3:", "services.sidecar.image")),
        ("    image: ghcr.io/example/app:1\n", "    image: x:1\n    build: .\n",
         ("c.yaml:11:", "services.app.build", "nobody measured")),
        ("    image: ghcr.io/example/app:1\n", "    build: .\n", ("c.yaml:9:", "services.app.image", "is missing")),
        ("  sidecar:\n    image", "  mesh:\n    image", ("c.yaml:1:", "no service 'sidecar'")),
        ('"/run/mesh/exec.sh"', '"/bin/sh"', ("c.yaml:11:", "skips /run/mesh/exec.sh", "entrypoint: [")),
        ('    entrypoint: ["/run/mesh/exec.sh"]\n', "", ("c.yaml:9:", "skips /run/mesh/exec.sh")),
        ('    command: ["/app/app"]\n', "", ("services.app.command", "nothing to start")),
        ("/run/mesh:ro", "/mnt:ro", ("c.yaml:14:", "services.app.volumes", "/run/mesh")),
        ("service_healthy", "service_started", ("c.yaml:16:", "services.app.depends_on", "wait for the mesh")),
        (WAITS, "    enviroment: {A: b}\n" + WAITS, ("services.app.enviroment", "did you mean 'environment'?")),
        (WAITS, "    x-note: free\n    depends_on: x\n", ("services.app.depends_on", "a list of services")),
        ("network_mode: host\n    volumes", "network_mode: bridge\n    volumes", ("c.yaml:13:", "must be host")),
        ('"REPLACE_WITH_YOUR_OWNER_KEY"', "${MESH_OWNERS}", ("services.sidecar.environment", "nobody measures")),
        ('"REPLACE_WITH_YOUR_OWNER_KEY"', '"x"\n      MESH_INSECURE_DEV_ROOT: ${ROOT:-}',
         ("services.sidecar.environment", "MESH_INSECURE_DEV_ROOT", "nobody measures")),
        ('"REPLACE_WITH_YOUR_OWNER_KEY"', '"x"\n      MESH_INSECURE_UNSIGNED_MANIFEST:',
         ("services.sidecar.environment", "MESH_INSECURE_UNSIGNED_MANIFEST", "nobody measures")),
        ('    command: ["sidecar"]', '    env_file: .env\n    command: ["sidecar"]',
         ("services.sidecar.env_file", "nobody measures")),
        ('"REPLACE_WITH_YOUR_OWNER_KEY"', "true", ("services.sidecar.environment", "put it in quotes")),
        ('["/app/app"]', "{a: b}", ("services.app.command", "list of words")),
        ('["/app/app"]', "\"it's\"", ("services.app.command", "quotation")),
        ("    volumes:\n      - /tmp", "    volumes:\n      - 5\n      - /tmp", ("services.app.volumes", "holds 5")),
        ('["/app/app"]', '["/app/app", "${A:-${B}}"]', ("services.app.command", "`${A:-${B}}`", "$$")),
        ('"REPLACE_WITH_YOUR_OWNER_KEY"', '"x"\n      A: "5 $"', ("services.sidecar.environment", "`$`")),
        (WAITS, "    depends_on: [sidecar]\n", ("services.app.depends_on", "wait for the mesh")),
        ("    volumes:\n      - /tmp", "    volumes:\n      x: /tmp", ("services.app.volumes", "must be a list")),
        (WAITS, "    depends_on: x\n", ("services.app.depends_on", "a list of services")),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_line(old: str, new: str, words: tuple[str, ...]) -> None:
    """One change, one mistake, named by file, line and entry."""
    assert old in COMPOSE
    found = [p for p in refused(COMPOSE.replace(old, new, 1)) if all(word in p for word in words)]
    only(found, *words)


def test_a_misspelled_command_is_one_mistake() -> None:
    """The field that is none may be what is missing: a person mends one line."""
    found = refused(COMPOSE.replace('    command: ["/app/app"]', '    comand: ["/app/app"]', 1))
    only(found, "services.app.comand", "did you mean 'command'?")


HEALTH = '    healthcheck: { test: ["CMD", "true"], interval: 2s, retries: 150, start_period: 24h }\n'


def test_when_compose_gives_up_is_read() -> None:
    """Seconds, with Docker's own defaults for what is not said."""
    assert compose.parse(COMPOSE, Path("c.yaml")).sidecar.health == HealthCheck(
        interval=2, retries=150, start_period=86400
    )
    short = COMPOSE.replace(
        "    network_mode: host\n    volumes", "    healthcheck: {}\n    network_mode: host\n    volumes"
    )
    app = compose.parse(short, Path("c.yaml")).applications[0]
    assert app.health == HealthCheck()
    assert app.health.gives_up_after == 90
    assert HealthCheck(interval=2, retries=150).gives_up_after == 300


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("", ("c.yaml:2:", "services.sidecar.healthcheck", "is missing")),
        ("    healthcheck: { disable: true }\n", ("c.yaml:8:", "is missing")),
        (
            "    healthcheck: { interval: 2s, retries: 150 }\n",
            ("c.yaml:8:", "gives up after 300 s", "start_period: 24h"),
        ),
        ("    healthcheck: { start_period: 2h30m }\n", ("gives up after 9090 s", "start_period: 24h")),
        ("    healthcheck: { start_period: 25h, interval: fast }\n", ("interval 'fast'", "expected a duration")),
        ("    healthcheck: { start_period: 25h, retries: 0 }\n", ("retries 0", "whole number")),
    ],
)
def test_a_sidecar_that_compose_gives_up_on_too_early_is_refused(new: str, words: tuple[str, ...]) -> None:
    """Compose starts applications once the sidecar is healthy, and dstack runs it once a boot: it has to wait a day."""
    assert HEALTH in COMPOSE
    only(refused(COMPOSE.replace(HEALTH, new)), *words)


def test_a_sidecar_that_nobody_waits_for_may_have_any_check() -> None:
    """A coordinator's file has no applications."""
    assert compose.parse(COORDINATOR, Path("c.yaml")).sidecar.health is None


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: "/".join(path.parts[-3:]))
def test_our_own_files_wait_for_a_day(path: Path) -> None:
    """Every sidecar of this repository's clusters, coordinators too, as a first deployment needs it."""
    found = compose.load(path).sidecar.health
    assert found is not None
    assert found.start_period == 86400


def test_a_file_without_sidecar_is_told_only_so() -> None:
    """The applications are not blamed for waiting on what is not there."""
    text = COMPOSE[: COMPOSE.index("  sidecar:")] + COMPOSE[COMPOSE.index("  app:") :].split("    depends_on")[0]
    only(refused(text), "c.yaml:1", "no service 'sidecar'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("c.yaml:1", "no services")),
        ("services: []\n", ("c.yaml:1", "no services")),
        ("just text", ("c.yaml:1", "no services")),
        ("services:\n  a: [\n", ("c.yaml:3", "not valid YAML")),
        ("services:\n  a: {image: x}\n  a: {image: y}\n", ("c.yaml:3", "a is written twice")),
        ("services:\n  a: 2001-99-99\n", ("c.yaml", "not valid YAML")),
        ("services: " + "1" * 5000, ("c.yaml", "not valid YAML")),
        ("services: " + "[" * 5000, ("c.yaml:1", "nested too deeply")),
        ("services: !!python/object:os.system {}\n", ("c.yaml:1", "not valid YAML")),
        ("services:\n  sidecar:\n", ("c.yaml:2", "services.sidecar", "is empty")),
    ],
)
def test_what_is_no_compose_file_is_refused(text: str, words: tuple[str, ...]) -> None:
    """Empty, of another shape, broken, ambiguous, or with tags of Python."""
    assert any(all(word in problem for word in words) for problem in refused(text)), refused(text)


def test_every_problem_of_a_file_is_reported_at_once() -> None:
    """Two services, three mistakes."""
    text = COMPOSE.replace("ghcr.io/example/app:1", "$A").replace("sidecar:1", "$B").replace("exec.sh", "run.sh")
    assert len(refused(text)) == 3


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, or a folder: one message, no traceback."""
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "c.yaml", tmp_path):
        with pytest.raises(ClusterError, match="cannot be read"):
            compose.load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${A}", "a"),
        ("$A-$A", "a-a"),
        ("${A}${EMPTY}${UNSET}", "a"),
        ("$$A $${A}", "$A ${A}"),
        ("${UNSET:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${UNSET-d}", "d"),
        ("${A:-d}", "a"),
        ("${UNSET:-}", ""),
        ("${A:+yes}", "yes"),
        ("${EMPTY:+yes}|${EMPTY+yes}", "|yes"),
        ("${A:?needed}", "a"),
        ("${MESH_PEER_ID:-}", ""),
    ],
)
def test_interpolation(text: str, expected: str) -> None:
    """Each operator with a variable that is set, empty and unset."""
    assert compose.interpolate(text, {"A": "a", "EMPTY": ""}) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${UNSET:?set it}", "UNSET is not set: set it"),
        ("${EMPTY:?}", "EMPTY is not set"),
        ("${UNSET?}", "UNSET is not set"),
        ("a $ b", "at 2"),
        ("${1}", "at 0"),
        ("${A", "at 0"),
        ("${A:=x}", "at 0"),
    ],
)
def test_interpolation_that_cannot_be_done_is_refused(text: str, words: str) -> None:
    """A demanded variable that is missing, and a dollar that starts nothing."""
    with pytest.raises(ValueError, match=words):
        compose.interpolate(text, {"EMPTY": ""})


@given(st.text())
def test_a_value_passes_through_interpolation_unchanged(value: str) -> None:
    """What a variable holds is never interpolated again; doubling dollars protects any text."""
    assert compose.interpolate("<${A}>", {"A": value}) == f"<{value}>"
    assert compose.interpolate(value.replace("$", "$$"), {}) == value


def test_variables_lists_each_name_once() -> None:
    """Escaped dollars are no variables."""
    assert compose.variables("${B:-x} $A ${A} $${C}") == ("A", "B")
    assert compose.variables(COORDINATOR) == ()


def test_a_named_volume_belongs_to_one_service() -> None:
    """Two services with one named volume are refused; folders may be shared, and volumes of one's own are fine."""
    helper = "  helper:\n    image: x\n    entrypoint: [/run/mesh/exec.sh, /x]\n    network_mode: host\n"
    helper += "    volumes: [/tmp/dstack-runtime/mesh:/run/mesh:ro, 'data:/other']\n" + WAITS
    text = COMPOSE.replace("/run/mesh:ro\n", "/run/mesh:ro\n      - data:/data\n") + helper
    (problem,) = refused(text)
    assert problem.startswith("c.yaml:2")
    assert "services.helper.volumes: mount 'data', which 'app' mounts too" in problem
    compose.parse(text.replace("'data:/other'", "'other:/other'"), Path("c.yaml"))
    compose.parse(text.replace("data:/data", "/tmp/x:/data").replace("'data:/other'", "'/tmp/x:/o'"), Path("c.yaml"))


SHIPPED = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("clusters/*/compose/*.yaml", "clusters/*/compose.yaml", "benchmarks/cluster/compose/*.yaml")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", SHIPPED)
def test_the_logs_of_shipped_containers_have_a_size(path: str) -> None:
    """Each service names the driver, because another one would refuse the options; 30 MB at most."""
    services = yaml.safe_load((ROOT / path).read_text())["services"]
    kept = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
    assert {name: body.get("logging") for name, body in services.items()} == dict.fromkeys(services, kept)
