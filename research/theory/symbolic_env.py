"""The exact world as an RLlib ``MultiAgentEnv``, and RLlib's PPO trained in it.

The only file of ``research/theory`` that uses Ray.

The two sides of a dialogue are the two agents: ``policy`` acts on the state and the turn, then ``simulator`` on
those and what was just said. Both are tables: PPO learns the policy's; the simulator's is given and stays. A table
that is learned can be read out, so that its value follows from dynamic programming instead of rollouts, and the
two can be compared.

Observations are one-hot vectors of floats, of length ``H S`` for the policy and ``H S A`` for the simulator; after the
last turn they are 0 (what is learned there is never used: the dialogue has ended). Rewards go to the policy and
arrive with its next observation; the simulator gets none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Positive, Range, Seed, Share
from research.theory.symbolic import Floats, RewardKind, World

POLICY, SIMULATOR = "policy", "simulator"
Observation = NDArray[np.float32]
ByAgent = dict[str, Any]


class SymbolicDialogue(MultiAgentEnv):  # type: ignore[misc]
    """One dialogue is one episode.

    Args of the constructor, in ``config``:
        world: ``World``.
        horizon: H, how many turns each side has.
        reward: ``per_turn`` or ``terminal``.

    Raises:
        UserError: the horizon is not at least 1.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.world: World = config["world"]
        self.horizon: int = config["horizon"]
        self.reward: RewardKind = config["reward"]
        if self.horizon < 1:
            raise UserError(f"a dialogue has at least one turn, not {self.horizon}")
        self.possible_agents = self.agents = [POLICY, SIMULATOR]
        histories = self.horizon * self.world.states
        contexts = histories * self.world.policy_symbols
        self.observation_spaces: ByAgent = {
            POLICY: gym.spaces.Box(0.0, 1.0, (histories,), np.float32),
            SIMULATOR: gym.spaces.Box(0.0, 1.0, (contexts,), np.float32),
        }
        self.action_spaces: ByAgent = {
            POLICY: gym.spaces.Discrete(self.world.policy_symbols),
            SIMULATOR: gym.spaces.Discrete(self.world.user_symbols),
        }
        self._random = np.random.default_rng()
        self._turn, self._state, self._said = 0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[ByAgent, ByAgent]:
        """The user's greeting: draws the first state. The same seed gives the same one."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._turn = 0
        self._state = int(self._random.choice(self.world.states, p=self.world.start_S))
        return {POLICY: self._policy_sees()}, {}

    def step(self, action_dict: Mapping[str, Any]) -> tuple[ByAgent, ByAgent, ByAgent, ByAgent, ByAgent]:
        """One side speaks, the one whose turn it is; its agent alone must be in ``action_dict``."""
        over = {"__all__": False}
        if POLICY in action_dict:
            self._said = int(action_dict[POLICY])
            return {SIMULATOR: self._simulator_sees()}, {SIMULATOR: 0.0}, over, {"__all__": False}, {}
        reply = int(action_dict[SIMULATOR])
        gain = float(self.world.reward_SAX[self._state, self._said, reply]) if self.reward == "per_turn" else 0.0
        self._state = int(self.world.successor_SAX[self._state, self._said, reply])
        self._turn += 1
        if self._turn < self.horizon:
            return {POLICY: self._policy_sees()}, {POLICY: gain}, over, {"__all__": False}, {}
        if self.reward == "terminal":
            gain = float(self.world.terminal_S[self._state])
        last = {POLICY: self._policy_sees(), SIMULATOR: self._simulator_sees()}
        terminated = {agent: True for agent in (POLICY, SIMULATOR, "__all__")}
        return last, {POLICY: gain, SIMULATOR: 0.0}, terminated, {agent: False for agent in terminated}, {}

    def _policy_sees(self) -> Observation:
        return self._one_hot(POLICY, self._turn * self.world.states + self._state)

    def _simulator_sees(self) -> Observation:
        row = self._turn * self.world.states + self._state
        return self._one_hot(SIMULATOR, row * self.world.policy_symbols + self._said)

    def _one_hot(self, agent: str, index: int) -> Observation:
        observation: Observation = np.zeros(self.observation_spaces[agent].shape, np.float32)
        if self._turn < self.horizon:
            observation[index] = 1.0
        return observation


class LearnedTable(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """Logits and a value for each row, all 0 at first: every symbol is equally likely."""

    def setup(self) -> None:
        rows, symbols = self.observation_space.shape[0], int(self.action_space.n)
        self.logits = torch.nn.Parameter(torch.zeros(rows, symbols))
        self.values = torch.nn.Parameter(torch.zeros(rows))

    def _forward(self, batch: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        return {Columns.ACTION_DIST_INPUTS: batch[Columns.OBS] @ self.logits}

    def compute_values(self, batch: dict[str, torch.Tensor], embeddings: Any = None) -> torch.Tensor:
        """[B] from observations [B, rows]."""
        return batch[Columns.OBS] @ self.values

    def probabilities(self) -> Floats:
        """[rows, symbols], as the table stands."""
        return torch.softmax(self.logits.detach().double(), dim=-1).numpy()


class GivenTable(TorchRLModule):  # type: ignore[misc]
    """Speaks from ``model_config["probabilities"]`` [rows, symbols]; nothing in it is learned."""

    def setup(self) -> None:
        table = torch.as_tensor(np.array(self.model_config["probabilities"]), dtype=torch.float32)
        log_probabilities = table.clamp_min(torch.finfo(torch.float32).tiny).log()
        # RLlib gives every module an optimiser, which refuses a module without parameters.
        self.log_probabilities = torch.nn.Parameter(log_probabilities, requires_grad=False)

    def _forward(self, batch: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        return {Columns.ACTION_DIST_INPUTS: batch[Columns.OBS] @ self.log_probabilities}


_PARALLEL = 10
"""Dialogues side by side: one pass through the tables serves them all."""


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """How long and how fast; the defaults learn a table of some 50 rows within a minute."""

    iterations: Positive = 50
    dialogues: Positive = 300
    """For each iteration; rounded up to what is run side by side."""
    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 0.03
    """At first; falls in a straight line to a tenth."""
    entropy: Annotated[float, Range(at_least=0)] = 0.005
    """Weight of the entropy bonus at first, against deciding too soon; falls in a straight line to 0."""
    epochs: NotNegative = 8
    minibatch: Positive = 500
    lambda_: Share = 0.95
    """Of generalised advantage estimation; nothing is discounted."""
    rollouts: Positive = 1000
    """Dialogues, at least, that the final value is estimated from."""
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The policy that PPO learned, and its returns."""

    policy: Floats
    """[H, S, A], the learned table."""
    returns: Floats
    """[rollouts or a few more]: of that table's dialogues with the simulator, as RLlib's own sampling saw them."""
    mean_returns: tuple[float, ...]
    """Of the training dialogues, iteration by iteration."""


