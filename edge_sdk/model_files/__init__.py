"""What model files hold: read and checked before native code sees them, tokenized, run by onnxruntime."""
