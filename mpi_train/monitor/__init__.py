"""Observation of a run while it trains: progress, live status, timeline."""
