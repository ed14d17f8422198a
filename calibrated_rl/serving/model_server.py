"""A model on Ray Serve: ``ray.serve.llm``'s server with an engine whose weights can be replaced while it serves.

A newer policy is rolled out through Serve's ``user_config`` (``{weights: ARM-SEED}``), which Serve hands to every
replica without restarting it: the engine finishes what it is sampling, waiting requests wait, the weights are replaced
on the way that training uses (``weight_sync/vllm_worker.py``), and sampling resumes. A replica that starts later loads
its model and is handed the same ``user_config``.
"""

import asyncio
from contextlib import aclosing
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from calibrated_rl.inference.engine_arguments import engine_environment
from calibrated_rl.serving.settings import ServeConfig, ServedModel, refuse_another_model, served_models, weights_folder
from calibrated_rl.weight_sync.base import Receiver
from calibrated_rl.weight_sync.buckets import BucketSender
from calibrated_rl.weight_sync.tensors import Weights

UPDATE_TIMEOUT_S = 300.0
BUCKET_BYTES = 128 * 2**20


class NothingToDownload(CallbackBase):
    """The model's folder is there: the task that would look for it costs a process that imports vLLM."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class ModelServer(LLMServer):
    """Serves one model of a run; ``ServedModel`` says which."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, *, model: ServedModel, serve_config: ServeConfig
    ) -> None:
        """
        Raises:
            UserError: the weights are not on this machine, or not as their checksums say.
        """
        served_models(serve_config)  # on this machine, too
        self._model, self._serve_config = model, serve_config
        self._weights = model.weights
        self._half_updated = False
        """Weights of two versions, or an engine that stays paused: Serve replaces the replica (``check_health``)."""
        self._replacing = asyncio.Lock()
        self._buckets = BucketSender(BUCKET_BYTES)
        if model.config.engine.num_gpus:
            await super().__init__(llm_config)
            return
        from calibrated_rl.serving.cpu_engine import CpuEngine

        await super().__init__(llm_config, engine_cls=CpuEngine)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls it at the start and whenever the ``user_config`` of the deployment changes.

        Raises:
            UserError: no such weights; the replica keeps those that it has.
        """
        weights = str(user_config.get("weights") or self._model.weights)
        async with self._replacing:
            if weights != self._weights:
                await self._replace_weights(weights)

    async def _replace_weights(self, weights: str) -> None:
        from safetensors.torch import load_file
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        run, _ = await asyncio.to_thread(served_models, self._serve_config)
        folder = await asyncio.to_thread(weights_folder, run, self._model.name, weights)
        refuse_another_model(self._model.folder, folder)
        tensors: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= await asyncio.to_thread(load_file, file)
        engine = self.engine._engine_client  # the engine itself, which ray.serve.llm wraps
        receiver = Receiver(on_gpu=self._model.config.engine.num_gpus > 0, buckets=self._buckets)
        # What is being sampled is finished with the weights that it began with; requests that arrive wait.
        async with asyncio.timeout(UPDATE_TIMEOUT_S):
            self._half_updated = True
            await engine.pause_generation(mode="wait", clear_cache=True)
            await engine.start_weight_update()
            async with aclosing(receiver.bucket_messages(Weights(tensors))) as messages:
                async for message in messages:
                    await engine.update_weights(WeightTransferUpdateRequest(update_info=dict(message)))
            await engine.finish_weight_update(weights)
            await engine.resume_generation()
            self._half_updated = False
        self._weights = weights

    async def check_health(self) -> None:
        """What Serve asks, now and then; raises where the replica is to be replaced."""
        if self._half_updated and not self._replacing.locked():
            raise RuntimeError("the weights were replaced in part only")
        await super().check_health()

    async def weights(self) -> str:
        """Which weights the replica has."""
        return self._weights


def llm_config(model: ServedModel, serve_config: ServeConfig) -> LLMConfig:
    """What ``ray.serve.llm`` starts ``model`` with: its dtype, context and limits are those of the run."""
    engine = model.config.engine
    from calibrated_rl.weight_sync import vllm_worker

    bundle: dict[str, float] = {"CPU": engine.cpus}
    if engine.num_gpus:
        bundle["GPU"] = engine.gpus
    return LLMConfig(
        model_loading_config={"model_id": model.name, "model_source": str(model.folder)},
        accelerator_type=None,
        callback_config={"callback_class": NothingToDownload},
        log_engine_metrics=False,  # a dozen metrics an engine's step take the time of the replica's process
        placement_group_config={"bundles": [bundle]},
        runtime_env={"env_vars": engine_environment(engine, model.name)},
        engine_kwargs={
            "load_format": "safetensors",
            "generation_config": "vllm",
            "trust_remote_code": False,
            "dtype": engine.dtype,
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
            "kv_cache_memory_bytes": engine.kv_cache_mib * 2**20,
            "enforce_eager": engine.eager,
            "tensor_parallel_size": engine.tensor_parallel,
            "distributed_executor_backend": engine.executor,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "worker_extension_cls": f"{vllm_worker.__name__}.WorkerExtension",
            "weight_transfer_config": {"backend": vllm_worker.BACKEND},
            **({} if engine.num_gpus else {"block_size": 32}),
            **engine.args,
        },
        deployment_config={
            "autoscaling_config": {
                "min_replicas": serve_config.min_replicas,
                "max_replicas": serve_config.max_replicas,
                "initial_replicas": serve_config.min_replicas,
                "target_ongoing_requests": serve_config.target_ongoing_requests,
            },
            "max_ongoing_requests": max(2 * engine.max_num_seqs, serve_config.target_ongoing_requests),
            "user_config": {"weights": model.weights},
            "health_check_period_s": 2,
            "health_check_timeout_s": 30,
            "graceful_shutdown_timeout_s": 120,
            # The replica's own process does what the bundle's engine is counted for.
            "ray_actor_options": {"num_cpus": 0},
        },
    )
