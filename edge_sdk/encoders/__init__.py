"""Text to vectors: what an encoder is, on onnxruntime, on our own kernel, or as token vectors alone."""
