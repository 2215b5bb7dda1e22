"""What this process computes on: its devices, their dtypes, and how their memory runs out."""

from typing import TYPE_CHECKING

from lakescore.config import Dtype

if TYPE_CHECKING:
    import torch


def resolve_dtype(dtype: Dtype, device: "torch.device") -> str:
    """Name the dtype to load in; `auto` is bfloat16 where it is fast, else float16 on a GPU."""
    import torch

    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        # A T4, which only emulates it, has float16 in hardware.
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_bfloat16 else "float16"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def release_memory() -> None:
    """Hand a GPU's memory that nothing uses any more back to other processes."""
    import gc

    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()  # a model is a ring of modules
        torch.cuda.empty_cache()


def device_count() -> int:
    """Return the number of GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()


def device_report() -> list[tuple[str, str]]:
    """Return (device, what it is) for every device that a worker on this machine could take."""
    import torch

    has_bfloat16 = "has" if _cpu_has_bfloat16() else "does not have"
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {has_bfloat16} bfloat16 instructions"
    gpus = [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    return [("cpu", cpu), *gpus]


def _cpu_has_bfloat16() -> bool:
    import torch

    # torch has no public name for this; a release without this one counts as "no".
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def is_out_of_memory(error: BaseException) -> bool:
    """Tell memory that ran out from every other error."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a CPU, and in CUDA's own libraries, torch raises a plain RuntimeError.
    said = str(error)
    return any(sign in said for sign in ("can't allocate memory", "out of memory", "ALLOC_FAILED"))
