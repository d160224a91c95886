"""Load tests with locust: users of cached functions, and the herd on one hot key."""
