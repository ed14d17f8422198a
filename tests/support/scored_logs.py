"""Small logs with returns, for values of turns."""

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn

SAID = ("which day do you want ?", "which time do you want ?", "booked . bye !")


def log(number: int, reward: float | None, *said: str) -> Dialogue:
    """A dialogue in which the policy says ``said``, each after its user's number."""
    scenario = Scenario(
        id=f"s{number}", split=Split.CALIBRATION, policy_instructions="book", user_instructions="", greeting="hello"
    )
    turns = [Turn(side=Side.POLICY, text="hello", source=Source.GREETING)]
    for text in said:
        turns += [
            Turn(side=Side.USER, text=f"number {number}", source=Source.LOG),
            Turn(side=Side.POLICY, text=text, source=Source.LOG),
        ]
    return Dialogue(
        id=str(number), task="t", scenario=scenario, turns=tuple(turns), ending="done", kind="log",
        outcome=None if reward is None else Outcome(reward=reward, success=True),
    )  # fmt: skip
