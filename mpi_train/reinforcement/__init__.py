"""Reinforcement learning: environments that are played, a policy that is improved from what was seen."""
