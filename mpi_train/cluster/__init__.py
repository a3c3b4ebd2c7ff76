"""The machine and its queue: checks of the environment, job scripts, submission."""
