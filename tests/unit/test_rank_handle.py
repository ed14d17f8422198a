"""The typed handle of a rank has the actor's methods, with the actor's parameters."""

import inspect

from calibrated_rl.learner.rank_actor import RankActor
from calibrated_rl.learner.rank_handle import RankHandle


def parameters_of(cls: type) -> dict[str, list[tuple[str, object]]]:
    """Names and kinds of the parameters of each public method."""
    methods = {name: method for name, method in vars(cls).items() if not name.startswith("_")}
    return {
        name: [
            (each.name, each.kind)
            for each in inspect.signature(method).parameters.values()
            if not each.name.startswith("_")  # Ray adds one to a class once it has made an actor of it
        ]
        for name, method in methods.items()
    }


def test_each_call_is_one_that_the_actor_takes() -> None:
    assert parameters_of(RankHandle) == parameters_of(RankActor)
