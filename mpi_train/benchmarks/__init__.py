"""Measurements: a bench of the strategies, one step, slow networks, scaling."""
