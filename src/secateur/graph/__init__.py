"""What a model does, what must go together, and the cut itself."""
