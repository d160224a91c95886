"""The invalidation daemon: follows Postgres logical replication and invalidates what a committed row change touches."""

if __name__ == "invalidation":
    raise ImportError("import leasecache.invalidation; the folder invalidation/ is mapped into that package")
