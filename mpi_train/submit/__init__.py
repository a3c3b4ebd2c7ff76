"""Job scripts made to measure from the templates in ``slurm/``, submitted, and followed to their end."""
