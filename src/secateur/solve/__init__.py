"""Weights that change after a cut, by solving."""
