"""Measurements: strategies against each other, one step, slow networks, scaling."""
