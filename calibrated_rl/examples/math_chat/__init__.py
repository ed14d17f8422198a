"""MATH-Chat: a person has a problem of mathematics, and an assistant that has to ask for it."""

from calibrated_rl.examples.math_chat.task import MathChat

__all__ = ["MathChat"]
