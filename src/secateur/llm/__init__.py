"""Language models: pruned block by block, judged as they were saved."""
