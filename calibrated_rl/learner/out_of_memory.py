"""What to do when memory runs out in the middle of a step: let go of what the step holds, and go on."""

import gc
from types import TracebackType

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate, on a GPU or on the CPU, where it has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


class OutOfMemory:
    """Ends its block quietly if memory runs out in it, with all that the block held freed; other errors pass."""

    message = ""
    """What could not be allocated, in torch's words."""

    def __enter__(self) -> "OutOfMemory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self.message = str(error).splitlines()[0]
        # The frames that the error came through hold the step's tensors.
        error.__traceback__ = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True
