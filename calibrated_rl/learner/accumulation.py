"""Accumulates gradients of bfloat16 models in float32.

Each micro-batch's gradient is in bfloat16, with 8 bits of precision. Accumulating in bfloat16 as well loses terms that
are small beside the sum: over 48 micro-batches of a tiny Llama 0.8 % of the gradient; summed in float32 and rounded
once, 0.2 %. DeepSpeed does better only where it shards gradients (``data_types.grad_accum_dtype`` with ZeRO 2 and 3):
with ZeRO 0 it refuses that setting, and with ZeRO 1 takes another optimizer for it. So here a hook, before DeepSpeed's
own, takes the gradient of every parameter as soon as it is computed and adds it to a sum in float32; with the last
micro-batch of a step it puts the sum back, for DeepSpeed to reduce and step along.
"""

from collections.abc import Iterable

from torch import Tensor


class Float32Sums:
    """Sums of the gradients of some parameters over the micro-batches of a step. They use memory, 4 bytes a parameter,
    from the first of several micro-batches to the last."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._sums: dict[Tensor, Tensor] = {}
        self._last = True
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._take)

    def begin(self, *, last: bool) -> None:
        """A backward pass follows; ``last``: of the step."""
        self._last = last

    def end(self) -> None:
        """The backward pass is over."""
        assert not (self._last and self._sums), "parameters had gradients before, and none in the last micro-batch"

    def drop(self) -> None:
        """Discard the sums."""
        self._sums.clear()

    def _take(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if self._last:
            if parameter in self._sums:
                gradient.copy_(self._sums.pop(parameter).add_(gradient))
            return
        if parameter in self._sums:
            self._sums[parameter].add_(gradient)
        else:
            self._sums[parameter] = gradient.float()
        parameter.grad = None
