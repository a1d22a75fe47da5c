"""The device on which training runs, and the precision that suits it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chestxray.errors import RecipeInvalid


def device_of(wanted: str) -> torch.device:
    """Return the device of that name. Raises: RecipeInvalid, if this machine does not have it."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeInvalid(f'the device {wanted!r} cannot be used here ({error}). Try "cpu"') from error
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Check whether bfloat16 is faster than float32 on a device, because its hardware multiplies bfloat16 directly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tell = getattr(torch.cpu, "get_capabilities", dict)  # newer than the oldest torch that is supported
    capabilities: Mapping[str, object] = tell()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
