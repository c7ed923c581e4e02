# An output "<group>_url" makes a group public: its own address is opened on the host interface through the gateway.
output "web_url" {
  description = "Public URL of the web group."
  value       = module.phala.urls["web"]
}

output "members" {
  description = "The slots of each app, and the instance that is in each now."
  value       = module.phala.members
}

output "deployment" {
  description = "For `./mesh generate`."
  value       = module.phala.deployment
}
