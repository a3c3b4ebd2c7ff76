"""Comparison of runs: from their ``run.json`` files to tables, charts and a page.

``collect`` finds the runs, ``summary`` computes all figures, ``tables`` and ``text`` put the figures into
words, ``charts`` draws them, ``pages`` writes the files.
"""
