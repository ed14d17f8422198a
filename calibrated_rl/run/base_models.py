"""The models that a run begins with: resolved or made, checked, with their tokenizers, before any actor starts."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.config.sections import ModelConfig, ProxyConfig
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.inference.config import SamplingConfig
from calibrated_rl.learner.lora import check_targets
from calibrated_rl.learner.slots import POLICY, PROXY, SIMULATOR
from calibrated_rl.models.folders import with_template
from calibrated_rl.models.resolve import resolve_model
from calibrated_rl.models.shape import check_context
from calibrated_rl.models.supported import check_model_folder
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.rollout.context import check_context_fits, context_needed
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.storage.files import SHARED
from calibrated_rl.tasks.base import secret_after

logger = logging.getLogger(__name__)

CACHE = Path(SHARED).expanduser()


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """One side's model before any training."""

    folder: Path
    chat: ChatTokens


@dataclass(frozen=True, kw_only=True)
class BaseModels:
    """The models of all sides."""

    policy: BaseModel
    local_simulator: BaseModel | None
    """None: the simulator is behind an endpoint."""
    proxy: BaseModel | None
    """The model that replaces the human, where there is one."""

    @property
    def simulator(self) -> BaseModel:
        """The simulator's, where it is a model of ours."""
        assert self.local_simulator is not None, "a simulator behind an endpoint has neither weights nor tokens here"
        return self.local_simulator

    def folders(self) -> dict[str, Path]:
        """By role."""
        models = {POLICY: self.policy, SIMULATOR: self.local_simulator, PROXY: self.proxy}
        return {role: model.folder for role, model in models.items() if model is not None}


def prepare_models(inputs: RunInputs) -> BaseModels:
    """Find or make the base models, and read their tokenizers.

    Raises:
        UserError: a model cannot be found or used, or is too short for the logged dialogues.
    """
    config = inputs.config
    calibration = inputs.logs[Split.CALIBRATION]
    texts = [turn.text for log in calibration for turn in log.turns]
    texts += [
        text for log in calibration for text in (log.scenario.policy_instructions, log.scenario.user_instructions)
    ]
    pretraining = [turn.text for log in inputs.pretraining_logs.get(Split.CALIBRATION, ()) for turn in log.turns]
    policy = _find(inputs, config.policy, POLICY, 0, texts)
    local = endpoint_name(config.simulator.model) is None
    simulator = _find(inputs, config.simulator, SIMULATOR, 1, texts + pretraining) if local else None
    proxy = _find(inputs, config.proxy, PROXY, 2, texts) if config.proxy.model else None
    user_sampling = config.simulator.sampling
    return BaseModels(
        policy=_read(inputs, POLICY, policy, Side.POLICY, config.policy, config.policy.sampling),
        local_simulator=None
        if simulator is None
        else _read(inputs, SIMULATOR, simulator, Side.USER, config.simulator, user_sampling),
        proxy=None if proxy is None else _read(inputs, PROXY, proxy, Side.USER, config.proxy, user_sampling),
    )


def _find(inputs: RunInputs, side: ModelConfig | ProxyConfig, name: str, seed: int, texts: Sequence[str]) -> Path:
    models = inputs.folder / "models"
    if side.model != "tiny":
        folder = resolve_model(side.model, CACHE, offline=False, chat_template=not side.chat_template)
    elif not ((folder := models / f"{name}_base") / "config.json").is_file():
        make_tiny(folder, list(texts), seed, **asdict(side.tiny) if isinstance(side, ModelConfig) else {})
    if not side.chat_template:
        return folder
    # A hidden folder: links to a model are no part of the copy of a run (run_copy.py); the template is.
    template_copy, linked_folder = inputs.folder / "templates" / f"{name}.jinja", models / f".{name}_with_template"
    return with_template(folder, side.chat_template, template_copy, linked_folder, f"{name}.chat_template")


def _read(
    inputs: RunInputs, role: str, base: Path, side: Side, config: ModelConfig | ProxyConfig, sampling: SamplingConfig
) -> BaseModel:
    """Refuses models and settings that are too short for the logged dialogues."""
    check_context(base, config.engine.max_model_len)
    check_model_folder(base, config.engine.max_model_len)
    if (adapters := inputs.config.learner.lora.get(role)) is not None:
        check_targets(base, adapters)
    chat = ChatTokens(
        read_tokenizer(base, role), role, settings=config.chat_template_kwargs, date=inputs.config.date,
        secret_after=secret_after(inputs.task),
    )  # fmt: skip
    if chat.folds_instructions:
        logger.info(f"{role}: the chat template has no role for instructions; they open the first user turn")
    if chat.template.uses_date:
        logger.info(f"{role}: the chat template prints the date; this run's is {chat.template.day}")
    if chat.may_think:
        key = f"{SIMULATOR if role == PROXY else role}.sampling.max_turn_tokens"
        logger.info(f"{role}: may think before it speaks; {key} is {sampling.max_turn_tokens} for both together")
    needed = context_needed(chat, side, inputs.logs[Split.CALIBRATION], sampling.max_turn_tokens)
    check_context_fits(role, config.engine.max_model_len, needed)
    return BaseModel(folder=base, chat=chat)
