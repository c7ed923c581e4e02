"""`load`: variables, overrides, expressions and what a folder must have."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.topology.support import group, only, problems, write
from topology import cluster
from topology.problems import ClusterError

STARTER = ROOT / "clusters" / "starter"


def test_the_starter_loads() -> None:
    """The committed starter is the template's: one coordinator, two api, two worker, one public group."""
    found = cluster.load(STARTER)
    assert (found.name, found.coordinators, found.public) == ("starter", 1, ("api",))
    assert [(g.name, g.replicas) for g in found.groups] == [("api", 2), ("worker", 2)]
    assert found.group("worker").peers() == ("worker-0", "worker-1")
    assert found.group("api").compose == STARTER / "compose" / "api.yaml"
    assert found.coordinator_compose == STARTER / "compose" / "coordinator.yaml"
    backend = found.group("worker").backend("worker")
    assert (backend.port, backend.workload, backend.owner, backend.parent) == (9090, "worker", "platform", "worker")


def test_overrides_replace_counts_and_variables() -> None:
    """`--replicas worker=5`, `--coordinators 3` and any variable."""
    overrides = {"replicas.worker": "5", "coordinators": "3", "cluster_name": "mine"}
    found = cluster.load(STARTER, overrides)
    assert (found.name, found.coordinators, found.group("worker").replicas) == ("mine", 3, 5)
    assert found.coordinator_peers() == ("coordinator-0", "coordinator-1", "coordinator-2")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("replicas.wrker", "5", ("is not a workload group", "did you mean 'worker'?")),
        ("replicas.worker", "0", ("override replicas.worker", "whole number from 1")),
        ("replicas.worker", "many", ("override replicas.worker", "whole number from 1")),
        ("coordinators", "0", ("override coordinators", "whole number from 1")),
        ("coordinators", "x", ("override coordinators", "expected a number")),
        ("cluster_nam", "x", ("is not a variable", "did you mean 'cluster_name'?")),
        ("cluster_name", "Big", ("override cluster_name", "DNS label")),
    ],
)
def test_a_wrong_override_is_refused(name: str, value: str, words: tuple[str, ...]) -> None:
    """The message names the override, not a file in which it does not stand."""
    only(problems(STARTER, **{name: value}), *words)


def test_coordinators_may_be_overridden_without_a_variable(tmp_path: Path) -> None:
    """A cluster that declares no such variable has one coordinator, unless told otherwise."""
    write(tmp_path, group("a"))
    assert cluster.load(tmp_path).coordinators == 1
    assert cluster.load(tmp_path, {"coordinators": "3"}).coordinators == 3
    only(problems(tmp_path, coordinators="ten"), "override coordinators", "from 1 to 9")


def test_terraform_tfvars_win_over_defaults_and_lose_to_overrides(tmp_path: Path) -> None:
    """Terraform's order of precedence."""
    write(tmp_path, group("a", replicas="var.n"), variables='variable "n" {\n type = number\n default = 1\n}\n')
    assert cluster.load(tmp_path).groups[0].replicas == 1
    (tmp_path / "terraform.tfvars").write_text('n = 3\ncluster_name = "other"\n')
    assert cluster.load(tmp_path).groups[0].replicas == 3
    assert cluster.load(tmp_path).name == "other"
    assert cluster.load(tmp_path, {"n": "4"}).groups[0].replicas == 4


def test_an_unknown_name_in_tfvars_is_refused(tmp_path: Path) -> None:
    """Terraform only warns; here a misspelt setting does not pass."""
    write(tmp_path, group("a"))
    (tmp_path / "terraform.tfvars").write_text('\ncluster_nme = "x"\n')
    only(problems(tmp_path), "terraform.tfvars:2", "cluster_nme", "did you mean 'cluster_name'?")


