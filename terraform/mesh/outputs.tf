output "cluster" {
  description = "Name of the cluster."
  value       = var.cluster_name
}

output "groups" {
  description = "Per workload group: its peer IDs, its compose file, and its own variables."
  value       = local.groups
}

output "coordinators" {
  description = "The coordinators' peer IDs and compose file."
  value       = { peers = local.coordinators, compose = var.coordinator_compose }
}

output "public" {
  description = "Per workload group with public listeners: backend => port, as `public` in cluster.tf says."
  value = {
    for g, group in var.workload_groups : g => {
      for name, backend in try({ for k, v in group.backends : k => v }, {}) : name => backend.public.port if can(tonumber(backend.public.port))
    } if length([for backend in try(values(group.backends), []) : true if can(tonumber(backend.public.port))]) > 0
  }
}

output "environment" {
  description = "Per group, and for the coordinators under `coordinator`: the environment of its CVMs. No manifest, route or slot is in it, so none of them restarts a CVM."
  value = {
    for app in setunion(keys(local.groups), ["coordinator"]) : app => merge(try(local.groups[app].compose_env, {}), {
      MESH_CLUSTER      = var.cluster_name
      MESH_COORDINATORS = try(jsonencode([for peer in local.payload.coordinators.peers : peer.url]), "")
      MESH_GROUP        = app
    })
  }
}

output "signed" {
  description = "What the given manifest says, null without one. For the checks of whoever deploys."
  value       = local.payload
}
