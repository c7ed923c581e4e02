# An output "<group>_url" makes a group public: its own address is opened on the host interface through the gateway.
output "webdemo_url" {
  description = "Public URL of the webdemo group."
  value       = module.phala.urls["webdemo"]
}

output "public_urls" {
  description = "Where backends with `public` in cluster.tf are, for clients that trust the mesh's CA (./mesh verify)."
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
