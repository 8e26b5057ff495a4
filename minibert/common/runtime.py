"""Sets up the device, the precision, the ranks and the CPU threads of a run. Each process of torchrun is one
rank. A run without torchrun has one rank.
"""

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from minibert.common.errors import UserError
from minibert.common.processor import multiplies_bf16

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # constants from glibc's malloc.h
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device, the precision of matrix products, the number of this rank, and the number of ranks."""

    device: torch.device
    precision: str
    rank: int = 0
    ranks: int = 1

    @property
    def is_writer(self) -> bool:
        """True for rank 0, which is the only rank that writes files and prints."""
        return self.rank == 0

    def autocast(self):
        """Returns the context manager that sets the precision of a forward pass. With bf16 or fp16, matrix
        products are in this precision, and losses are in fp32.
        """
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Returns the gradient scaler for fp16. With fp32 and bf16 the scaler does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def barrier(self) -> None:
        """Waits until all ranks have called `barrier`."""
        if self.ranks > 1:
            with _another_rank_may_end():
                dist.barrier()

    def leave(self) -> None:
        """Ends the connection between the ranks."""
        if self.ranks > 1:
            dist.destroy_process_group()

    def sum_over_ranks(self, tensors: list[Tensor]) -> None:
        """Sums each tensor over all ranks, in place. The tensors must have the same dtype, because one call
        of all_reduce sums all of them.
        """
        if self.ranks == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        with _another_rank_may_end():
            dist.all_reduce(flat)
        for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors])):
            tensor.copy_(piece.view_as(tensor))


@contextlib.contextmanager
def _another_rank_may_end():
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError) and "gloo" not in str(error):
            raise  # an error of the device, not of the connection between ranks
        raise UserError("another rank has ended or cannot be reached, so this rank also ends "
                        f"({str(error).splitlines()[0]}); the message of the other rank says why; continue "
                        "from the last checkpoint with --resume") from None


def start(device: str = "auto", precision: str = "auto", threads: int | None = None,
          training: bool = True) -> Runtime:
    """Chooses the device, the precision and the number of CPU threads, and connects the ranks of torchrun.
    `MachineOptions` explains the values "auto". With `training=True`, oneDNN stores fewer kernels than by
    default, and glibc keeps freed memory. Raises `UserError` if the device cannot be used, or if `precision`
    is "fp16" on a CPU.
    """
    if training:
        # By default, oneDNN stores up to 1,024 compiled kernels. A new input shape needs new kernels, and
        # the stored kernels fragment the heap: the memory of a TinyBERT run grew by 42 % in 69 minutes. 16
        # kernels are enough, because all layers of a model use the same kernels. A BERT in bf16 uses 4
        # kernels in the forward pass and 7 in the backward pass.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
        keep_freed_memory()
    # The number of threads is set even without --threads. Otherwise, MKL uses fewer threads on a busy machine
    # and adds numbers in another order. A resumed run could then differ in the last bit from a run that was
    # never stopped.
    torch.set_num_threads(threads or torch.get_num_threads())
    rank, ranks, local = (int(os.environ.get(name, default))
                          for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{local}"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if precision == "auto":
        precision = "bf16" if native_bf16(chosen) else "fp16" if chosen.type == "cuda" else "fp32"
    if precision == "fp16" and chosen.type != "cuda":
        raise UserError("--precision fp16 needs a GPU; on a CPU use bf16 or fp32")
    if ranks > 1 and not dist.is_initialized():
        # the time limit is long, because the other ranks wait while the first rank evaluates and saves
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(days=7))
    return Runtime(chosen, precision, rank, ranks)


def keep_freed_memory() -> None:
    """Tells glibc (on Linux) to keep freed memory. By default, glibc returns large blocks to the system, and
    later requests them again page by page. These requests took a fifth of the training time of DistilBERT in
    bf16.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        # 0: glibc uses mmap for no block, because each block from mmap returns to the system when it is freed
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # -1: free memory at the end of the heap never returns to the system


def native_bf16(device: torch.device) -> bool:
    """Returns True if the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return multiplies_bf16()


def describe(runtime: Runtime) -> dict:
    """Returns a dict that describes the machine, the number of ranks, the precision and the software."""
    import platform

    import numpy
    import tokenizers

    import minibert
    cpu = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as lines:
            names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
            cpu = next(names, cpu)
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else cpu
    return {"device": name, "cpu": cpu, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "ranks": runtime.ranks,
            "precision": runtime.precision, "python": platform.python_version(),
            "torch": torch.__version__, "numpy": numpy.__version__,
            "tokenizers": tokenizers.__version__, "minibert": minibert.__version__}
