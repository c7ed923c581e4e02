"""A cluster as a value: who may call what."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT
from tests.topology.support import backend, group, write
from topology import cluster
from topology.model import Cluster


def callers(found: Cluster) -> dict[str, tuple[str, ...]]:
    """Backend to who may call it."""
    return {it.name: found.callers(one, it) for one in found.groups for it in one.backends}


def test_where_nothing_says_who_calls_everybody_may(tmp_path: Path) -> None:
    """A cluster of before `calls` and `callers` works as it did; null says nothing either."""
    nulls = group("b", backends=backend("b", more="callers = null"), more="calls = null")
    found = cluster.load(write(tmp_path, group("a"), nulls))
    assert not found.says_who_calls
    assert callers(found) == {"a": ("*",), "b": ("*",)}


@pytest.mark.parametrize(
    ("more", "own"), [("calls = []", "callers = null"), ("", "callers = []"), ("", 'callers = ["*"]')]
)
def test_where_anything_says_who_calls_nobody_may_who_is_not_named(tmp_path: Path, more: str, own: str) -> None:
    """One empty list is enough; a group may not call its own backend either."""
    found = cluster.load(write(tmp_path, group("a"), group("b", backends=backend("b", more=own), more=more)))
    assert found.says_who_calls
    assert callers(found) == {"a": (), "b": ("*",) if "*" in own else ()}


def test_callers_are_the_groups_that_call_a_route_to_the_backend(tmp_path: Path) -> None:
    """Of several routes to one backend each lets in; a route to another backend of the group does not."""
    routes = 'one = { backend = "db" }\neach = { backend = "db", members = true }\nrest = { backend = "rest" }'
    store = group(
        "store", backends=backend("db") + backend("rest", port="8081"), routes=routes, more='calls = ["each"]'
    )
    web, job = (group(name, more=f'calls = ["{route}"]') for name, route in (("web", "one"), ("job", "rest")))
    found = callers(cluster.load(write(tmp_path, store, web, job, group("idle"))))
    assert found == {"db": ("store", "web"), "rest": ("job",), "web": (), "job": (), "idle": ()}


def test_callers_of_a_backend_are_all_there_are(tmp_path: Path) -> None:
    """Where they are written, they count, sorted, and nobody has to call a route."""
    found = cluster.load(
        write(
            tmp_path, group("b", backends=backend("b", more='callers = ["b", "a"]')), group("a", more='calls = ["b"]')
        )
    )
    assert callers(found) == {"b": ("a", "b"), "a": ()}


@pytest.mark.parametrize("name", ["starter", "patroni-demo", "emojivoto"])
def test_shipped_clusters_say_who_calls(name: str) -> None:
    """Nobody who copies one gets a mesh in which everybody may call everything."""
    assert cluster.load(ROOT / "clusters" / name).says_who_calls


TEMPLATE = """
locals {
  workload_groups = {
    api = {
      replicas = 2
      compose = "${path.module}/compose/app.yaml"
      compose_env = {}
      backends = {
        api = {
          port = 8080
          workload = "api"
          registration = { owner = "platform", parent = "api" }
          consul_permissions = {}
        }
      }
      routes = {
        api = { backend = "api", role = null }
      }
    }
    postgres = {
      replicas = 3
      compose = "${path.module}/compose/app.yaml"
      backends = {
        postgres = {
          port = 5432
          workload = "postgres"
          registration = { owner = "workload", parent = var.cluster_name }
          consul_permissions = {
            key_prefixes = ["service/${var.cluster_name}"]
            session_write = true
          }
        }
      }
      routes = {
        "postgres-master" = { backend = "postgres", role = "master" }
        "postgres-replica" = { backend = "postgres", role = "replica" }
      }
    }
  }
}
"""
"""The examples of Dstack-TEE/service-mesh's README: every CVM may dial every route there."""


def test_the_templates_clusters_mean_what_they_meant(tmp_path: Path) -> None:
    """They know neither field, and their README promises that code in every group can call every route."""
    write(tmp_path)
    (tmp_path / "cluster.tf").write_text(TEMPLATE)
    assert callers(cluster.load(tmp_path)) == {"api": ("*",), "postgres": ("*",)}
