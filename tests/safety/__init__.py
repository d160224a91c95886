"""A randomised run against real cache servers that fail, and an oracle that says which answers were too old."""
