"""The floating-point operations of a training step, and the peak performance of the device."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

aten = torch.ops.aten

# Peak teraflop/s of dense matrix products accumulated in float32, from NVIDIA's data sheets and white papers
# (half of the values "with sparsity"), by patterns of the device's name, more specific patterns first.
PEAKS: dict[str, dict[str, float]] = {
    r"B200": {"bf16": 2250, "fp16": 2250},
    r"H[12]00 NVL": {"fp32": 60, "tf32": 417.5, "bf16": 835, "fp16": 835},
    r"H100 PCIe": {"fp32": 51.2, "tf32": 378, "bf16": 756, "fp16": 756},
    r"H[12]00|GH200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4, "fp16": 989.4},
    r"A100": {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312},
    r"A10": {"fp32": 31.2, "tf32": 62.5, "bf16": 125, "fp16": 125},
    r"L40S": {"fp32": 91.6, "tf32": 183, "bf16": 362, "fp16": 362},
    r"L4": {"fp32": 30.3, "tf32": 60, "bf16": 121, "fp16": 121},
    r"V100-SXM\d": {"fp32": 15.7, "fp16": 125},
    r"V100-PCIE": {"fp32": 14, "fp16": 112},
    r"T4": {"fp32": 8.1, "fp16": 65},
    r"RTX 4090": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2, "fp16": 165.2},
    r"RTX 3090": {"fp32": 35.6, "tf32": 35.6, "bf16": 71, "fp16": 71},
}


def _recurrent(times: int) -> Callable[..., int]:
    """Return a formula for stacked recurrent layers, which apply every weight matrix at each step of each sequence."""

    def count(x: Tensor, *rest: Any, **_: Any) -> int:
        # cuDNN passes a list, oneDNN the 4 tensors of one layer
        weights = rest[0] if isinstance(rest[0], list | tuple) else rest[:4]
        return 2 * times * (x.numel() // x.shape[-1]) * sum(w.numel() for w in weights if w.ndim == 2)

    return count


def _attention(formula: Callable[..., int], inputs: int) -> Callable[..., int]:
    return lambda *args, **_: formula(*(x.shape for x in args[:inputs]))


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.mkldnn_rnn_layer: _recurrent(1),
    aten.mkldnn_rnn_layer_backward: _recurrent(2),
    aten._cudnn_rnn: _recurrent(1),
    aten._cudnn_rnn_backward: _recurrent(2),
    aten._scaled_dot_product_flash_attention_for_cpu: _attention(sdpa_flop, 3),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention(sdpa_backward_flop, 4),
}


class FlopCounter(TorchDispatchMode):
    """Adds up the multiplications and additions of matrix products and convolutions in the `with` block.

    It does not change any result: torch's own counter decomposes operations, which changes the last bits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if FakeTensor in types:  # a sharded tensor infers the shape of its result this way
            return func(*args, **(kwargs or {}))
        if any(kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ for kind in types):
            return NotImplemented  # e.g. a sharded tensor, whose operations on its parts are dispatched here again
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(getattr(func, "_overloadpacket", None))
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def can_count(model: nn.Module) -> bool:
    """Return whether a model's operations can be counted; those of compiled code cannot."""
    return not any(
        module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )


def peak(device: torch.device, precision: str, convolves: bool) -> float | None:
    """Return the peak teraflop/s of a device in a Lightning precision, None if the device is unknown.

    Convolutions in float32 use TF32 by default, matrix products only on request.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks_of_device = next((peaks for pattern, peaks in PEAKS.items() if re.search(rf"\b(?:{pattern})\b", name)), {})
    if precision.startswith("bf16"):
        return peaks_of_device.get("bf16")
    if precision.startswith("16"):
        return peaks_of_device.get("fp16")
    if precision.startswith("64"):
        return None
    uses_tf32 = convolves or torch.get_float32_matmul_precision() != "highest"
    return peaks_of_device.get("tf32" if uses_tf32 and "tf32" in peaks_of_device else "fp32")
