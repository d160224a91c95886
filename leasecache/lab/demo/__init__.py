"""The tour of two data centres: `leasecache demo`."""
