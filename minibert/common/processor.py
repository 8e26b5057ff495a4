"""Reports features of the CPU, for example AMX."""

from functools import cache

import torch


@cache
def features() -> frozenset[str]:
    """Returns the set of torch's names for the features of this CPU, for example "amx_int8". The set is empty
    if this version of torch does not report features.
    """
    if not hasattr(torch.cpu, "get_capabilities"):
        return frozenset()
    return frozenset(name for name, has in torch.cpu.get_capabilities().items() if has is True)


def multiplies_bf16() -> bool:
    """Returns True if the CPU multiplies bf16 in hardware."""
    return bool(features() & {"avx512_bf16", "amx_bf16", "sve_bf16", "bf16"})


def sums_bytes_in_32_bits() -> bool:
    """Returns False for an x86 CPU without VNNI and AMX. Such a CPU adds products of 8-bit numbers in 16
    bits, which can overflow. Returns True for all other CPUs, or if torch does not report features.
    """
    x86 = bool(features() & {"sse2", "avx2"})
    return not x86 or bool(features() & {"avx512_vnni", "avx_vnni", "amx_int8"})
