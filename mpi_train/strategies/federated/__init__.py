"""Federated learning: ranks train clients, a server averages their models."""
