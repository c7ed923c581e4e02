"""Demo programs that run as application containers of a mesh. Standard library only, nothing of the mesh."""
