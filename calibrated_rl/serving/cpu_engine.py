"""The engine that serves where there is no GPU. Imports vLLM."""

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine


class CpuEngine(VLLMEngine):
    """``ray.serve.llm``'s engine in one process. On CPUs Ray insists on vLLM's executor for several, whose worker takes
    a core from the model while it waits, and imports vLLM once more when it starts."""

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        arguments, frontend, config = super()._prepare_engine_config(callback_ctx)
        if arguments.tensor_parallel_size == 1:
            arguments.distributed_executor_backend = config.parallel_config.distributed_executor_backend = "uni"
        return arguments, frontend, config
