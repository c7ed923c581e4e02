locals {
  app_ids = { for a, app in phala_app.app : a => trimprefix(app.app_id, "app_") }
  # By slot: its instance. The first one's is in the app's own list.
  instance_ids = {
    for a, app in phala_app.app : a => [
      for index, name in local.slots[a] :
      index == 0
      ? try([for found in app.instances : found.instance_id if found.vm_uuid == app.primary_cvm_id][0], "")
      : phala_app_instance.slot[name].instance_id
    ]
  }
  # `s`: TLS goes through the gateway to the coordinator, which proves itself in it.
  coordinator_urls = [
    for id in local.instance_ids["coordinator"] :
    "https://${id}-8787s.${phala_app.app["coordinator"].gateway_base_domain}"
  ]
}

# A warning, not an error: new slots exist before the manifest that lets them in.
check "manifest" {
  assert {
    condition = (
      var.mesh.signed == null ? true :
      try(jsonencode({ for g, group in var.mesh.signed.groups : g => group.peers }), "") == jsonencode({ for g, group in var.mesh.policy.groups : g => group.peers }) &&
      try(jsonencode(var.mesh.signed.routes), "") == jsonencode(var.mesh.policy.routes)
    )
    error_message = "The signed manifest is of another cluster.tf: what it does not name is not admitted. Next: meshctl manifest render, sign, and apply again."
  }
  assert {
    condition     = var.mesh.signed == null ? true : alltrue([for a, id in local.app_ids : try(a == "coordinator" ? var.mesh.signed.coordinators.app_id == id : var.mesh.signed.groups[a].app_id == id, false)])
    error_message = "The signed manifest is of other apps than these: none of their CVMs is admitted. Next: meshctl manifest render, sign, and apply again."
  }
}

output "urls" {
  description = "Public URL of each group in `public`."
  value       = { for g, port in var.public : g => "https://${local.app_ids[g]}-${port}.${phala_app.app[g].gateway_base_domain}" }
}

output "members" {
  description = "The slots of each app with the instance that is in each now."
  value = {
    for a, names in local.slots : a => [for index, name in names : { slot = name, instance_id = local.instance_ids[a][index] }]
  }
}

output "deployment" {
  description = "What `meshctl manifest render` needs: apps, instances, measurements, demands. Nothing in it is secret."
  value = {
    format           = 1
    cluster          = var.mesh.cluster
    policy           = var.mesh.policy
    coordinator_urls = local.coordinator_urls
    apps = {
      for a, app in phala_app.app : a => {
        app_id       = local.app_ids[a]
        name         = app.name
        environment  = sort(keys(app.env))
        attestation  = try(data.phala_attestation.app[a].tcb_info_json, null)
        complaint    = try(data.phala_attestation.app[a].error, null)
        instance_ids = local.instance_ids[a]
      }
    }
    rendezvous = [for index, r in var.rendezvous : merge(r, { address = cidrhost(var.mesh.policy.mesh_pool, 1 + index) })]
    tcb = {
      allowed_statuses         = var.attestation.allowed_tcb_statuses
      rejected_advisories      = var.attestation.rejected_advisories
      allow_development_images = var.attestation.allow_development_images
    }
  }
}
