"""Run the strategies in turn and report."""
