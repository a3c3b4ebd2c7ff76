"""The bench: every strategy on the same work, in turn, and the report that compares them."""
