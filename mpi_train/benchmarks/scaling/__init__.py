"""Measure and predict how training scales with the number of ranks."""
