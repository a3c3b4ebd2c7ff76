"""From raw files to the examples of one rank: sources, partition, shards."""