def test_a_reference_in_tfvars_is_refused(tmp_path: Path) -> None:
    """Only literals may stand in terraform.tfvars."""
    write(tmp_path, group("a"))
    (tmp_path / "terraform.tfvars").write_text("cluster_name = var.other\n")
    only(problems(tmp_path), "terraform.tfvars:1", "var.other", "literal")


@pytest.mark.parametrize(
    ("kind", "default"), [("number", '"x"'), ("bool", "1"), ("string", "[1]"), ("list(string)", "{}")]
)
def test_a_variable_must_fit_its_type(tmp_path: Path, kind: str, default: str) -> None:
    """A value that Terraform could not convert is refused."""
    variables = f'variable "n" {{\n type = {kind}\n default = {default}\n}}\n'
    write(tmp_path, group("a", more="compose_env = { A = var.n }"), variables=variables)
    only(problems(tmp_path), "variable n", f"expected a {kind}")


@pytest.mark.parametrize(
    ("kind", "default", "text"), [("string", "5", "5"), ("string", "true", "true"), ("bool", '"true"', "on-true")]
)
def test_a_variable_is_converted_as_terraform_does(tmp_path: Path, kind: str, default: str, text: str) -> None:
    """Between text, numbers and bools."""
    variables = f'variable "n" {{\n type = {kind}\n default = {default}\n}}\n'
    value = "var.n" if kind == "string" else '"on-${var.n}"'
    write(tmp_path, group("a", more=f"compose_env = {{ A = {value} }}"), variables=variables)
    assert cluster.load(tmp_path).groups[0].compose_env == {"A": text}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('"plain"', "plain"),
        (r'"tab\tquote\"\u0041"', 'tab\tquote"A'),
        ('"$${kept} and %%{kept}"', "${kept} and %{kept}"),
        ('"${var.cluster_name}-${local.size}"', "demo-7"),
        ('"${local.names[1]}/${local.map.key}/${local.map["key"]}"', "two/value/value"),
        ('("in parentheses")', "in parentheses"),
        ("local.deep.a.b", "found"),
        ('"${local.flag}"', None),
    ],
)
def test_supported_expressions(tmp_path: Path, written: str, value: str | None) -> None:
    """Literals, escapes, templates and references; a template that is one reference keeps the type, as in HCL."""
    extra = """
    size  = 7
    names = ["one", "two"]
    map   = { key : "value" }
    deep  = { a = { b = "found" } }
    flag  = true
"""
    write(tmp_path, group("a", more=f"compose_env = {{ A = {written} }}"), extra=extra)
    if value is None:
        only(problems(tmp_path), "compose_env.A", "true")
    else:
        assert cluster.load(tmp_path).groups[0].compose_env == {"A": value}


@pytest.mark.parametrize(
    "written",
    [
        'upper("a")',
        'true ? "a" : "b"',
        '"a" == "b"',
        "1 + 2",
        "!true",
        "[for x in local.l : x]",
        "local.l[*]",
        "data.x.y",
        "each.key",
        "bare",
        '"%{ if true }x%{ endif }"',
        '"a${local.l}"',
        '"a${null}"',
        "<<EOT\ntext\nEOT\n",
    ],
)
def test_other_expressions_are_refused_with_their_own_text(tmp_path: Path, written: str) -> None:
    """What only Terraform can evaluate is named, with the line, once."""
    write(tmp_path, group("a", more=f"compose_env = {{ A = {written}\n }}"), extra='l = ["x"]')
    found = problems(tmp_path)
    only(found, "cluster.tf:", "workload_groups.a.compose_env.A", "the expression `")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("var.nme", ("var.nme", "does not exist")),
        ("local.nothing", ("local.nothing", "does not exist")),
        ("local.loop", ("depends on itself", "local.loop -> local.pool -> local.loop")),
        ("path.root", ("use path.module",)),
        ("var.unset", ("has no value", "terraform.tfvars")),
        ("local.map.missing", ("has no element 'missing'",)),
        ("local.list[4]", ("has no element '4'",)),
    ],
)
def test_a_reference_to_nothing_is_refused(tmp_path: Path, written: str, words: tuple[str, ...]) -> None:
    """Unknown, circular and unset references, each with the reason."""
    extra = "loop = local.pool\npool = local.loop\nmap = {}\nlist = []"
    variables = 'variable "unset" {\n type = string\n}\n'
    write(tmp_path, group("a", more=f"compose_env = {{ A = {written} }}"), extra=extra, variables=variables)
    found = problems(tmp_path)
    assert any(all(word in problem for word in words) for problem in found), found


