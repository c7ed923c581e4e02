# What CVMs get: what topology/render.py does, byte for byte (tests/topology/test_terraform.py).
locals {
  # Checks have failed before a route without backend is looked at.
  rendered_routes = [
    for n in local.names : {
      name     = n.name
      group    = n.route.group
      backend  = n.route.backend
      service  = try([for b in local.backends : b.parent if b.group == n.route.group && b.name == n.route.backend][0], "")
      role     = n.route.role
      fallback = n.route.fallback
      peer     = n.peer
      # Where the exclusive role is asked for: Patroni's lock, whose scope is the last part of the first key prefix.
      leader_key = try([
        for b in local.backends : "${replace(b.permissions.key_prefixes[0], "//+$/", "")}/leader"
        if b.group == n.route.group && b.name == n.route.backend && b.owner == "workload" && length(setintersection(local.exclusive_roles, compact([n.route.role, n.route.fallback]))) > 0
      ][0], null)
      vip  = local.vip_of[n.name]
      port = try([for b in local.backends : b.port if b.group == n.route.group && b.name == n.route.backend][0], 0)
    }
  ]
  routes_json = jsonencode([for r in local.rendered_routes : { for field in ["name", "vip", "port", "role", "backend", "service"] : field => r[field] }])

  by_secret = { for s in local.secrets : s.name => s... }

  # The signed manifest, once there is one: it says where the coordinators are.
  payload_text = replace(replace(split(".", trimspace(var.manifest))[0], "-", "+"), "_", "/")
  payload      = try(jsondecode(base64decode("${local.payload_text}${substr("====", 0, (4 - length(local.payload_text) % 4) % 4)}")), null)
  # No policy is in it, and no route: the coordinators have the manifest, and a new one restarts nobody.
  common = {
    for app in concat(keys(local.groups), ["coordinator"]) : app => {
      MESH_CLUSTER      = var.cluster_name
      MESH_COORDINATORS = jsonencode(try([for peer in local.payload.coordinators.peers : peer.url], []))
      MESH_GROUP        = app
    }
  }
}

output "cluster" {
  description = "Name of the cluster."
  value       = var.cluster_name
}

output "groups" {
  description = "Per workload group: its peer IDs and its compose file."
  value       = { for g, group in local.groups : g => { peers = group.peers, compose = group.compose } }
}

output "coordinators" {
  description = "The coordinators' peer IDs and compose file."
  value       = { peers = local.coordinator_peers, compose = var.coordinator_compose }
}

output "mesh_addresses" {
  description = "Mesh address of each CVM by peer ID."
  value       = local.mesh_of
}

output "vips" {
  description = "VIP of each route by name."
  value       = local.vip_of
}

output "routes_json" {
  description = "MESH_ROUTES_JSON of cluster.tf, for names before the first manifest. Not in `environment`: a new route would restart CVMs."
  value       = local.routes_json
}

output "environment" {
  description = "Per group, and for the coordinators under `coordinator`: the environment of its CVMs. The slot is not in it: a CVM's own is proposed by the coordinator, from the attested instance."
  value = merge(
    { coordinator = local.common["coordinator"] },
    { for g, group in local.groups : g => merge(group.compose_env, local.common[g]) },
  )
}

output "policy" {
  description = "What the manifest will say of groups, peers, rights and routes. The rest of it is known once the apps exist."
  value = {
    cluster      = var.cluster_name
    coordinators = [for peer in local.coordinator_peers : { peer_id = peer, address = local.mesh_of[peer] }]
    groups = {
      for g, group in local.groups : g => {
        peers = [for peer in group.peers : { peer_id = peer, address = local.mesh_of[peer] }]
        env   = group.compose_env
        backends = {
          for b in local.by_group[g] : b.name => {
            port         = b.port
            sidecar_port = b.sidecar_port
            service      = b.parent
            identity     = "spiffe://${var.cluster_name}/${b.workload}"
            owner        = b.owner
            permissions  = b.permissions

            callers        = local.callers_of[b.entry]
            source         = b.source
            proxy_protocol = b.proxy_protocol
          }
        }
      }
    }
    routes     = local.rendered_routes
    secrets    = { for name, found in local.by_secret : name => { owner = found[0].group, groups = sort(setsubtract(found[0].grant, [found[0].group])) } }
    vip_pool   = local.vip_pool
    mesh_pool  = local.mesh_pool
    leaf_hours = 8

    overlap_seconds = 120
  }
}

output "signed" {
  description = "What the given manifest says, null without one. For the checks of whoever deploys."
  value       = local.payload
}
