"""Training in half precision: the model under autocast, and, for float16, the loss scaled against underflow."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from .config import Precision

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which the model runs; none for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_TYPES[precision])


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """What scales the loss of float16, whose small gradients would vanish; bfloat16 has float32's range."""
    return torch.amp.GradScaler(device.type) if precision == "float16" else None
