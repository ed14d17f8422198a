"""Dialogues that are shown in the chat templates of ``template_families.py``."""

from collections.abc import Sequence
from typing import Any

from calibrated_rl.data.dialogue import Scenario, Side, Split, Turn
from tests.support.template_families import DATE
from tests.unit.test_tokens import turns_of


def conversation(system: str, spoken: Sequence[str]) -> tuple[Scenario, list[Turn]]:
    scenario = Scenario(
        id="s", split=Split.CALIBRATION, policy_instructions=system, user_instructions=system, greeting="hello"
    )
    return scenario, turns_of(*spoken)


def on_the_day(form: str) -> str:
    return {"%d %b %Y": "29 Feb 2024", "%Y-%m-%d": DATE}[form]


def with_side(made: tuple[Scenario, list[Turn]], side: Side) -> tuple[Scenario, Side, list[Turn]]:
    return made[0], side, made[1]


def ids_of(sequence: Any, turn: int) -> list[int]:
    """Own ids of a turn."""
    return list(sequence.ids[sequence.mask & (sequence.turns == turn)].tolist())


THINKING = {
    "qwen3": "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n",
    "qwen3_silent": "<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "qwen3_thinking": "<|im_start|>assistant\n<think>\n</think>\n\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n",
    "smollm3": "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n",
    "smollm3_silent": "<|im_start|>assistant\n<think>\n\n</think>\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n",
    "glm45": "<|assistant|>\n<think></think>\nA<|user|>\nB<|assistant|>",
    "glm45_silent": "<|assistant|>\n<think></think>\nA<|user|>\nB/nothink<|assistant|>\n<think></think>",
    "r1": "<｜Assistant｜><think>\n</think>\n\nA<｜end▁of▁sentence｜><｜User｜>B<｜Assistant｜><think>\n",
    "deepseek31": "<｜Assistant｜></think>A<｜end▁of▁sentence｜><｜User｜>B<｜Assistant｜></think>",
    "deepseek31_thinking": "<｜Assistant｜><think></think>A<｜end▁of▁sentence｜><｜User｜>B<｜Assistant｜><think>",
    "nemotron": "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nB<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}
"""What follows the first user turn; a logged turn comes without thoughts, closed at once where the prompt opens one."""
