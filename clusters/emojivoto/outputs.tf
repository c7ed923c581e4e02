output "public_urls" {
  description = "Where the page is, for clients that trust the mesh's CA (./mesh verify); empty until the platform knows its gateway."
  value       = module.phala.public_urls
}

output "members" {
  description = "The slots of each app, and the instance that is in each now."
  value       = module.phala.members
}

output "deployment" {
  description = "For `./mesh generate`."
  value       = module.phala.deployment
}
