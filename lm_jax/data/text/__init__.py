"""Documents: sources, unpacking, cleaning, near-duplicates."""
