"""Keras models, their weights as one flat buffer, and optimizers on that buffer."""
