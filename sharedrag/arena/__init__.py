"""Space and order: a process's attachment, manifests, extents, sessions and pins, and the catalog of collections."""
