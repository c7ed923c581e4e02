"""The bones that sidecar and coordinator share: tasks, children, guest agent, Consul agent, status, log."""
