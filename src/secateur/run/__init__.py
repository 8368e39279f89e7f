"""Whole runs: arguments as text, run files, and the straight line from a model to its evidence."""
