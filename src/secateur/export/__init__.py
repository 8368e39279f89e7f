"""Models on disk: checkpoints, plans, ONNX."""
