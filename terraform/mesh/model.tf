# The cluster as values of one type each: what topology/model.py and topology/addresses.py do.
locals {
  vip_pool       = "127.10.0.0/16"
  mesh_pool      = "100.96.0.0/16"
  reserved       = 256 # addresses at the start of a pool that no name gets
  dns_address    = "127.10.0.53"
  ingress_source = "127.10.0.54" # where the ingress Envoy dials a local server from, unless the backend says otherwise
  usable         = pow(2, 16) - local.reserved - 1
  sidecar_offset = 20000
  platform_ports = {
    "8090"  = "the dstack guest agent"
    "9182"  = "the platform's WireGuard (dstack-wg0)"
    "8787"  = "the admission broker"
    "51820" = "the mesh's WireGuard"
    "51821" = "the rendezvous"
    "8300"  = "Consul's RPC"
    "8301"  = "Consul's serf"
    "8302"  = "Consul's serf (WAN)"
    "8500"  = "Consul's HTTP API for workloads"
    "61054" = "the ingress's listener that resets"
  }

  groups = {
    for g, group in local.given : g => {
      replicas    = tonumber(group.replicas)
      compose     = tostring(group.compose)
      compose_env = { for t in local.texts : t.name => tostring(jsondecode(t.json)) if t.group == g && t.field == "compose_env" && startswith(t.json, "\"") }
      pins        = { for t in local.texts : t.name => tostring(jsondecode(t.json)) if t.group == g && t.field == "mesh_addresses" && startswith(t.json, "\"") }
      calls       = try(startswith(jsonencode(group.calls), "["), false) ? lookup(local.texts_of, "${g}//calls", []) : null
      peers       = [for index in range(tonumber(group.replicas)) : "${g}-${index}"]
    } if !contains(local.broken, g)
  }
  backends = [
    for b in local.given_backends : {
      group        = b.group
      name         = b.name
      entry        = b.entry
      port         = tonumber(b.value.port)
      sidecar_port = b.value.port + local.sidecar_offset < 61000 ? b.value.port + local.sidecar_offset : b.value.port - local.sidecar_offset
      workload     = tostring(b.value.workload)
      owner        = tostring(b.value.registration.owner)
      parent       = tostring(b.value.registration.parent)
      roles = (
        try(b.value.registration.owner, "") != "workload" ? [] :
        distinct(lookup(local.texts_of, "${b.group}/${b.name}/roles", ["master", "replica"]))
      )
      permissions = {
        key_prefixes  = lookup(local.texts_of, "${b.group}/${b.name}/key_prefixes", [])
        session_write = try(jsonencode(b.value.consul_permissions.session_write), "false") == "true"
      }
      callers        = try(startswith(jsonencode(b.value.callers), "["), false) ? sort(lookup(local.texts_of, "${b.group}/${b.name}/callers", [])) : null
      source         = try(startswith(jsonencode(b.value.source_address), "\"") && b.value.source_address != "" ? tostring(b.value.source_address) : local.ingress_source, local.ingress_source)
      proxy_protocol = try(jsonencode(b.value.proxy_protocol), "false") == "true"
    } if !contains(local.broken, b.group)
  ]
  routes = [
    for r in local.given_routes : {
      group    = r.group
      name     = r.name
      entry    = r.entry
      backend  = tostring(r.value.backend)
      role     = try(startswith(jsonencode(r.value.role), "\"") && can(regex(local.label, r.value.role)) ? tostring(r.value.role) : null, null)
      fallback = try(startswith(jsonencode(r.value.fallback), "\"") && r.value.fallback != "" ? tostring(r.value.fallback) : null, null)
      pin      = try(startswith(jsonencode(r.value.vip), "\"") ? tostring(r.value.vip) : null, null)
      members  = try(jsonencode(r.value.members), "false") == "true"
    } if !contains(local.broken, r.group)
  ]
  # Who may call each backend, by its entry. Where nothing says so, as in a cluster of before these fields, everybody may;
  # where anything does, nobody may who is not named.
  says_who_calls = anytrue(concat([for g, group in local.groups : group.calls != null], [for b in local.backends : b.callers != null]))
  callers_of = {
    for b in local.backends : b.entry => (
      !local.says_who_calls ? tolist(["*"]) : b.callers != null ? b.callers : sort([
        for g, group in local.groups : g
        if length(setintersection(group.calls == null ? [] : group.calls, [for r in local.routes : r.name if r.group == b.group && r.backend == b.name])) > 0
      ])
    )
  }

  # What applications dial: a route's own name, or with `members` one name for each slot of its group.
  names = flatten([
    for r in local.routes : [
      for index in range(r.members ? local.groups[r.group].replicas : 1) : {
        route = r
        entry = r.entry
        name  = r.members ? "${r.name}-${index}" : r.name
        peer  = r.members ? local.groups[r.group].peers[index] : null
        pin   = r.members ? null : r.pin
      }
    ]
  ])

  secrets = [
    for s in local.given_secrets : {
      group = s.group
      name  = s.name
      entry = s.entry
      grant = lookup(local.texts_of, "${s.group}/${s.name}/grant", [])
    } if !contains(local.broken, s.group) && try(startswith(jsonencode(s.value.grant), "["), true)
  ]
  exclusive_roles = ["master"]
  reserved_keys   = ["mesh/", "coordinator/"] # only coordinators write below these

  coordinator_peers = [for index in range(var.coordinators) : "coordinator-${index}"]
  peers = concat(
    [for peer in local.coordinator_peers : { id = peer, group = "coordinator" }],
    flatten([for g, group in local.groups : [for peer in group.peers : { id = peer, group = g }]]),
  )

  # An address follows from the name alone, so that adding or removing a group moves no one else's.
  hashed = {
    for name in distinct(concat([for n in local.names : n.name], [for p in local.peers : p.id])) :
    name => local.reserved + parseint(substr(sha256(name), 0, 12), 16) % local.usable
  }
  pins           = merge([for g, group in local.groups : group.pins]...)
  vips           = { for n in local.names : n.name => coalesce(n.pin, cidrhost(local.vip_pool, local.hashed[n.name]))... }
  mesh_addresses = { for p in local.peers : p.id => coalesce(try(local.pins[p.id], null), cidrhost(local.mesh_pool, local.hashed[p.id]))... }
}
