"""Take one training step apart."""
