# The compose files, as far as the mesh reads them: what topology/compose.py does, with the same verdicts.
# Template check 1 is here: images are literal, because a variable's value is not measured.
locals {
  compose_paths = distinct(concat([var.coordinator_compose], [for g, group in local.groups : group.compose]))
  compose_texts = { for path in local.compose_paths : path => try(file(path), null) }
  compose_trees = { for path, text in local.compose_texts : path => try(yamldecode(text), null) if text != null }
  compose_lines = { for path, text in local.compose_texts : path => split("\n", text) if text != null }

  # What a service may have: the Compose specification's schema.
  service_fields = split(" ", join(" ", [
    "annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs container_name",
    "cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpus cpuset credential_spec",
    "depends_on deploy develop device_cgroup_rules devices dns dns_opt dns_search domainname entrypoint env_file",
    "environment expose extends external_links extra_hosts gpus group_add healthcheck hostname image init ipc",
    "isolation label_file labels links logging mac_address mem_limit mem_reservation mem_swappiness memswap_limit",
    "models network_mode networks oom_kill_disable oom_score_adj pid pids_limit platform ports post_start pre_stop",
    "privileged profiles provider pull_policy pull_refresh_after read_only restart runtime scale secrets security_opt",
    "shm_size stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits use_api_socket user",
    "userns_mode uts volumes volumes_from working_dir",
  ]))

  exec_sh   = "/run/mesh/exec.sh"
  reference = "/\\$\\$|\\$\\{[A-Za-z_][A-Za-z0-9_]*(:?[-?+][^{}]*)?\\}|\\$[A-Za-z_][A-Za-z0-9_]*/"

  # Where each service begins and ends: the line with its name, and the next one that is indented as little.
  service_starts = flatten([
    for path, tree in local.compose_trees : [
      for name in try(keys(tree.services), []) : {
        path = path, name = name
        line = try([for i, l in local.compose_lines[path] : i if can(regex("^\\s+[\"']?${name}[\"']?\\s*:", l))][0], -1)
      }
    ]
  ])
  service_lines = {
    for s in local.service_starts : "${s.path}#${s.name}" => {
      line = s.line
      end = try([
        for i, l in local.compose_lines[s.path] : i
        if i > s.line && can(regex("^\\s{0,${length(regex("^\\s*", local.compose_lines[s.path][s.line]))}}[^\\s#]", l))
      ][0], length(local.compose_lines[s.path]))
    }
  }

  # One record a service. What is of the wrong kind is empty here, and a problem below.
  services = flatten([
    for path, tree in local.compose_trees : [
      for name, body in try({ for k, v in tree.services : k => v if can(keys(tree.services)) }, {}) : {
        path  = path
        name  = name
        line  = local.service_lines["${path}#${name}"].line
        end   = local.service_lines["${path}#${name}"].end
        body  = jsonencode(body)
        image = try(tostring(jsonencode(body.image)), "null")
        words = {
          for field in ["entrypoint", "command"] : field => (
            !try(body[field] != null, false) ? [] :
            startswith(jsonencode(body[field]), "[") ? try([for word in body[field] : tostring(word)], []) :
            try(compact(split(" ", replace(tostring(body[field]), "/\\s+/", " "))), [])
          )
        }
        words_wrong = [
          for field in ["entrypoint", "command"] : field
          if try(body[field] != null && (
            !contains(["[", "\""], substr(jsonencode(body[field]), 0, 1))
            || (startswith(jsonencode(body[field]), "[") && !can([for word in body[field] : tostring(word)]))
          ), false)
        ]
        environment = merge(
          try({ for key, value in body.environment : key => value == null ? "$${${key}}" : tostring(value) if can(keys(body.environment)) && can(tostring(value)) && !contains(["true", "false"], jsonencode(value)) }, {}),
          can(keys(try(body.environment, null))) ? {} : try({ for item in body.environment : split("=", item)[0] => (length(split("=", item)) > 1 ? join("=", slice(split("=", item), 1, length(split("=", item)))) : "$${${item}}") }, {}),
        )
        # Written without a value: Compose leaves such a variable out where the host does.
        bare = concat(
          try([for key, value in body.environment : key if can(keys(body.environment)) && value == null], []),
          can(keys(try(body.environment, null))) ? [] : try([for item in body.environment : item if !can(regex("=", item))], []),
        )
        environment_wrong = try([for key, value in body.environment : key if can(keys(body.environment)) && can(regex("^[\\[{tf]", jsonencode(value)))], [])
        environment_kind  = substr(try(jsonencode(body.environment), "null"), 0, 1)
        volumes_kind      = substr(try(jsonencode(body.volumes), "null"), 0, 1)
        volumes = try([
          for item in body.volumes :
          can(keys(item)) ? "${try(tostring(item.source), "")}:${item.target}${try(item.read_only, false) == true ? ":ro" : ""}" : tostring(item)
          if can(keys(item)) ? can(regex("^\"", jsonencode(item.target))) : startswith(jsonencode(item), "\"")
        ], [])
        volumes_given = try(length(body.volumes), 0)
        build         = !contains(["null", "\"\"", "{}", "[]", "false"], try(jsonencode(body.build), "null"))
        depends_kind  = substr(try(jsonencode(body.depends_on), "null"), 0, 1)
        waits         = try([for key, item in body.depends_on : key if can(keys(body.depends_on)) && try(item.condition == "service_healthy", false)], [])
        host          = try(body.network_mode == "host", false)
        health_kind   = substr(try(jsonencode(body.healthcheck), "null"), 0, 1)
        health_off    = try(body.healthcheck.disable, false) == true
        health_times = {
          for key, value in { interval = try(body.healthcheck.interval, null), start_period = try(body.healthcheck.start_period, null) } :
          key => startswith(jsonencode(value), "\"") && can(regex("^([0-9]+(\\.[0-9]+)?(h|ms|us|m|s))+$", value)) ? sum([
            for part in regexall("([0-9]+(?:\\.[0-9]+)?)(h|ms|us|m|s)", value) : tonumber(part[0]) * { h = 3600, m = 60, s = 1, ms = 0.001, us = 0.000001 }[part[1]]
          ]) : -1
          if value != null
        }
        health_retries = try(jsonencode(body.healthcheck.retries), "null")
        env_file       = try(body.env_file, null) != null && !contains(["\"\"", "[]", "false"], try(jsonencode(body.env_file), "null"))
        sidecar        = name == "sidecar"
      }
    ]
  ])
  # dstack shows a named volume that two containers mount as empty in the second one.
  named_volumes = flatten([
    for s in local.services : [
      for volume in s.volumes : { path = s.path, service = s.name, line = s.line, name = split(":", volume)[0] }
      if can(regex("^[A-Za-z0-9][A-Za-z0-9_.-]*:", volume))
    ]
  ])
  has_application = { for path, tree in local.compose_trees : path => anytrue([for s in local.services : s.path == path && !s.sidecar]) }
  has_sidecar     = { for path, tree in local.compose_trees : path => anytrue([for s in local.services : s.path == path && s.sidecar]) }

  # The variables that a group's applications must have as the manifest has them, or not at all.
  signed = flatten([
    for g, group in local.groups : [for name, value in group.compose_env : { path = group.compose, name = name, value = value }]
  ])

  service_problems = flatten([
    for s in local.services : concat(
      can(keys(jsondecode(s.body))) ? [] : [{ s = s, field = "", says = "is empty; expected a map with image, command and so on" }],
      [
        for field in try(keys(jsondecode(s.body)), []) : { s = s, field = field, says = "is no field of a service" }
        if !contains(local.service_fields, field) && !startswith(field, "x-")
      ],
      s.sidecar && s.env_file ? [{ s = s, field = "env_file", says = "brings values that nobody measures; name each variable under environment" }] : [],
      startswith(s.image, "\"") && s.image != "\"\"" && s.build ? [{ s = s, field = "build", says = "makes an image that nobody measured, from a folder the CVM lacks; remove it" }] : [],
      [
        for v in local.named_volumes : { s = s, field = "volumes", says = "mount '${v.name}', which another service mounts too: dstack shows a shared named volume as empty; share a folder below /tmp/dstack-runtime, or give each service a volume of its own" }
        if v.path == s.path && v.service == s.name && anytrue([for o in local.named_volumes : o.path == v.path && o.name == v.name && o.line < v.line])
      ],
      startswith(s.image, "\"") && s.image != "\"\"" ? [] : [{ s = s, field = "image", says = "is missing; expected a literal image reference (build is not measured)" }],
      can(regex("\\$", s.image)) ? [{ s = s, field = "image", says = "is ${s.image}: a variable in an image reference is not measured, so the compose hash would not say what runs; write the reference itself, best with a digest" }] : [],
      var.require_digests && startswith(s.image, "\"") && s.image != "\"\"" && !can(regex("\\$", s.image)) && !can(regex("@sha256:[0-9a-f]{64}\"$", s.image))
      ? [{ s = s, field = "image", says = "is ${s.image}: a tag can be moved to another image after it was measured; pin it by digest (image@sha256:…), or set attestation.require_digests = false for a trial" }] : [],
      [for field in s.words_wrong : { s = s, field = field, says = "must be text or a list of words" }],
      contains(["{", "[", "n"], s.environment_kind) ? [] : [{ s = s, field = "environment", says = "must be a map or a list of NAME=value" }],
      [for key in s.environment_wrong : { s = s, field = "environment", says = "${key} is no text; put it in quotes" }],
      contains(["[", "n"], s.volumes_kind) ? [] : [{ s = s, field = "volumes", says = "must be a list" }],
      s.volumes_kind == "[" && length(s.volumes) < s.volumes_given ? [{ s = s, field = "volumes", says = "holds an entry that is not source:target[:ro]" }] : [],
      contains(["{", "[", "n"], s.depends_kind) ? [] : [{ s = s, field = "depends_on", says = "must be a map or a list of services" }],
      [
        for field, texts in { environment = values(s.environment), entrypoint = s.words.entrypoint, command = s.words.command, volumes = s.volumes } :
        { s = s, field = field, says = "has a '$' that starts no variable; use $${NAME} or $${NAME:-default}, and $$ for a dollar" }
        if anytrue([for text in texts : can(regex("\\$", replace(text, local.reference, "")))])
      ],
      contains(["{", "n"], s.health_kind) ? [] : [{ s = s, field = "healthcheck", says = "must be a map with test, interval, retries and start_period" }],
      [
        for key, seconds in s.health_times : { s = s, field = "healthcheck", says = "has a wrong ${key}, expected a duration such as 2s or 24h" }
        if seconds < 0 && !s.health_off
      ],
      s.health_kind != "{" || s.health_off || can(regex("^(null|[1-9][0-9]*)$", s.health_retries)) ? [] : [{ s = s, field = "healthcheck", says = "has retries ${s.health_retries}, expected a whole number from 1" }],
      s.sidecar && local.has_application[s.path] && (s.health_kind != "{" || s.health_off)
      ? [{ s = s, field = "healthcheck", says = "is missing: applications wait for it, and without one they are never started; copy it from clusters/starter" }] : [],
      s.sidecar && local.has_application[s.path] && s.health_kind == "{" && !s.health_off && max(lookup(s.health_times, "start_period", 0), 0) < 86400
      ? [{ s = s, field = "healthcheck", says = "gives up before 24 h, and then applications are not started until the CVM boots again, while a first deployment waits for its manifest; write start_period: 24h" }] : [],
      s.host ? [] : [{ s = s, field = "network_mode", says = "must be host: VIPs and the mesh address are in the CVM's own network" }],
      s.sidecar || try(s.words.entrypoint[0], "") == local.exec_sh ? [] : [{ s = s, field = "entrypoint", says = "skips ${local.exec_sh}, so route names would not resolve; use entrypoint: [\"${local.exec_sh}\"] and put the program into command" }],
      # A field that is none may be the command, misspelled.
      !s.sidecar && try(s.words.entrypoint[0], "") == local.exec_sh && length(s.words.entrypoint) == 1 && length(s.words.command) == 0
      && alltrue([for field in try(keys(jsondecode(s.body)), []) : contains(local.service_fields, field) || startswith(field, "x-")])
      ? [{ s = s, field = "command", says = "is missing: ${local.exec_sh} has nothing to start; write the program here" }] : [],
      s.sidecar || anytrue([for volume in s.volumes : try(split(":", volume)[1] == "/run/mesh", false)]) ? [] : [{ s = s, field = "volumes", says = "do not mount /run/mesh; add - /tmp/dstack-runtime/mesh:/run/mesh:ro" }],
      s.sidecar || !local.has_sidecar[s.path] || contains(s.waits, "sidecar") ? [] : [{ s = s, field = "depends_on", says = "does not wait for the mesh; add sidecar: { condition: service_healthy }" }],
      [
        for e in local.signed : { s = s, field = "environment", says = "${contains(s.bare, e.name) ? "has ${e.name} without a value: Compose would leave it out where the host leaves it out" : "gives ${e.name} another value than compose_env does, which the manifest has, so ${local.exec_sh} would not start it"}; write ${e.name}: $${${e.name}}, or use another name" }
        if e.path == s.path && !s.sidecar && can(s.environment[e.name]) && !(!contains(s.bare, e.name) &&
          can(regex("^\\$(${e.name}|\\{${e.name}(:?[-?][^{}]*)?\\})$", s.environment[e.name]))
          && (e.value != "" || !can(regex("^\\$\\{${e.name}(:-[^}]|:\\?)", s.environment[e.name])))
        )
      ],
      [
        for key, value in s.environment : { s = s, field = "environment", says = "${key} comes from the environment, which nobody measures; write the value itself here" }
        if s.sidecar && can(regex("\\$", value)) && (key == "MESH_OWNERS" || startswith(key, "MESH_INSECURE_"))
      ],
    )
  ])
  compose_problems = concat(
    [for path in local.compose_paths : "${path}: the compose file does not exist; write it, or change compose in cluster.tf" if local.compose_texts[path] == null],
    [for path, tree in local.compose_trees : "${path}: is not valid YAML" if !can(yamldecode(local.compose_texts[path]))],
    [
      for path, tree in local.compose_trees : "${path}:1: has no services; expected a map `services:` with the sidecar"
      if can(yamldecode(local.compose_texts[path])) && try(length(keys(tree.services)), 0) == 0
    ],
    [
      for path, tree in local.compose_trees : "${path}:1: has no service 'sidecar'; copy it from clusters/starter, it joins this CVM to the mesh"
      if try(length(keys(tree.services)), 0) > 0 && !local.has_sidecar[path]
    ],
    [
      for p in local.service_problems :
      "${p.s.path}:${1 + try([for i, l in local.compose_lines[p.s.path] : i if i > p.s.line && i < p.s.end && can(regex("^\\s+[\"']?${p.field}[\"']?\\s*:", l))][0], p.s.line)}: services.${p.s.name}${p.field == "" ? "" : ".${p.field}"}: ${p.says}"
    ],
  )
}
