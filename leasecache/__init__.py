"""leasecache: a cache for Python and Postgres that is never stale by accident."""
