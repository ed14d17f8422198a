"""Memory through which a replica hands weights to its engine's process, bucket by bucket.

It is made once and used for every update: fresh memory costs several times what copying into it does, because the
operating system hands it out in pages of 4 KiB, each of them cleared first. It has no name in any folder, so that
nothing is left of it whatever dies, and the size of ``/dev/shm``, which containers keep small, does not count.
"""

import mmap
import os

import numpy as np

from calibrated_rl.weight_sync.weights import Bucket, Weights

NAME = "calibrated_rl_weights"
"""What the operating system shows of it among the open files of a replica."""


class SharedBucket:
    """Holds one bucket at a time; it grows to the largest."""

    def __init__(self) -> None:
        self._file = os.memfd_create(NAME)
        self._memory: mmap.mmap | None = None
        self.size = 0
        """In bytes."""

    @property
    def path(self) -> str:
        """Where processes of the same user on this machine can open it."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def hold(self, bucket: Bucket, weights: Weights) -> None:
        """Replace what is held by ``bucket``."""
        if self._memory is None or bucket.size > self.size:
            self.size = max(bucket.size, 1)
            os.ftruncate(self._file, self.size)
            self._memory = mmap.mmap(self._file, self.size)
        bucket.fill(np.frombuffer(self._memory, np.uint8), weights)

    def close(self) -> None:
        """Free it, once the engine's process is gone as well."""
        self._memory = None
        os.close(self._file)