def test_a_computed_key_is_refused(tmp_path: Path) -> None:
    """Names of entries are literal."""
    write(tmp_path, group("a", more='compose_env = { (var.cluster_name) = "x" }'))
    only(problems(tmp_path), "var.cluster_name", "compose_env")


def test_broken_hcl_is_named_by_file_and_line(tmp_path: Path) -> None:
    """A syntax error points at its line."""
    write(tmp_path, group("a"))
    (tmp_path / "outputs.tf").write_text('output "x" {\n  value = \n}\n')
    only(problems(tmp_path), "outputs.tf:2", "not valid HCL")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "compose_env = {}",
            'compose_env = { A = "1" B = "2" }',
            ("cluster.tf:", '`B = "2"` follows', "without a comma"),
        ),
        ("compose_env = {}", 'compose_env = { A = "1" /* , */ B = "2" }', ('`B = "2"` follows', "without a comma")),
        ('service = "api"', 'service = "api" other = 1', ("cluster.tf:", "`other = 1` follows on one line")),
    ],
)
def test_entries_that_terraform_would_not_part_are_refused(
    tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    """python-hcl2 takes them; commas, line ends and comments to the line's end part them."""
    write(tmp_path, group("api", more="compose_env = {}"))
    file = tmp_path / "cluster.tf"
    text = file.read_text().replace("locals {", 'locals {\n  service = "api"', 1)
    file.write_text(text)
    cluster.load(tmp_path)
    good = text.replace("compose_env = {}", 'compose_env = { A = "1", B = "2" } # C = "3", D\n')
    file.write_text(good)
    cluster.load(tmp_path)
    file.write_text(text.replace(old, new, 1))
    only(problems(tmp_path), *words)


def test_a_missing_brace_is_said(tmp_path: Path) -> None:
    """A file that ends too early is not near anything; the message says what can be missing."""
    write(tmp_path, group("a"))
    (tmp_path / "outputs.tf").write_text('output "x" {\n  value = {\n    a = 1\n}\n')
    only(problems(tmp_path), "outputs.tf", "not valid HCL at its end: a '}'", "is missing")


def test_a_definition_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Locals, variables, outputs and attributes are defined once, over all files."""
    write(tmp_path, group("a"), variables='variable "cluster_name" {\n default = "b"\n}\n')
    (tmp_path / "more.tf").write_text('locals {\n  workload_groups = {}\n}\noutput "o" {}\noutput "o" {}\n')
    (tmp_path / "terraform.tfvars").write_text('cluster_name = "a"\ncluster_name = "b"\n')
    found = "\n".join(problems(tmp_path))
    for words in ("more.tf:2: local.workload_groups: is defined twice", "variable cluster_name: is defined twice"):
        assert words in found
    assert "output o: is defined twice" in found
    assert "terraform.tfvars:2: cluster_name: is set twice" in found


def test_an_override_file_is_refused(tmp_path: Path) -> None:
    """Terraform would merge it; we would not."""
    write(tmp_path, group("a"))
    (tmp_path / "cluster_override.tf").write_text("")
    only(problems(tmp_path), "cluster_override.tf", "override files are not supported")


def test_a_folder_without_cluster_tf_is_refused(tmp_path: Path) -> None:
    """Says what a cluster folder is."""
    only(problems(tmp_path), str(tmp_path), "cluster.tf")


def test_missing_and_empty_workload_groups_are_refused(tmp_path: Path) -> None:
    """A cluster has at least one group."""
    write(tmp_path)
    only(problems(tmp_path), "workload_groups", "empty")
    (tmp_path / "cluster.tf").write_text("locals {}\n")
    only(problems(tmp_path), "workload_groups", "is missing")


def test_a_missing_cluster_name_is_refused(tmp_path: Path) -> None:
    """Every cluster has a name."""
    write(tmp_path, group("a"))
    (tmp_path / "variables.tf").unlink()
    only(problems(tmp_path), "cluster_name", "every cluster has a name")


def test_missing_compose_files_are_refused(tmp_path: Path) -> None:
    """The group's and the coordinators'; each path is named once, however many groups use it."""
    write(tmp_path, group("a"), group("b"))
    (tmp_path / "compose" / "app.yaml").unlink()
    (tmp_path / "compose" / "coordinator.yaml").unlink()
    found = problems(tmp_path)
    assert len(found) == 2
    assert "coordinator.yaml" in found[0]
    assert "app.yaml" in found[1]
    assert all("does not exist" in problem for problem in found)


def test_a_compose_path_without_path_module_gets_a_hint(tmp_path: Path) -> None:
    """Terraform would look in the folder where it is started; the file is named as it should be written."""
    write(tmp_path, group("a", compose='"compose/app.yaml"'))
    found = [problem for problem in problems(tmp_path) if "cluster.tf" in problem.partition(" ")[0]]
    only(found, "workload_groups.a.compose", '"${path.module}/compose/app.yaml"')


def test_public_groups_are_those_with_an_output(tmp_path: Path) -> None:
    """`<group>_url`, with `_` for `-` where a person prefers that."""
    write(tmp_path, group("a"), group("my-web"), group("c"))
    (tmp_path / "outputs.tf").write_text(
        'output "a_url" { value = null }\noutput "my_web_url" { value = null }\noutput "grafana_url" {}\n'
    )
    assert cluster.load(tmp_path).public == ("a", "my-web")


def _terraform() -> str:
    found = shutil.which("terraform")
    if found is None:
        pytest.skip("terraform is not on PATH: install Terraform 1.5 or newer to compare with it")
    return found


def test_terraform_accepts_the_starter_and_reads_the_same_groups(tmp_path: Path) -> None:
    """A real Terraform validates the cluster's own files and evaluates the groups to the values that we read.

    With the modules that they are given to: tests/terraform.
    """
    terraform = _terraform()
    folder = tmp_path / "starter"
    folder.mkdir()
    for name in ("cluster.tf", "variables.tf"):
        shutil.copy(STARTER / name, folder)
    shutil.copytree(STARTER / "compose", folder / "compose")
    subprocess.run([terraform, "validate"], cwd=folder, check=True, capture_output=True)
    question = "jsonencode(local.workload_groups)\n"
    result = subprocess.run(
        [terraform, "console"], cwd=folder, input=question, capture_output=True, text=True, check=True
    )
    theirs = json.loads(json.loads(result.stdout))
    ours = cluster.load(folder)
    assert {g.name: (g.replicas, g.compose_env) for g in ours.groups} == {
        name: (g["replicas"], g["compose_env"]) for name, g in theirs.items()
    }
    for found in ours.groups:
        their = theirs[found.name]
        assert {b.name: (b.port, b.workload, b.owner, b.parent) for b in found.backends} == {
            name: (b["port"], b["workload"], b["registration"]["owner"], b["registration"]["parent"])
            for name, b in their["backends"].items()
        }
        assert {r.name: (r.backend, r.role) for r in found.routes} == {
            name: (r["backend"], r["role"]) for name, r in their["routes"].items()
        }


def test_an_error_prints_all_its_problems() -> None:
    """`str` of the error is what a person sees."""
    assert str(ClusterError(["one", "two"])) == "one\ntwo"
