"""Headers of GGUF files made up for tests, without the files."""

from __future__ import annotations

from types import MappingProxyType

from edge_sdk.model_files.gguf_header import GgufHeader, TensorInfo


def made_header(
    layers: int = 12,
    width: int = 512,
    heads: int = 8,
    kv_heads: int = 2,
    vocabulary: int = 32_000,
    kind: str = "Q4_K",
    tied: bool = True,
) -> GgufHeader:
    """Of a transformer whose weights take half a byte each; it has a tensor for the vocabulary and one a layer."""
    head = width // heads
    tensors = [TensorInfo("token_embd.weight", (width, vocabulary), kind, 0, width * vocabulary // 2)]
    if not tied:
        tensors.append(TensorInfo("output.weight", (width, vocabulary), kind, 0, width * vocabulary // 2))
    for layer in range(layers):
        shape = (width, 12 * width)
        tensors.append(TensorInfo(f"blk.{layer}.ffn_up.weight", shape, kind, 0, shape[0] * shape[1] // 2))
    return GgufHeader(
        version=3,
        file_bytes=sum(tensor.bytes for tensor in tensors) + vocabulary * 20,
        metadata=MappingProxyType({"llama.feed_forward_length": 4 * width}),
        tensors=tuple(tensors),
        architecture="llama",
        name="made",
        chat_template=None,
        context_length=131_072,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_head_kv=(kv_heads,) * layers,
        head_bytes=4 * head,
        vocabulary=vocabulary,
        longest_token=16,
    )
