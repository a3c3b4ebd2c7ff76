"""Data-parallel training of Keras models over MPI, and honest comparisons with its alternatives."""

__version__ = "0.1.0"
