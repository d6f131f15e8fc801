# SPDX-License-Identifier: Apache-2.0
"""CPU or GPU settings of a benchmark, and measuring time and memory there."""

import ctypes
import gc
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models.common import is_plain

# x86 instructions that make a precision fast, as Linux names them.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
Placed = TypeVar("Placed", Tensor, nn.Module)


@dataclass(frozen=True)
class Hardware:
    """Device and settings of a benchmark, as in :func:`mmrepmlp.verbs.benchmark.benchmark.benchmark`."""

    device: str = "cpu"
    threads: int | None = None
    tf32: bool = False
    channels_last: bool = False
    autocast: str | None = None

    @property
    def is_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def prepare(self) -> None:
        """Check that the device exists, and set torch's number of threads and TF32 mode.

        Raises:
            MMRepMLPError: The device does not exist, or TF32 is set without a GPU.
        """
        if self.is_gpu and (torch.device(self.device).index or 0) >= torch.cuda.device_count():
            raise MMRepMLPError(
                f"device={self.device}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs. Choose "
                "another, or cpu."
            )
        if not self.is_gpu and (self.tf32 or torch.device(self.device).type != "cpu"):
            raise MMRepMLPError(f"device={self.device}, tf32={self.tf32}: expected cpu, or cuda with or without TF32.")
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.is_gpu:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32

    def place(self, x: Placed) -> Placed:
        """Move a module or a batch of images to the device, in the selected memory format."""
        return x.to(self.device, memory_format=torch.channels_last if self.channels_last else torch.preserve_format)

    def calling(self, network: nn.Module, x: Tensor) -> Callable[[], object]:
        """Return a function that calls a network, in autocast if selected."""
        dtype = getattr(torch, self.autocast or "bfloat16")

        def call() -> object:
            with torch.autocast(torch.device(self.device).type, dtype, enabled=self.autocast is not None):
                return network(x)

        return call

    def time(self, function: Callable[[], object]) -> float:
        """Return the seconds that a call takes, on a GPU measured with events in its stream."""
        if not self.is_gpu:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def peak_memory(self, function: Callable[[], object]) -> float | None:
        """Return the peak memory that a call adds, in MiB; None if it cannot be measured.

        On a GPU, this counts torch's tensors; on a CPU, the resident memory of the process, which includes allocations
        outside of torch.
        """
        function()
        gc.collect()
        if not self.is_gpu:
            return peak_resident_memory(function)
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def environment(self) -> dict[str, object]:
        """Return the environment of the measurements: processor, threads, versions, date, settings, GPU."""
        gpu = dict(gpu=torch.cuda.get_device_name(self.device), tf32=self.tf32) if self.is_gpu else {}
        options = dict(channels_last=self.channels_last or None, autocast=self.autocast, plain=is_plain() or None)
        return {**gpu, **{name: value for name, value in options.items() if value is not None}, **processor_facts()}


CPU = Hardware()


def processor_facts() -> dict[str, object]:
    """Return the processor with its instructions, the number of threads, versions and the date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    flags = fields.get("flags", "").split()
    versions = {}
    for name in ("onnxruntime", "openvino", "nncf"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return dict(
        processor=name_processor(fields),
        vectors=torch.backends.cpu.get_cpu_capability(),
        features=", ".join(feature for feature in FEATURES if feature in flags) or "unknown",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **versions,
        python=platform.python_version(),
        date=date.today().isoformat(),
    )


def name_processor(fields: dict[str, str]) -> str:
    """Return the name of the processor; on Linux with family and model, since names in clouds hide the generation."""
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def peak_resident_memory(function: Callable[[], object]) -> float | None:
    """Return the peak growth of this process's resident memory during a call, in MiB; None if not on Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    try:
        reset.write_text("5")  # resets the high-water mark to the current resident memory
    except OSError:
        return None

    def resident(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    before = resident("VmRSS")
    function()
    return (resident("VmHWM") - before) / 1024