def ppo_config(world: World, simulator: Floats, reward: RewardKind, settings: PPOSettings) -> PPOConfig:
    """RLlib's PPO on this world, all in the calling process.

    Args:
        simulator: [H, S, A, X].

    Raises:
        UserError: the simulator does not fit the world, or a setting is not positive.
    """
    world.require_user(simulator, "simulator")
    if min(settings.iterations, settings.dialogues, settings.epochs, settings.minibatch, settings.rollouts) < 1:
        raise UserError(f"PPO needs at least one of each: {settings}")
    side_by_side = min(_PARALLEL, settings.dialogues)
    dialogues = -(-settings.dialogues // side_by_side) * side_by_side
    batch = 2 * len(simulator) * dialogues  # the simulator's steps count as well
    steps = batch * settings.iterations
    env_config = {"world": world, "horizon": len(simulator), "reward": reward}
    simulator_config = {"probabilities": np.ascontiguousarray(simulator.reshape(-1, world.user_symbols))}
    modules = {
        POLICY: RLModuleSpec(module_class=LearnedTable),
        SIMULATOR: RLModuleSpec(module_class=GivenTable, model_config=simulator_config),
    }
    return (
        PPOConfig()
        .environment(SymbolicDialogue, env_config=env_config, disable_env_checking=True)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=side_by_side,
            # One dialogue of each environment. Not ``complete_episodes``: RLlib then resets with the same seed before
            # every batch, so that all of them would begin in the same states.
            batch_mode="truncate_episodes",
            rollout_fragment_length=2 * len(simulator),
        )
        .learners(num_learners=0, num_gpus_per_learner=0)
        .multi_agent(
            policies={POLICY, SIMULATOR},
            policy_mapping_fn=lambda agent, episode, **kwargs: agent,
            policies_to_train=[POLICY],
            count_steps_by="env_steps",
        )
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=modules))
        .training(
            gamma=1.0,
            lambda_=settings.lambda_,
            lr=[[0, settings.learning_rate], [steps, settings.learning_rate / 10]],
            train_batch_size_per_learner=batch,
            minibatch_size=settings.minibatch,
            num_epochs=settings.epochs,
            use_kl_loss=False,
            entropy_coeff=[[0, settings.entropy], [steps, 0.0]],
            vf_clip_param=float("inf"),
        )
        .debugging(seed=settings.seed, log_level="ERROR")
    )


def train(world: World, simulator: Floats, reward: RewardKind, settings: PPOSettings | None = None) -> Trained:
    """Train with ``simulator`` [H, S, A, X] and read out what was learned. Ray must have been started.

    Raises:
        UserError: as ``ppo_config``.
    """
    settings = settings or PPOSettings()
    algorithm: PPO = ppo_config(world, simulator, reward, settings).build_algo()
    try:
        means = []
        for _ in range(settings.iterations):
            result = algorithm.train()["env_runners"]
            means.append(float(result.get("episode_return_mean", np.nan)))
        table = algorithm.get_module(POLICY).probabilities()
        returns: list[float] = []
        while len(returns) < settings.rollouts:
            episodes = algorithm.env_runner.sample(explore=True)
            returns += [episode.agent_episodes[POLICY].get_return() for episode in episodes]
    finally:
        algorithm.stop()
    return Trained(
        policy=table.reshape(len(simulator), world.states, world.policy_symbols),
        returns=np.asarray(returns, np.float64),
        mean_returns=tuple(means),
    )
