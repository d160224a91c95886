"""The bench: what a hit, a batch, a key and a herd cost, beside their floor and the rivals, in one run."""
