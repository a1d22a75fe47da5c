"""Where training runs, and in what precision that place is at home."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chestxray.errors import RecipeInvalid


def device_of(wanted: str) -> torch.device:
    """The device of that name. Raises: RecipeInvalid, where this machine does not have it."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeInvalid(f'the device {wanted!r} cannot be used here ({error}). Try "cpu"') from error
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there than float32, because the hardware multiplies it directly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tell = getattr(torch.cpu, "get_capabilities", dict)  # younger than the oldest torch that is supported
    capabilities: Mapping[str, object] = tell()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
