# The checks that concern several entries at once: what topology/checks.py does, with the same verdicts.
locals {
  # Every role that a route asks for, itself or as its fallback, with the backend that would have to have it.
  asked = flatten([
    for r in local.routes : [
      for b in local.backends : [
        for field in ["role", "fallback"] :
        { route = r, backend = b, field = field, role = r[field], entry = "${r.entry}.${field}" } if r[field] != null
      ] if b.group == r.group && b.name == r.backend
    ]
  ])

  route_names = [for n in local.names : n.name]
  route_problems = concat(
    distinct([
      for i, n in local.names :
      "${n.entry}: has the same name as ${local.names[index(local.route_names, n.name)].entry}; route names are unique in the cluster, rename one"
      if index(local.route_names, n.name) != i
    ]),
    [
      for r in local.routes :
      "${r.entry}.members: is true, but the route asks for a role: its names lead to fixed CVMs, whatever their roles; remove role and fallback, or use a second route"
      if r.members && (r.role != null || r.fallback != null)
    ],
    [
      for r in local.routes :
      "${r.entry}.vip: pins one address, but with members = true the route has a VIP for each slot; remove it"
      if r.members && r.pin != null
    ],
    distinct([
      for n in local.names :
      "${n.entry}: has a member whose name is no DNS label of 63 characters at most; use a shorter name"
      if n.route.members && can(regex(local.label, n.route.name)) && !can(regex(local.label, n.name))
    ]),
    [for r in local.routes : "${r.entry}: is a reserved name; choose another" if contains(["localhost", "mesh"], r.name)],
    [
      for a in local.asked :
      "${a.entry}: is '${a.role}', but backend '${a.backend.name}' is owned by the platform, which sets no roles; use ${a.field} = null, or owner = \"workload\" and a workload that publishes its role"
      if a.backend.owner != "workload"
    ],
    [
      for a in local.asked :
      "${a.entry}: is '${a.role}', a role that no instance of backend '${a.backend.name}' can have; expected one of ${join(", ", a.backend.roles)}, or add it to its registration.roles"
      if a.backend.owner == "workload" && !contains(a.backend.roles, a.role)
    ],
    [
      for a in local.asked :
      "${a.backend.entry}.consul_permissions: lacks ${join(" and ", compact([length(a.backend.permissions.key_prefixes) == 0 ? "key_prefixes = [\"service/…\"]" : "", a.backend.permissions.session_write ? "" : "session_write = true"]))}: ${a.entry} asks for '${a.role}', which one instance holds by a lock in Consul; add it"
      if a.backend.owner == "workload" && contains(a.backend.roles, a.role) && contains(local.exclusive_roles, a.role) && !(a.backend.permissions.session_write && length(a.backend.permissions.key_prefixes) > 0)
    ],
    [
      for a in local.asked :
      "${a.entry}: is '${a.role}', ${a.route.role == null ? "but the route asks for no role; remove it, or add a role" : a.route.role == a.role ? "the role of the route itself; use another role, or remove it" : "but '${a.route.role}' is a role of one instance, and callers that need it are not served by others; remove it"}"
      if a.field == "fallback" && (a.route.role == null || a.route.role == a.role || contains(local.exclusive_roles, coalesce(a.route.role, "-")))
    ],
    [
      for r in local.routes :
      "${r.entry}.backend: is '${r.backend}', ${try("a backend of group '${[for b in local.backends : b.group if b.name == r.backend][0]}'; move the route into that group", "which is no backend of group '${r.group}'; its backends are: ${join(", ", [for b in local.backends : b.name if b.group == r.group])}")}"
      if !anytrue([for b in local.backends : b.group == r.group && b.name == r.backend])
    ],
  )

  # One backend name has one parent and one owner; then one parent has one owner.
  backend_names = [for b in local.backends : b.name]
  first_of_name = [for b in local.backends : local.backends[index(local.backend_names, b.name)]]
  agreeing = [
    for i, b in local.backends : b
    if b.parent == local.first_of_name[i].parent && b.owner == local.first_of_name[i].owner
  ]
  agreeing_parents = [for b in local.agreeing : b.parent]
  parent_problems = concat(
    [
      for i, b in local.backends :
      "${b.entry}.registration: is registered in '${b.parent}' by the ${b.owner}, but ${local.first_of_name[i].entry} of the same name in '${local.first_of_name[i].parent}' by the ${local.first_of_name[i].owner}; a backend has one parent and one owner, rename one"
      if b.parent != local.first_of_name[i].parent || b.owner != local.first_of_name[i].owner
    ],
    [
      for b in local.agreeing :
      "${b.entry}.registration.parent: is '${b.parent}', which ${local.agreeing[index(local.agreeing_parents, b.parent)].entry} registers as owned by the ${local.agreeing[index(local.agreeing_parents, b.parent)].owner}, and this one by the ${b.owner}; use another parent, or one owner for both"
      if b.owner != local.agreeing[index(local.agreeing_parents, b.parent)].owner
    ],
    flatten([
      for g, group in local.groups : [
        for i, b in local.by_group[g] :
        "${b.entry}.registration.parent: is '${b.parent}', as that of backend '${local.by_group[g][index(local.by_group[g][*].parent, b.parent)].name}' of this group; a route could not tell their ports apart, use another parent"
        if index(local.by_group[g][*].parent, b.parent) != i
      ]
    ]),
    [for b in local.backends : "${b.entry}.registration.parent: is '${b.parent}', a service of Consul's; choose another" if b.parent == "consul"],
    [for b in local.backends : "${b.entry}.workload: is '${b.workload}', the identity that every CVM has; choose another" if b.workload == "node"],
  )
  by_group = { for g, group in local.groups : g => [for b in local.backends : b if b.group == g] }

  # Who leads a service is decided by whoever may write its leader key: nobody but its own workload.
  leader_keys = [
    for r in local.rendered_routes : { key = r.leader_key, parent = r.service, route = "workload_groups.${r.group}.routes.${r.name}" }
    if r.leader_key != null
  ]
  leader_key_problems = flatten([
    for b in local.backends : [
      for prefix in b.permissions.key_prefixes : [
        for k in local.leader_keys :
        "${b.entry}.consul_permissions.key_prefixes: holds '${prefix}', which reaches '${k.key}', the leader key of ${k.route}; give each database a prefix of its own, and end one that another begins with in '/'"
        if startswith(k.key, prefix) && k.parent != b.parent
      ]
    ]
  ])
  permission_problems = flatten([
    for b in local.backends : [
      for prefix in b.permissions.key_prefixes :
      anytrue([for taken in local.reserved_keys : startswith("${trimsuffix(prefix, "/")}/", taken)])
      ? "${b.entry}.consul_permissions.key_prefixes: holds '${prefix}', but the keys below '${split("/", prefix)[0]}' are the mesh's own; choose another"
      : "${b.entry}.consul_permissions.key_prefixes: holds '${prefix}'; keys in Consul begin without '/', use '${trim(prefix, "/")}'"
      if startswith(prefix, "/") || anytrue([for taken in local.reserved_keys : startswith("${trimsuffix(prefix, "/")}/", taken)])
    ]
  ])
  entry_problems = concat(
    local.shape_problems, local.permission_problems, local.caller_problems, local.source_problems,
    local.leader_key_problems, local.secret_problems,
  )

  # Lists of callers and of calls, each as it is written.
  called = concat(
    [for b in local.backends : { entry = "${b.entry}.callers", names = tolist(b.callers) } if b.callers != null],
    [for g, group in local.groups : { entry = "workload_groups.${g}.calls", names = tolist(group.calls) } if group.calls != null],
  )
  callers = flatten([
    for b in local.backends : [
      for name in distinct(b.callers) : { entry = "${b.entry}.callers", name = name, all = b.callers }
    ] if b.callers != null
  ])
  calls = flatten([
    for g, group in local.groups : [
      for name in distinct(group.calls) : { entry = "workload_groups.${g}.calls", group = g, name = name }
    ] if group.calls != null
  ])
  caller_problems = concat(
    flatten([
      for c in local.called : [
        for name in distinct(c.names) : "${c.entry}: holds '${name}' more than once; remove one"
        if length([for other in c.names : other if other == name]) > 1
      ]
    ]),
    [
      for c in local.callers : "${c.entry}: holds '*', which is everybody, beside others; write [\"*\"] alone"
      if c.name == "*" && length(c.all) > 1
    ],
    [
      for c in local.callers : "${c.entry}: holds '${c.name}', which is no workload group; expected some of ${join(", ", keys(local.groups))}"
      if c.name != "*" && !contains(keys(local.given), c.name)
    ],
    [
      for c in local.calls : "${c.entry}: holds '${c.name}', which is no route; expected some of ${join(", ", local.routes[*].name)}"
      if !contains(local.given_routes[*].name, c.name)
    ],
    flatten([
      for c in local.calls : [
        for r in local.routes : [
          for b in local.backends :
          "${c.entry}: holds '${c.name}', but ${b.entry}.callers does not hold '${c.group}'; add it there, or remove the route here"
          if b.group == r.group && b.name == r.backend && (b.callers == null ? false : length(setintersection(b.callers, [c.group, "*"])) == 0)
        ] if r.name == c.name
      ]
    ]),
  )
  source_problems = [
    for b in local.backends :
    "${b.entry}.source_address: is '${b.source}', expected an IPv4 address of 127.0.0.0/8 other than ${local.dns_address} (DNS) and ${cidrhost(local.vip_pool, local.reserved)} to ${cidrhost(local.vip_pool, -1)} (VIPs); leave it out for the default"
    if !can(regex(local.ipv4, b.source)) || !startswith(b.source, "127.") || contains(["127.0.0.0", "127.255.255.255", local.dns_address], b.source) || try(cidrhost("${b.source}/16", 0) == cidrhost(local.vip_pool, 0) && split(".", b.source)[2] != "0", false)
  ]

  secret_names = [for s in local.secrets : s.name]
  secret_problems = concat(
    [for s in local.secrets : "${s.entry}: is the name of the file with the workload's Consul token; choose another" if s.name == "consul-token"],
    [
      for i, s in local.secrets :
      "${s.entry}: has the same name as ${local.secrets[index(local.secret_names, s.name)].entry}; names of secrets are unique in the cluster"
      if index(local.secret_names, s.name) != i
    ],
    flatten([
      for s in local.secrets : [
        for name in s.grant : "${s.entry}.grant: holds '${name}', which is no workload group; expected some of ${join(", ", keys(local.groups))}"
        if !contains(keys(local.groups), name)
      ]
    ]),
    [
      for s in local.secrets : "${s.entry}.grant: is empty: the secret would be granted to nobody but '${s.group}', which owns it; name a group"
      if length(s.grant) == 0
    ],
    [
      for s in local.secrets : "${s.entry}.grant: holds '${s.group}' only, which owns the secret and has it anyway; name another group, or have the workload derive a secret of its own with GetKey"
      if length(s.grant) > 0 && alltrue([for name in s.grant : name == s.group])
    ],
  )

  # `<group>-<n>` of two groups never meet: neither name can end in the other's number.
  peer_problems = concat(
    [for g, group in local.groups : "workload_groups.${g}: is the name of the coordinators; choose another, peer IDs must be unique" if g == "coordinator"],
    flatten([
      for g, group in local.groups : [
        for peer in keys(group.pins) : "workload_groups.${g}.mesh_addresses.${peer}: is no peer of this group; its peers are ${group.peers[0]} to ${group.peers[length(group.peers) - 1]}"
        if !contains(group.peers, peer)
      ]
    ]),
  )

  # The first backend of a group on each port; a second one on the same port has its problem and no other.
  on_own_port = [
    for b in local.backends : b
    if try([for x in local.by_group[b.group] : x.name if x.port == b.port][0], "") == b.name
  ]
  port_problems = concat(
    [
      for b in local.backends :
      "${b.entry}.port: is ${b.port}, which ${local.platform_ports[tostring(b.port)]} uses inside every CVM; choose another"
      if contains(keys(local.platform_ports), tostring(b.port))
    ],
    [
      for b in local.backends :
      "${b.entry}.port: is ${b.port}, as that of backend '${try([for x in local.by_group[b.group] : x.name if x.port == b.port][0], "")}' in the same CVM; choose another"
      if try([for x in local.by_group[b.group] : x.name if x.port == b.port][0], "") != b.name
    ],
    [
      for b in local.on_own_port :
      "${b.entry}.port: is ${b.port}, so its sidecar port would be ${b.sidecar_port}, which ${local.platform_ports[tostring(b.sidecar_port)]} uses; choose another"
      if contains(keys(local.platform_ports), tostring(b.sidecar_port))
    ],
    [
      for b in local.on_own_port :
      "${b.entry}.port: is ${b.port}, so its sidecar port would be ${b.sidecar_port}, as that of backend '${try([for x in local.on_own_port : x.name if x.group == b.group && x.sidecar_port == b.sidecar_port][0], "")}'; choose another port"
      if !contains(keys(local.platform_ports), tostring(b.sidecar_port)) && try([for x in local.on_own_port : x.name if x.group == b.group && x.sidecar_port == b.sidecar_port][0], "") != b.name
    ],
  )

  # Addresses: pins must be ones that may be given out, and no two names may have one address.
  ipv4 = "^(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$"
  pinned = concat(
    [for r in local.routes : { entry = "${r.entry}.vip", address = r.pin, pool = local.vip_pool } if r.pin != null],
    flatten([
      for g, group in local.groups : [
        for peer, address in group.pins : { entry = "workload_groups.${g}.mesh_addresses.${peer}", address = address, pool = local.mesh_pool }
        if contains(group.peers, peer)
      ]
    ]),
  )
  pin_problems = [
    for p in local.pinned :
    "${p.entry}: is '${p.address}', expected an IPv4 address from ${cidrhost(p.pool, local.reserved)} to ${cidrhost(p.pool, -2)}"
    if !can(regex(local.ipv4, p.address)) || try(cidrhost("${p.address}/16", 0) != cidrhost(p.pool, 0), false) || try(split(".", p.address)[2] == "0", false) || try(join(".", slice(split(".", p.address), 2, 4)) == "255.255", false)
  ]
  vip_names   = distinct(local.route_names)
  vip_of      = { for name in local.vip_names : name => local.vips[name][length(local.vips[name]) - 1] }
  vip_values  = [for name in local.vip_names : local.vip_of[name]]
  peer_names  = distinct(local.peers[*].id)
  mesh_of     = { for name in local.peer_names : name => local.mesh_addresses[name][0] }
  mesh_values = [for name in local.peer_names : local.mesh_of[name]]
  # Proposals for a name whose address is taken: hashed again, as the first was.
  clashing = concat(
    [
      for i, name in local.vip_names : {
        name   = name, other = local.vip_names[index(local.vip_values, local.vip_of[name])], address = local.vip_of[name],
        entry  = local.names[index(local.route_names, name)].entry, mesh = false, pool = local.vip_pool,
        member = local.names[index(local.route_names, name)].peer != null
      } if index(local.vip_values, local.vip_of[name]) != i
    ],
    [
      for i, name in local.peer_names : {
        name   = name, other = local.peer_names[index(local.mesh_values, local.mesh_of[name])], address = local.mesh_of[name],
        entry  = "workload_groups.${[for p in local.peers : p.group if p.id == name][0]}", mesh = true, pool = local.mesh_pool,
        member = false
      } if index(local.mesh_values, local.mesh_of[name]) != i
    ],
  )
  clashes = [
    for c in local.clashing : merge(c, {
      free = [
        for attempt in range(64) : cidrhost(c.pool, local.reserved + parseint(substr(sha256("${c.name}#${attempt}"), 0, 12), 16) % local.usable)
        if !contains(concat(local.vip_values, local.mesh_values), cidrhost(c.pool, local.reserved + parseint(substr(sha256("${c.name}#${attempt}"), 0, 12), 16) % local.usable))
      ][0]
    })
  ]
  address_problems = concat(local.pin_problems, [
    for c in local.clashes : (
      c.mesh
      ? "${c.entry}: '${c.name}' has the mesh address ${c.address}, as '${c.other}' has; pin it: mesh_addresses = { \"${c.name}\" = \"${c.free}\" }"
      : c.member
      ? "${c.entry}: has the VIP ${c.address} for '${c.name}', as route '${c.other}' has; rename one of the routes"
      : "${c.entry}: has the VIP ${c.address}, as route '${c.other}' has; pin one of them, for example vip = \"${c.free}\" here"
    )
  ])
}

# Not wrong, so only a warning: a cluster of before `calls` works as it did.
check "callers" {
  assert {
    condition     = local.says_who_calls
    error_message = "Cluster ${var.cluster_name}: cluster.tf does not say who calls whom, so every group may call every backend. Write calls = [routes that it dials] into each group, and [] into one that calls nobody."
  }
}

# What is wrong ends the plan before anything is made. One precondition per check, so that all of them report at once.
resource "terraform_data" "checks" {
  lifecycle {
    precondition {
      condition     = length(local.entry_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: cluster.tf has fields that are wrong or missing."], local.entry_problems))
    }
    precondition {
      condition     = length(local.compose_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: compose files are missing, do not say what runs, or start it without the mesh."], local.compose_problems))
    }
    precondition {
      condition     = length(local.route_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: route names must be unique, and each must lead to a backend of its own group."], local.route_problems))
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
      condition     = length(local.address_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: route VIPs and mesh addresses must be unique, and of their pool."], local.address_problems))
    }
    precondition {
      condition     = length(local.port_problems) == 0
      error_message = join("\n", concat(["Cluster ${var.cluster_name}: producer ports must be free in their CVM, and sidecar ports unique."], local.port_problems))
    }
  }
}
