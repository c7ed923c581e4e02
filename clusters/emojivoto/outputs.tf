output "page" {
  description = "Where the page is, for clients that trust the mesh's CA (./mesh verify); empty until the platform knows its gateway."
  value       = [for base in module.phala.deployment.apps["web"].gateways : "https://${module.phala.deployment.apps["web"].app_id}-443s.${base}"]
}

output "members" {
  description = "The slots of each app, and the instance that is in each now."
  value       = module.phala.members
}

output "deployment" {
  description = "For `./mesh generate`."
  value       = module.phala.deployment
}
