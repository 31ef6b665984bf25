"""GGUF models made smaller: importance matrices, quantized files, and what quantization cost."""
