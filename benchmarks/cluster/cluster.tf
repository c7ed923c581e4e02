# The cluster of `./mesh bench`: one caller, and two instances of one service that tell their role by a tag.
locals {
  workload_groups = {
    client = {
      replicas    = 1
      compose     = "${path.module}/compose/client.yaml"
      compose_env = {}
      backends    = {}
      routes      = {}
      calls       = ["echo-master", "echo-replica", "plain"]
    }

    echo = {
      replicas    = 2
      compose     = "${path.module}/compose/echo.yaml"
      compose_env = {}

      backends = {
        echo = {
          port               = 9090
          workload           = "echo"
          registration       = { owner = "workload", parent = "echo" }
          consul_permissions = { key_prefixes = ["service/bench"], session_write = true }
        }
        plain = {
          port               = 9091
          workload           = "echo"
          registration       = { owner = "platform", parent = "plain" }
          consul_permissions = {}
        }
      }

      routes = {
        echo-master  = { backend = "echo", role = "master" }
        echo-replica = { backend = "echo", role = "replica" }
        plain        = { backend = "plain", role = null }
      }
    }
  }
}
