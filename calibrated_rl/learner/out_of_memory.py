"""Recovery when memory runs out in the middle of a step: free what the step has allocated, and continue."""

import gc
from types import TracebackType

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate, on a GPU or on the CPU, where it has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


class OutOfMemory:
    """Ends its block quietly if memory runs out in it, with all that the block allocated freed; other errors pass."""

    message = ""
    """Torch's message about what could not be allocated."""

    def __enter__(self) -> "OutOfMemory":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self.message = str(error).splitlines()[0]
        # The frames of the traceback keep the step's tensors alive.
        error.__traceback__ = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True
