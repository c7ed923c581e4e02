# One app per workload group and one for the coordinators; its first slot comes with the app, each further one is a resource.
# Apply with -parallelism=1: apps that are created at once are refused by the platform.
locals {
  apps = merge({ coordinator = var.mesh.coordinators }, var.mesh.groups)

  # The first slot has the app's name; a slot keeps its name when its CVM is replaced.
  app_names = { for a, app in local.apps : a => "${var.mesh.cluster}-${a}" }
  slots = {
    for a, app in local.apps : a => [
      for index, peer in app.peers : index == 0 ? local.app_names[a] : "${var.mesh.cluster}-${peer}"
    ]
  }
  further = merge([for a, app in local.apps : { for name in slice(local.slots[a], 1, length(local.slots[a])) : name => a }]...)
  names   = flatten(values(local.slots))

  # The owners are a literal of each compose file, because only that is measured: KEY, or `2 of KEY, KEY, KEY`.
  owners = {
    for path in distinct([for app in local.apps : app.compose]) : path => [
      for text in try(regexall("(?m)^\\s*(?:-\\s*)?[\"']?MESH_OWNERS[\"']?\\s*[:=]\\s*[\"']?([A-Za-z0-9_-][A-Za-z0-9_,: -]*?)[\"']?\\s*(?:#.*)?$", file(path))[*][0], []) :
      replace(replace(replace(text, "/\\s*,\\s*/", ","), "/\\s+/", " "), "ed25519:", "")
    ]
  }
  # A key is Ed25519, 32 bytes in base64url, or p256: and a compressed point, 33 bytes that begin with 2 or 3.
  owner_key = "(?:[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]|p256:A[g-z0-9_-][A-Za-z0-9_-]{42})"
  owner_sets = {
    for path, texts in local.owners : path => {
      threshold = try(tonumber(regex("^([0-9]{1,2}) of ", one(texts))[0]), 1)
      keys      = try(split(",", regex("^(?:[0-9]{1,2} of )?(${local.owner_key}(?:,${local.owner_key}){0,15})$", one(texts))[0]), [])
    }
  }
}

resource "phala_app" "app" {
  for_each = local.apps

  name           = local.app_names[each.key]
  size           = lookup(var.size, each.key, var.size["default"])
  region         = var.region
  image          = var.attestation.image
  disk_size      = var.disk_size
  kms            = var.kms
  docker_compose = file(each.value.compose)
  members        = local.slots[each.key]

  # No secret is here: these values are in the state, and a plan prints them. A change is sent to every slot of the app, so
  # a CVM's slot is not among them: the coordinator gives it one, by the attested instance.
  env = var.mesh.environment[each.key]

  # Part of the compose hash, so said in full. The gateway reaches one coordinator, not just any, by its instance ID.
  public_logs     = false
  public_sysinfo  = false
  public_tcbinfo  = true
  gateway_enabled = true
  secure_time     = true
  storage_fs      = "zfs"
  listed          = false

  lifecycle {
    precondition {
      condition = (
        length(local.owner_sets[each.value.compose].keys) > 0
        && length(distinct(local.owner_sets[each.value.compose].keys)) == length(local.owner_sets[each.value.compose].keys)
        && local.owner_sets[each.value.compose].threshold >= 1
        && local.owner_sets[each.value.compose].threshold <= length(local.owner_sets[each.value.compose].keys)
      )
      error_message = "${each.value.compose}: MESH_OWNERS is not the public half of an owner key, nor `2 of KEY, KEY, KEY` with as many different keys as have to sign; run `./mesh keygen` on this cluster, which makes a key and writes it into the compose files."
    }
    precondition {
      condition     = length(distinct(flatten(values(local.owners)))) <= 1
      error_message = "The compose files have different MESH_OWNERS: ${join(", ", [for path, texts in local.owners : "${path} has ${join(" and ", texts)}"])}; the same owners sign the manifest of all."
    }
    precondition {
      condition     = alltrue([for name in local.slots[each.key] : can(regex("^[A-Za-z][A-Za-z0-9-]{4,62}$", name))])
      error_message = "CVM names must have 5 to 63 characters: ${join(", ", local.slots[each.key])}; change cluster_name or the name of the group."
    }
    precondition {
      condition     = length([for name in local.names : name if contains(local.slots[each.key], name)]) == length(local.slots[each.key])
      error_message = "CVM names meet: ${join(", ", sort(local.names))}; a group must not be called as another one's slot, rename it."
    }
  }
}

resource "phala_app_instance" "slot" {
  for_each = local.further

  app_id = phala_app.app[each.value].app_id
  name   = each.key
  # What the CVM starts with: POST /apps/{id}/instances sends an environment only if one is said here. It has to be the app's.
  env = var.mesh.environment[each.value]

  lifecycle {
    # A later change reaches this CVM with the app's own, which the provider sends to every slot. A change here would
    # replace the CVM (provider 0.3.0-beta.3: `env` of phala_app_instance requires replacement).
    ignore_changes = [env]
  }
}

# What the first CVM of each app measured, for the owner to review and sign (`./mesh generate`).
data "phala_attestation" "app" {
  for_each = { for a, app in local.apps : a => app if var.read_attestation }

  cvm_id = phala_app.app[each.key].primary_cvm_id
}
