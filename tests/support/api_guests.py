"""Users of FrontDesk as a model behind an API would play them, and the settings of a run that meets them."""

import random
from collections.abc import Mapping, Sequence

from calibrated_rl.examples.front_desk.words import SLOTS


def guest(messages: Sequence[Mapping[str, str]], seed: int) -> str:
    """Tells what it wants, at first all of it or one thing, as the seed has it; says yes to the rest."""
    draw = random.Random(f"{seed} {len(messages)}")
    wish = messages[0]["content"].split(".")[0].split()[2:]
    values = [value for slot, value in zip(wish[::2], wish[1::2], strict=False) if slot in SLOTS]
    if len(messages) == 2:
        return " ".join(values if draw.random() < 0.5 else values[:1])
    asked = [value for slot, value in zip(wish[::2], wish[1::2], strict=False) if slot in messages[-1]["content"]]
    return " ".join(asked or [draw.choice([*values, "yes"])])


def settings(simulator: str, people: str, *, budget: float = 0.0) -> str:
    """YAML over ``micro.yaml``: a simulator and a user of the evaluation behind APIs at these addresses."""
    return f"""
name: api
human: ""
pretraining: {{human: ""}}
arms: [interactive]
logs: {{calibration: 60, monitor: 12}}
policy: {{warm_start: {{epochs: 1}}}}
simulator: {{model: endpoint:guests}}
proxies: {{other: {{model: endpoint:people}}}}
training: {{updates: 2, checkpoint_every: 9, tokens_per_update: 150}}
calibration: {{reserve: 0}}
evaluation: {{scenarios: 6, shifted: 0, logs: 16, profile: 6}}
shift: {{every: 1, dialogues: 10, draws: 2}}
endpoints:
  guests:
    {{base_url: "{simulator}", model: guest-1, api_key: "${{oc.env:GUEST_KEY}}", concurrency: 16, timeout: 20,
      retries: 8, price_in: 1000, price_out: 2000, budget: {budget}}}
  people: {{base_url: "{people}", model: guest-2, concurrency: 16, timeout: 20, retries: 8}}
"""
