"""Structured pruning of language models: KV groups, neurons and layers, for a budget."""
