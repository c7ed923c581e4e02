# What Terraform needs of cluster.tf: which CVMs there are, what runs in each, and with which variables.
# Addresses, ports, routes and rights stand in the manifest: `./mesh` works them out and judges the rest of cluster.tf (topology/).
locals {
  # null: missing, or not what it must be. As JSON a text has quotes and a part has a point, so neither is a whole number.
  replicas = {
    for g, group in var.workload_groups : g => try(one([
      for count in [parseint(jsonencode(group.replicas), 10)] : count if count >= 1 && count <= 1000
    ]), null)
  }
  compose = { for g, group in var.workload_groups : g => try(coalesce(tostring(group.compose)), null) }

  # A group that has a mistake in these is left out: it has its message.
  groups = {
    for g, group in var.workload_groups : g => {
      peers       = [for index in range(local.replicas[g]) : "${g}-${index}"]
      compose     = local.compose[g]
      compose_env = tomap({ for name, value in try(group.compose_env, null) == null ? tomap({}) : tomap(group.compose_env) : name => tostring(value) })
    } if local.replicas[g] != null && local.compose[g] != null
  }
  coordinators = [for index in range(var.coordinators) : "coordinator-${index}"]

  # The signed manifest, once there is one: it says where the coordinators are.
  payload_text = replace(replace(split(".", trimspace(var.manifest))[0], "-", "+"), "_", "/")
  payload      = try(jsondecode(base64decode("${local.payload_text}${substr("====", 0, (4 - length(local.payload_text) % 4) % 4)}")), null)
}
