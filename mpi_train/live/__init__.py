"""A run while it trains: what its ranks do just now, kept in a file, and shown by ``jobs/watch.py``."""
