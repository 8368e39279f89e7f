"""Recovery: what brings a cut model back to the dense one's behaviour."""
