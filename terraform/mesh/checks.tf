# The template's seven checks, and what an apply would find out after minutes, or deploy wrongly. Every other mistake in cluster.tf
# costs no apply to mend: `./mesh plan` refuses it, and names file and line.
locals {
  fields = ["backends", "calls", "compose", "compose_env", "egress", "mesh_addresses", "replicas", "routes", "secrets", "servicemesh_egress", "servicemesh_ingress"]

  backends = flatten([
    for g, group in var.workload_groups : [
      for name, backend in try({ for k, v in group.backends : k => v }, {}) : {
        entry = "workload_groups.${g}.backends.${name}"
        group = g
        name  = name
        port  = try(jsonencode(backend.port), "null")
        owner = try(coalesce(tostring(backend.registration.owner)), null)
        # The Consul service.
        parent = try(coalesce(tostring(backend.registration.parent)), null)
      }
    ]
  ])
  registered = [for b in local.backends : b if b.owner != null && b.parent != null]

  # What applications dial: a route's own name, or with `members` one name for each slot.
  routes = flatten([
    for g, group in var.workload_groups : [
      for name, route in try({ for k, v in group.routes : k => v }, {}) : [
        for suffix in try(tobool(route.members), false) == true ? formatlist("-%d", range(coalesce(local.replicas[g], 0))) : tolist([""]) :
        { entry = "workload_groups.${g}.routes.${name}", name = "${name}${suffix}", vip = try(coalesce(tostring(route.vip)), null) }
      ]
    ]
  ])

  compose_paths = distinct(concat([var.coordinator_compose], values(local.groups)[*].compose))
  services      = { for path in local.compose_paths : path => try({ for name, service in yamldecode(file(path)).services : name => service }, {}) }
  images = flatten([
    for path, services in local.services : [
      for name, service in services : { entry = "${path}: services.${name}.image", image = try(coalesce(tostring(service.image)), "") }
    ]
  ])

  entry_problems = concat(
    flatten([
      for g, group in var.workload_groups : [
        for field in setsubtract(try(keys(group), []), local.fields) :
        "workload_groups.${g}.${field}: is an unknown field; expected one of ${join(", ", local.fields)}"
      ]
    ]),
    [for g, path in local.compose : "workload_groups.${g}: lacks compose; expected the path of its compose file in quotes" if path == null],
    length(var.workload_groups) == 0 ? ["workload_groups: is empty; describe at least one group"] : [],
  )
  compose_problems = concat(
    [
      for path in local.compose_paths :
      "${path}: ${try(fileexists(path), false) ? "is no compose file; expected YAML with a map `services`" : "does not exist; write it, or change compose in cluster.tf"}"
      if length(local.services[path]) == 0
    ],
    [for i in local.images : "${i.entry}: is missing; expected a literal image reference (build is not measured)" if i.image == ""],
    [
      for i in local.images :
      "${i.entry}: is ${i.image}: a variable in an image reference is not measured, so the compose hash would not say what runs; write the reference itself, best with a digest"
      if can(regex("\\$", i.image))
    ],
    [
      for i in local.images :
      "${i.entry}: is ${i.image}: a tag can be moved to another image after it was measured; pin it by digest (image@sha256:…), or set attestation.require_digests = false for a trial"
      if var.require_digests && i.image != "" && !can(regex("\\$|@sha256:[0-9a-f]{64}$", i.image))
    ],
  )
  route_problems = [
    for name, entries in { for r in local.routes : r.name => r.entry... } :
    "${join(" and ", entries)}: have the name '${name}'; route names are unique in the cluster, rename one" if length(entries) > 1
  ]
  parent_problems = concat(
    [
      for b in local.backends : "${b.entry}.registration: lacks owner or parent; expected registration = { owner = \"platform\", parent = \"${b.name}\" }"
      if b.owner == null || b.parent == null
    ],
    [
      for name, found in { for b in local.registered : b.name => b... } :
      "${join(" and ", found[*].entry)}: a backend has one parent and one owner, and '${name}' has several; rename one"
      if length(distinct([for b in found : "${b.owner}/${b.parent}"])) > 1
    ],
    [
      for parent, found in { for b in local.registered : b.parent => b... } :
      "${join(" and ", found[*].entry)}: the parent '${parent}' has one owner, and is registered by the platform and by a workload; use another parent, or one owner"
      if length(distinct(found[*].owner)) > 1
    ],
  )
  slot_problems = [
    for g, count in local.replicas : "workload_groups.${g}.replicas: is ${try(jsonencode(var.workload_groups[g].replicas), "missing")}, expected a whole number from 1 to 1000; a group has at least one slot"
    if count == null
  ]
  peers = concat(
    [for peer in local.coordinators : { id = peer, entry = "coordinators" }],
    flatten([for g, group in local.groups : [for peer in group.peers : { id = peer, entry = "workload_groups.${g}" }]]),
  )
  peer_problems = [
    for peer, entries in { for p in local.peers : p.id => p.entry... } :
    "${join(" and ", entries)}: have the peer ID '${peer}'; peer IDs are unique, rename the group" if length(entries) > 1
  ]
  vip_problems = [
    for vip, entries in { for r in local.routes : r.vip => r.entry... if r.vip != null } :
    "${join(" and ", distinct(entries))}: have the VIP ${vip}; VIPs are unique, change or remove one" if length(distinct(entries)) > 1
  ]
  port_problems = [
    for b in values({ for b in local.backends : "${b.group} ${b.port}" => b... if b.port != "null" }) :
    "${join(" and ", b[*].entry)}: have port ${b[0].port} in one CVM, and with it one sidecar port; change one" if length(b) > 1
  ]
}

# What is wrong ends the plan before anything is made. One precondition a check, so that all of them report at once.
resource "terraform_data" "checks" {
  lifecycle {
    precondition {
      condition     = length(local.entry_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: cluster.tf has fields that are wrong or missing."], local.entry_problems))
    }
    precondition {
      condition     = length(local.compose_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: compose files are missing, or do not say what runs."], local.compose_problems))
    }
    precondition {
      condition     = length(local.route_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: route names must be unique."], local.route_problems))
    }
    precondition {
      condition     = length(local.parent_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: each backend must have one parent service and one owner."], local.parent_problems))
    }
    precondition {
      condition     = length(local.slot_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: each workload group must have at least one slot."], local.slot_problems))
    }
    precondition {
      condition     = length(local.peer_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: peer IDs must be unique."], local.peer_problems))
    }
    precondition {
      condition     = length(local.vip_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: route VIPs must be unique."], local.vip_problems))
    }
    precondition {
      condition     = length(local.port_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: producer sidecar ports must be unique."], local.port_problems))
    }
  }
}
