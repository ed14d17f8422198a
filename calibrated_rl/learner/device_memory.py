"""The memory of a rank's device, measured by the rank."""

import resource
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The learner's measurement of its device, in bytes."""

    name: str
    total: int
    free: int
    """Beside the learner at its peak."""
    learner: int
    """At its peak."""


def measure_device(on_gpu: bool) -> DeviceMemory:
    """This process at its peak on the GPU or in the machine's own memory, and what is left there beside that."""
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        # Torch keeps what it has ever reserved, so that `free` is what is left beside the peak.
        peak = torch.cuda.max_memory_reserved()
        return DeviceMemory(name=torch.cuda.get_device_name(), total=total, free=free, learner=peak)
    memory = psutil.virtual_memory()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    released = max(0, peak - psutil.Process().memory_info().rss)
    return DeviceMemory(name="this machine", total=memory.total, free=memory.available - released, learner=peak)
