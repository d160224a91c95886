"""A deterministic simulator of database, daemon, cache nodes and clients, in virtual time on one thread."""
