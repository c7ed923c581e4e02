# The shape of the cluster: this is the file to edit. The fields are explained in clusters/starter/README.md.
locals {
  workload_groups = {
    web = {
      replicas    = var.web_replicas
      compose     = "${path.module}/compose/web.yaml"
      compose_env = {}

      # What its programs dial in clear, and where the CVM's Envoy takes that by mutual TLS. Naming a route here is also the
      # right to call it.
      egress = [
        { name = "emoji", listen = "127.137.0.1:8081", remote = "emoji:8080" },
        { name = "voting", listen = "127.137.0.2:8081", remote = "voting:8080" },
      ]

      backends = {
        web = {
          port               = 8080
          workload           = "web"
          registration       = { owner = "platform", parent = "web" }
          consul_permissions = {}
          # For anybody, by HTTPS: under the gateway's name, and as web where a name server or a client says where that is.
          ingress = "tls"
          public  = { port = 443, sans = ["gateway", "web"] }
        }
      }

      routes = {
        web = { backend = "web", role = null }
      }
    }

    emoji = {
      replicas    = var.emoji_replicas
      compose     = "${path.module}/compose/emoji.yaml"
      compose_env = {}
      calls       = []

      backends = {
        emoji = {
          port               = 8080
          workload           = "emoji"
          registration       = { owner = "platform", parent = "emoji" }
          consul_permissions = {}
        }
      }

      routes = {
        emoji = { backend = "emoji", role = null }
      }
    }

    voting = {
      replicas    = 1 # the votes are in its memory
      compose     = "${path.module}/compose/voting.yaml"
      compose_env = {}
      calls       = []

      backends = {
        voting = {
          port               = 8080
          workload           = "voting"
          registration       = { owner = "platform", parent = "voting" }
          consul_permissions = {}
        }
      }

      routes = {
        voting = { backend = "voting", role = null }
      }
    }
  }
}
