# The shape of the cluster: this is the file to edit. The fields are explained in README.md.
locals {
  workload_groups = {
    api = {
      replicas    = var.api_replicas
      compose     = "${path.module}/compose/api.yaml"
      compose_env = {}
      calls       = ["api", "worker"] # routes that its programs dial; nobody may call what nobody names

      backends = {
        api = {
          port               = 8080
          workload           = "api"
          registration       = { owner = "platform", parent = "api" }
          consul_permissions = {}
        }
      }

      routes = {
        api = { backend = "api", role = null }
      }
    }

    worker = {
      replicas    = var.worker_replicas
      compose     = "${path.module}/compose/worker.yaml"
      compose_env = {}
      calls       = ["api", "worker"]

      backends = {
        worker = {
          port               = 9090
          workload           = "worker"
          registration       = { owner = "platform", parent = "worker" }
          consul_permissions = {}
        }
      }

      routes = {
        worker = { backend = "worker", role = null }
      }
    }
  }
}
