"""Compare collectives on slow links between nodes."""
