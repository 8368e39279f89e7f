"""Language models: pruned block by block in bounded memory, recovered, judged."""
