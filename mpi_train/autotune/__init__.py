"""Settings that decide nothing but the speed, chosen by measuring in the first seconds of a run."""

CLEARLY = 0.95
"""Of the time of what would be taken without measuring; what is not below that is not worth a change."""
