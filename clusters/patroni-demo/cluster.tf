# The shape of the cluster: this is the file to edit. The fields are explained in clusters/starter/README.md.
locals {
  workload_groups = {
    webdemo = {
      replicas    = var.webdemo_replicas
      compose     = "${path.module}/compose/webdemo.yaml"
      compose_env = {}
      calls       = ["webdemo", "postgres-master", "postgres-replica"]

      backends = {
        webdemo = {
          port               = 8080
          workload           = "webdemo"
          registration       = { owner = "platform", parent = "webdemo" }
          consul_permissions = {}
        }
      }

      routes = {
        webdemo = { backend = "webdemo", role = null }
      }
    }

    postgres = {
      replicas = var.postgres_replicas
      compose  = "${path.module}/compose/postgres.yaml"

      compose_env = {
        DERIVE_PATRONI_PASSWORDS = "1"
        POSTGRES_SYNCHRONOUS     = var.synchronous
      }

      # A member follows the leader by the first, and asks the others for their state by the second.
      calls = ["postgres-master", "patroni"]

      backends = {
        postgres = {
          port         = 5432
          workload     = "postgres"
          registration = { owner = "workload", parent = var.cluster_name }

          consul_permissions = {
            key_prefixes  = ["service/${var.cluster_name}"]
            session_write = true
          }
        }

        # Patroni's REST API: members ask each other. Who else called it in cluster.tf would be refused.
        patroni = {
          port               = 8008
          workload           = "patroni"
          registration       = { owner = "platform", parent = "patroni" }
          consul_permissions = {}
          callers            = ["postgres"]
        }
      }

      routes = {
        "postgres-master"  = { backend = "postgres", role = "master" }
        "postgres-replica" = { backend = "postgres", role = "replica", fallback = "master" }
        # patroni-0, patroni-1, …: one name for each member.
        patroni = { backend = "patroni", role = null, members = true }
      }

      # The password of the database role webdemo: /run/mesh/secrets/db-webdemo in both groups, and nowhere else.
      secrets = {
        "db-webdemo" = { grant = ["webdemo"] }
      }
    }
  }
}
