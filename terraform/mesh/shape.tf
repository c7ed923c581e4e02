# Which fields there are, their types and names: what topology/shape.py does, with the same verdicts.
# Everything is first put into flat lists of records of one type, so that one expression can judge all of them. A record
# holds its value as JSON, because the first character of that says what kind of value it is.
locals {
  label    = "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
  variable = "^[A-Za-z_][A-Za-z0-9_]*$"
  # As topology.manifest.SHELLS_OWN.
  shells_own = "^(LD_[A-Za-z0-9_]*|BASH(_[A-Za-z0-9_]*|OPTS|PID)?|_|CDPATH|COLUMNS|DIRSTACK|ENV|EPOCHREALTIME|EPOCHSECONDS|EUID|EXECIGNORE|FPATH|FUNCNAME|FUNCNEST|GCONV_PATH|GLIBC_TUNABLES|GLOBIGNORE|GROUPS|HOSTNAME|HOSTTYPE|IFS|LINENO|LINES|MACHTYPE|OLDPWD|OPTARG|OPTERR|OPTIND|OSTYPE|PATH|PIPESTATUS|POSIXLY_CORRECT|PPID|PS[0-4]|PWD|RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|TMOUT|UID)$"
  known = {
    group        = ["backends", "calls", "compose", "compose_env", "mesh_addresses", "replicas", "routes", "secrets"]
    backend      = ["callers", "consul_permissions", "port", "proxy_protocol", "registration", "source_address", "workload"]
    registration = ["owner", "parent", "roles"]
    permissions  = ["key_prefixes", "session_write"]
    route        = ["backend", "fallback", "members", "role", "vip"]
    secret       = ["grant"]
  }

  # The maps inside: a value that is no map is a problem below, and has no entries here.
  given = try({ for name, group in var.workload_groups : name => group if can(keys(var.workload_groups)) }, {})
  given_backends = flatten([
    for g, group in local.given : [
      for b, backend in try({ for k, v in group.backends : k => v if can(keys(group.backends)) }, {}) :
      { group = g, name = b, entry = "workload_groups.${g}.backends.${b}", value = backend }
    ]
  ])
  given_routes = flatten([
    for g, group in local.given : [
      for r, route in try({ for k, v in group.routes : k => v if can(keys(group.routes)) }, {}) :
      { group = g, name = r, entry = "workload_groups.${g}.routes.${r}", value = route }
    ]
  ])

  given_secrets = flatten([
    for g, group in local.given : [
      for s, secret in try({ for k, v in group.secrets : k => v if can(keys(group.secrets)) }, {}) :
      { group = g, name = s, entry = "workload_groups.${g}.secrets.${s}", value = secret }
    ]
  ])

  # Everything that must be a map, and the fields that it may have (null: its keys are names).
  maps = concat(
    [{
      entry = "workload_groups", json = try(jsonencode(keys(var.workload_groups)), null),
      shown = substr(jsonencode(var.workload_groups), 0, 60), known = null
    }],
    [
      for g, group in local.given : {
        entry = "workload_groups.${g}", json = try(jsonencode(keys(group)), null), shown = substr(jsonencode(group), 0, 60),
        known = local.known.group
      }
    ],
    flatten([
      for g, group in local.given : [
        for field in ["backends", "routes", "compose_env", "mesh_addresses", "secrets"] : {
          entry = "workload_groups.${g}.${field}", json = try(jsonencode(keys(group[field])), null),
          shown = substr(jsonencode(group[field]), 0, 60), known = null
        } if try(group[field] != null, false)
      ]
    ]),
    [
      for b in local.given_backends : {
        entry = b.entry, json = try(jsonencode(keys(b.value)), null), shown = substr(jsonencode(b.value), 0, 60),
        known = local.known.backend
      }
    ],
    [
      for b in local.given_backends : {
        entry = "${b.entry}.registration", json = try(jsonencode(keys(b.value.registration)), null),
        shown = substr(jsonencode(b.value.registration), 0, 60), known = local.known.registration
      } if can(b.value.registration)
    ],
    [
      for b in local.given_backends : {
        entry = "${b.entry}.consul_permissions", json = try(jsonencode(keys(b.value.consul_permissions)), null),
        shown = substr(jsonencode(b.value.consul_permissions), 0, 60), known = local.known.permissions
      } if can(b.value.registration) && try(b.value.consul_permissions != null, false)
    ],
    [
      for r in local.given_routes : {
        entry = r.entry, json = try(jsonencode(keys(r.value)), null), shown = substr(jsonencode(r.value), 0, 60),
        known = local.known.route
      }
    ],
    [
      for s in local.given_secrets : {
        entry = s.entry, json = try(jsonencode(keys(s.value)), null), shown = substr(jsonencode(s.value), 0, 60),
        known = local.known.secret
      }
    ],
  )
  map_problems = concat(
    [for m in local.maps : "${m.entry}: is ${lookup(local.kinds, substr(m.shown, 0, 1), m.shown)}, expected a map { … }" if m.json == null],
    try(length(keys(var.workload_groups)), 1) == 0 ? ["workload_groups: is empty; describe at least one group"] : [],
    flatten([
      for m in local.maps : [
        for name in setsubtract(jsondecode(m.json), m.known) :
        "${m.entry}.${name}: is an unknown field; expected one of ${join(", ", m.known)}"
      ] if m.json != null && m.known != null
    ]),
  )
  kinds = { "{" = "a map", "[" = "a list" }

  # Every field that is one value. rule: text, label (a text that is a DNS label), count; needed: must be there.
  fields = concat(
    flatten([
      for g, group in local.given : [
        for f in [
          { field = "replicas", rule = "count", most = 1000 },
          { field = "compose", rule = "text", most = 0 },
          ] : {
          group = g, parent = "workload_groups.${g}", entry = "workload_groups.${g}.${f.field}", field = f.field,
          rule  = f.rule, most = f.most, needed = true,
          given = can(group[f.field]), json = try(jsonencode(group[f.field]), "null")
        }
      ]
    ]),
    flatten([
      for b in local.given_backends : [
        for f in [
          { field = "port", rule = "count", most = 65535 },
          { field = "workload", rule = "label", most = 0 },
          ] : {
          group = b.group, parent = b.entry, entry = "${b.entry}.${f.field}", field = f.field,
          rule  = f.rule, most = f.most, needed = true,
          given = can(b.value[f.field]), json = try(jsonencode(b.value[f.field]), "null")
        }
      ]
    ]),
    flatten([
      for b in local.given_backends : [
        for f in [{ field = "owner", rule = "text" }, { field = "parent", rule = "label" }] : {
          group = b.group, parent = "${b.entry}.registration", entry = "${b.entry}.registration.${f.field}",
          field = f.field, rule = f.rule, most = 0, needed = true,
          given = can(b.value.registration[f.field]), json = try(jsonencode(b.value.registration[f.field]), "null")
        }
      ] if can(b.value.registration)
    ]),
    [
      for b in local.given_backends : {
        group = b.group, parent = b.entry, entry = "${b.entry}.source_address", field = "source_address",
        rule  = "text", most = 0, needed = false, given = true, json = jsonencode(b.value.source_address)
      } if can(b.value.registration) && try(b.value.source_address != null, false)
    ],
    flatten([
      for r in local.given_routes : [
        for f in [
          { field = "backend", rule = "text", needed = true },
          { field = "role", rule = "label", needed = false },
          { field = "fallback", rule = "text", needed = false },
          { field = "vip", rule = "text", needed = false },
          ] : {
          group = r.group, parent = r.entry, entry = "${r.entry}.${f.field}", field = f.field,
          rule  = f.rule, most = 0, needed = f.needed,
          given = f.needed ? can(r.value[f.field]) : try(r.value[f.field] != null, false),
          json  = try(jsonencode(r.value[f.field]), "null")
        }
      ]
    ]),
  )
  fields_wrong = [
    for f in local.fields : f if f.given && !(
      f.rule == "count"
      ? try(can(regex("^-?[0-9]", f.json)) && tonumber(f.json) >= 1 && tonumber(f.json) <= f.most && floor(tonumber(f.json)) == tonumber(f.json), false)
      : startswith(f.json, "\"") && f.json != "\"\""
    )
  ]
  fields_missing = [for f in local.fields : f if f.needed && !f.given]
  field_problems = concat(
    [for f in local.fields_missing : "${f.parent}: lacks ${f.field}; add it" if f.field != "replicas"],
    [
      for b in local.given_backends :
      "${b.entry}: lacks registration; add registration = { owner = \"platform\", parent = \"${b.name}\" }"
      if !can(b.value.registration)
    ],
    [
      for f in local.fields_wrong :
      "${f.entry}: is ${lookup(local.kinds, substr(f.json, 0, 1), substr(f.json, 0, 60))}, expected ${f.rule == "count" ? "a whole number from 1 to ${f.most}" : "one text in quotes"}"
      if f.field != "replicas"
    ],
    [
      for f in local.fields :
      "${f.entry}: is ${f.json}, expected \"platform\" or \"workload\""
      if f.field == "owner" && f.given && !contains(local.fields_wrong, f) && !contains(["\"platform\"", "\"workload\""], f.json)
    ],
  )
  # Template check 4 has a message of its own.
  slot_problems = concat(
    [for f in local.fields_missing : "${f.parent}: lacks replicas; add it" if f.field == "replicas"],
    [
      for f in local.fields_wrong :
      "${f.entry}: is ${lookup(local.kinds, substr(f.json, 0, 1), substr(f.json, 0, 60))}, expected a whole number from 1 to ${f.most}; a group has at least one slot"
      if f.field == "replicas"
    ],
  )

  labels = concat(
    [for g, group in local.given : { entry = "workload_groups.${g}", text = g }],
    [for b in local.given_backends : { entry = b.entry, text = b.name }],
    [for r in local.given_routes : { entry = r.entry, text = r.name }],
    [for s in local.given_secrets : { entry = s.entry, text = s.name }],
    flatten([
      for l in local.lists : [
        for item in l.items : { entry = l.entry, text = jsondecode(item) } if startswith(item, "\"") && trim(item, "\"/") != ""
      ] if l.field == "roles"
    ]),
    [
      for f in local.fields : { entry = f.entry, text = jsondecode(f.json) }
      if f.rule == "label" && f.given && !contains(local.fields_wrong, f)
    ],
  )
  label_problems = [
    for l in local.labels :
    "${l.entry}: is '${l.text}', expected a DNS label: a-z, 0-9 and '-', at most 63, first a letter, last no '-'"
    if !can(regex(local.label, l.text))
  ]

  # compose_env and mesh_addresses: texts by name.
  texts = flatten([
    for g, group in local.given : [
      for field in ["compose_env", "mesh_addresses"] : [
        for name, value in try({ for k, v in group[field] : k => v if can(keys(group[field])) }, {}) : {
          group = g, field = field, name = name, entry = "workload_groups.${g}.${field}.${name}", json = jsonencode(value)
        }
      ]
    ]
  ])
  text_problems = concat(
    [
      for t in local.texts :
      "${t.entry}: is ${lookup(local.kinds, substr(t.json, 0, 1), substr(t.json, 0, 60))}, expected text; put it in quotes"
      if !startswith(t.json, "\"")
    ],
    [
      for t in local.texts : "${t.entry}: is no name for an environment variable; use letters, digits and '_'"
      if t.field == "compose_env" && startswith(t.json, "\"") && !can(regex(local.variable, t.name))
    ],
    [
      for t in local.texts : "${t.entry}: belongs to the mesh, which sets all MESH_ variables (exec.sh: mesh_); choose another name"
      if t.field == "compose_env" && startswith(t.json, "\"") && can(regex("^(MESH|mesh)_", t.name))
    ],
    [
      for t in local.texts : "${t.entry}: is set or obeyed by the shell of exec.sh, which could not hold it against the manifest; choose another name"
      if t.field == "compose_env" && startswith(t.json, "\"") && can(regex(local.shells_own, t.name))
    ],
    [
      for t in local.texts :
      "${t.entry}: has a backslash, which dstack would corrupt; encode the value, for example base64url"
      if t.field == "compose_env" && startswith(t.json, "\"") && can(regex("\\\\", jsondecode(t.json)))
    ],
  )

  # Lists of texts. What is given and no list is a problem below, and has no items here.
  lists = concat(
    [
      for b in local.given_backends : {
        group  = b.group, name = b.name, field = "key_prefixes", entry = "${b.entry}.consul_permissions.key_prefixes"
        wanted = "a list of key prefixes, such as [\"service/name\"]"
        json   = try(jsonencode(b.value.consul_permissions.key_prefixes), "[]")
        items  = try([for item in b.value.consul_permissions.key_prefixes : jsonencode(item) if !can(keys(b.value.consul_permissions.key_prefixes))], [])
      } if can(b.value.registration)
    ],
    [
      for b in local.given_backends : {
        group  = b.group, name = b.name, field = "roles", entry = "${b.entry}.registration.roles"
        wanted = "a list of roles, such as [\"master\", \"replica\"]"
        json   = jsonencode(b.value.registration.roles)
        items  = try([for item in b.value.registration.roles : jsonencode(item) if !can(keys(b.value.registration.roles))], [])
      } if try(b.value.registration.roles != null, false)
    ],
    [
      for b in local.given_backends : {
        group  = b.group, name = b.name, field = "callers", entry = "${b.entry}.callers"
        wanted = "a list of groups, such as [\"api\"]"
        json   = jsonencode(b.value.callers)
        items  = try([for item in b.value.callers : jsonencode(item) if !can(keys(b.value.callers))], [])
      } if can(b.value.registration) && try(b.value.callers != null, false)
    ],
    [
      for g, group in local.given : {
        group  = g, name = "", field = "calls", entry = "workload_groups.${g}.calls"
        wanted = "a list of routes, such as [\"worker\"]"
        json   = jsonencode(group.calls)
        items  = try([for item in group.calls : jsonencode(item) if !can(keys(group.calls))], [])
      } if try(group.calls != null, false)
    ],
    [
      for s in local.given_secrets : {
        group  = s.group, name = s.name, field = "grant", entry = "${s.entry}.grant"
        wanted = "a list of groups, such as [\"api\"]"
        json   = try(jsonencode(s.value.grant), "[]")
        items  = try([for item in s.value.grant : jsonencode(item) if !can(keys(s.value.grant))], [])
      }
    ],
  )
  list_problems = concat(
    [
      for l in local.lists : "${l.entry}: is ${lookup(local.kinds, substr(l.json, 0, 1), substr(l.json, 0, 60))}, expected ${l.wanted}"
      if !startswith(l.json, "[")
    ],
    flatten([
      for l in local.lists : [
        for item in l.items : "${l.entry}: holds ${substr(item, 0, 60)}, expected ${l.wanted}"
        if !startswith(item, "\"") || trim(item, "\"/") == ""
      ]
    ]),
    [
      for l in local.lists : "${l.entry}: is given, but the platform sets no roles; remove it, or use owner = \"workload\""
      if l.field == "roles" && anytrue([for b in local.given_backends : try(b.value.registration.owner == "platform", false) if b.group == l.group && b.name == l.name])
    ],
    [
      for b in local.given_backends : "${b.entry}.consul_permissions.session_write: is not true or false; expected one of them"
      if try(!contains(["true", "false"], jsonencode(b.value.consul_permissions.session_write)), false) && can(b.value.registration)
    ],
    [
      for b in local.given_backends : "${b.entry}.proxy_protocol: is not true or false; expected one of them"
      if try(!contains(["true", "false", "null"], jsonencode(b.value.proxy_protocol)), false) && can(b.value.registration)
    ],
    [
      for r in local.given_routes : "${r.entry}.members: is not true or false; expected one of them"
      if try(!contains(["true", "false", "null"], jsonencode(r.value.members)), false)
    ],
  )
  # Their texts, by "group/name/field".
  texts_of = {
    for l in local.lists : "${l.group}/${l.name}/${l.field}" =>
    [for item in l.items : jsondecode(item) if startswith(item, "\"") && trim(item, "\"/") != ""]
  }

  shape_problems = distinct(concat(
    local.map_problems, local.field_problems, local.label_problems, local.text_problems, local.list_problems,
  ))

  # A group that lacks what the other checks need is left out there; it has its problem already.
  broken = distinct(concat(
    [for f in local.fields_missing : f.group],
    [for f in local.fields_wrong : f.group if f.needed],
    [for b in local.given_backends : b.group if !can(b.value.registration)],
  ))
}
