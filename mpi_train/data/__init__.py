"""Data: from raw files to the examples of one rank."""
