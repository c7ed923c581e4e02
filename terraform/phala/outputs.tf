locals {
  app_ids = { for a, app in phala_app.app : a => trimprefix(app.app_id, "app_") }
  # By slot: its instance ID and the gateway that leads to it, "" for what the platform does not know yet: an instance ID
  # exists once the CVM has booted, and the provider gives null until then. The first slot is in the app's own list.
  cvms = {
    for a, app in phala_app.app : a => [
      for index, name in local.slots[a] : {
        for attribute in ["instance_id", "gateway_base_domain"] :
        attribute => try(coalesce(
          index == 0
          ? one([for found in app.instances : found[attribute] if found.name == name])
          : phala_app_instance.slot[name][attribute]
        ), "")
      }
    ]
  }
  # `s`: TLS goes through the gateway to the coordinator, which proves itself in it. Slots may be on different nodes, each
  # with its own gateway, and only that one leads to the slot's instance.
  coordinator_urls = [
    for cvm in local.cvms["coordinator"] :
    cvm.instance_id == "" || cvm.gateway_base_domain == "" ? "" : "https://${cvm.instance_id}-8787s.${cvm.gateway_base_domain}"
  ]
}

# A warning, not an error: new slots exist before the manifest that lets them in.
check "manifest" {
  assert {
    condition = (
      var.mesh.signed == null ? true :
      try(jsonencode({ for g, group in var.mesh.signed.groups : g => [group.peers[*].peer_id, group.env] }), "") == jsonencode({ for g, group in var.mesh.groups : g => [group.peers, group.compose_env] })
    )
    error_message = "The signed manifest has other slots or variables than cluster.tf: what it does not name is not admitted, and no application starts with other variables. Next: ./mesh generate, ./mesh sign, ./mesh set."
  }
  assert {
    condition     = var.mesh.signed == null ? true : alltrue([for a, id in local.app_ids : try(a == "coordinator" ? var.mesh.signed.coordinators.app_id == id : var.mesh.signed.groups[a].app_id == id, false)])
    error_message = "The signed manifest is of other apps than these: none of their CVMs is admitted. Next: ./mesh generate, ./mesh sign, ./mesh set."
  }
}

output "urls" {
  description = "Public URL of each group in `public`; \"\" until the platform knows its gateway."
  value = {
    for g, port in var.public : g =>
    local.cvms[g][0].gateway_base_domain == "" ? "" : "https://${local.app_ids[g]}-${port}.${local.cvms[g][0].gateway_base_domain}"
  }
}

# dstack's gateway calls an app's port `<app_id>-<port>s.<its domain>`; with `s` it passes TLS through by server name, and the
# connection leads to one of the app's CVMs (Dstack-TEE/dstack, gateway; `topology.public.gateway_name` has the same form).
output "public_urls" {
  description = "URLs of each public backend, `group/backend`, one for each gateway in front of the app, for clients that trust the mesh's CA (./mesh verify). Empty until the platform knows its gateway."
  value = merge([
    for g, ports in var.mesh.public : {
      for backend, port in ports : "${g}/${backend}" => [
        for base in distinct(compact(local.cvms[g][*].gateway_base_domain)) : "https://${local.app_ids[g]}-${port}s.${base}"
      ]
    }
  ]...)
}

output "members" {
  description = "The slots of each app with the instance that is in each now; \"\" until the CVM has booted."
  value = {
    for a, names in local.slots : a => [for index, name in names : { slot = name, instance_id = local.cvms[a][index].instance_id }]
  }
}

output "deployment" {
  description = "What `./mesh generate` needs: apps, instances, measurements, demands. Nothing in it is secret."
  value = {
    format           = 1
    cluster          = var.mesh.cluster
    coordinator_urls = local.coordinator_urls
    apps = {
      for a, app in phala_app.app : a => {
        app_id       = local.app_ids[a]
        name         = app.name
        environment  = sort(keys(app.env))
        attestation  = try(data.phala_attestation.app[a].tcb_info_json, null)
        complaint    = try(data.phala_attestation.app[a].error, null)
        instance_ids = [for cvm in local.cvms[a] : cvm.instance_id]
        gateways     = distinct(compact(local.cvms[a][*].gateway_base_domain))
      }
    }
    rendezvous = var.rendezvous
    tcb = {
      allowed_statuses         = var.attestation.allowed_tcb_statuses
      rejected_advisories      = var.attestation.rejected_advisories
      allow_development_images = var.attestation.allow_development_images
    }
  }
}
