"""ONNX models: exported from Hugging Face folders, made small with 8 or 4 bits, and compared with their source."""
