# An output "<group>_url" makes a group public: its own address is opened on the host interface through the gateway.
# The value is known once the group is deployed.
output "webdemo_url" {
  description = "Public URL of the webdemo group."
  value       = null
}
