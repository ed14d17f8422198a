"""The memory of a rank's device, as the rank sees it."""

import resource
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What the learner has seen of its device, in bytes."""

    name: str
    total: int
    free: int
    """Beside the learner at its peak."""
    learner: int
    """At its peak."""


def look_at_device(on_gpu: bool) -> DeviceMemory:
    """This process at its peak on the GPU or in the machine's own memory, and what is left there beside that."""
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        # What torch has ever reserved it keeps, so that `free` is what is left beside the peak.
        peak = torch.cuda.max_memory_reserved()
        return DeviceMemory(name=torch.cuda.get_device_name(), total=total, free=free, learner=peak)
    memory = psutil.virtual_memory()
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given_back = max(0, peak - psutil.Process().memory_info().rss)
    return DeviceMemory(name="this machine", total=memory.total, free=memory.available - given_back, learner=peak)
