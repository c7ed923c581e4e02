"""Programs that run as application containers of a mesh. The demo programs are small and know nothing of the mesh."""
