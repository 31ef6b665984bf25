"""Whether llama.cpp copies weights into the order in which its kernels for single tokens read them fastest.

By default it does wherever it can, which is called repacking. On x86 that is a choice: for Q4_K and Q2_K it also
has tiled kernels that evaluate prompts and batches faster, but only weights as they lie in the file. Those are
mapped, not copied, so that a model opens at once and takes less memory too. Knows nothing of llama.cpp's functions.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import replace

from ..device import cpu_features
from ..model_files.gguf_header import GgufHeader, TensorInfo
from .profile import Tuning

# The types of tensors that are copied, with the divisor that the number of rows has to have.
_COPIED = {
    "x86": (frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"}), 8),
    "arm": (frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"}), 4),
}
_TILED = {"x86": frozenset({"Q4_K", "Q2_K"})}


def copied_tensors(header: GgufHeader, machine: str | None = None) -> list[TensorInfo]:
    """The tensors that repacking copies; `machine` is the processor's family as `platform.machine` says it."""
    kinds, divisor = _COPIED.get(_family(machine), (frozenset(), 1))
    return [
        tensor
        for tensor in header.tensors
        if tensor.type in kinds and len(tensor.shape) > 1 and tensor.shape[1] % divisor == 0
    ]


def decide_repacking(
    tuning: Tuning, header: GgufHeader, machine: str | None = None, features: Collection[str] | None = None
) -> Tuning:
    """The same tuning with `repack` decided: not where most of what would be copied has tiled kernels.

    On two cores with AVX-512 Qwen2.5-1.5B in Q4_K_M then reads prompts at 1.6 times the speed and decodes at 0.8 of
    it: better unless an answer is longer than its prompt. With AVX2 alone both differences are smaller. Processors
    with matrix units (AMX) have copies for these, so there llama.cpp decides. `features`: see `cpu_features`.
    """
    if tuning.repack is not None:
        return tuning
    if "amx_int8" in (cpu_features() if features is None else features):
        return replace(tuning, repack=True)
    copied, tiled = copied_tensors(header, machine), _TILED.get(_family(machine), frozenset())
    gain = sum(tensor.bytes if tensor.type in tiled else -tensor.bytes for tensor in copied)
    return replace(tuning, repack=gain <= 0)


def _family(machine: str | None) -> str:
    machine = (platform.machine() if machine is None else machine).lower()
    return "x86" if machine in ("x86_64", "amd64") else "arm" if machine in ("aarch64", "arm64") else ""
