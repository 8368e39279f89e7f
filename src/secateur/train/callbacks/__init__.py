"""Sparse training in other people's loops: one file a framework, which alone imports it."""
