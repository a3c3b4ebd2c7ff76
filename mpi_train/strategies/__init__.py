"""One module for each way to train. Each has ``train(config, world, threads)`` and differs in nothing else.

They import TensorFlow, so they are imported after the cores and threads were settled.
"""
