"""Arguments of vLLM in a config: its own names, what is refused and why, and that vLLM is not imported for it."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.inference import vllm_arguments
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.vllm_arguments import DISTRIBUTION, OF_A_SERVER, ONLINE, SET_HERE, WEIGHTS, argument_types
from tests.support.paths import ROOT

DEV = ROOT / "configs" / "dev.yaml"
ALL_REFUSED = {**SET_HERE, **OF_A_SERVER, **WEIGHTS, **DISTRIBUTION}


def problems(args: dict[str, Any], role: str = "policy", dtype: Any = "bfloat16") -> dict[str, str]:
    return dict(vllm_arguments.problems_of_args(role, EngineConfig(args=args, dtype=dtype)))


def test_what_vllm_knows_goes_through_and_what_it_does_not_is_told() -> None:
    taken = {
        "max_num_batched_tokens": 8192, "kv_cache_dtype": "fp8", "quantization": "mxfp8", "block_size": 64,
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3}, "enable_expert_parallel": True,
    }  # fmt: skip
    assert problems(taken) == {}
    found = problems({"max_batched_tokens": 8192, "long_prefill_token_threshold": "many", "enable_dbo": 1})
    assert found["max_batched_tokens"] == (
        "is no argument of vLLM's AsyncEngineArgs; did you mean 'max_num_batched_tokens'?"
    )
    assert found["long_prefill_token_threshold"] == "is 'many': vLLM wants int"
    assert found["enable_dbo"] == "is 1: vLLM wants bool"


def test_every_refused_name_is_one_that_vllm_has() -> None:
    types = argument_types()
    assert types is not None and len(types) > 200
    assert {"model", "speculative_config", "enable_log_requests"} <= types.keys()
    assert types["max_num_batched_tokens"] == {"int", "None"}
    assert [name for name in ALL_REFUSED if name not in types] == []
    for name in ALL_REFUSED:
        assert problems({name: None})[name].startswith("cannot be set: ")
    assert all(name in problems({name: None}) for name in types if name.startswith("data_parallel_"))


def test_what_the_program_sets_is_among_what_is_refused() -> None:
    """But for what a user may well set otherwise."""
    source = (ROOT / "calibrated_rl" / "inference" / "engine_arguments.py").read_text()
    set_names = set(re.findall(r"^        (\w+)=", source[source.index("return AsyncEngineArgs(") :], re.MULTILINE))
    assert len(set_names) > 10 and set_names <= ALL_REFUSED.keys()


def test_less_is_refused_for_who_is_compared_with_nothing() -> None:
    for name in DISTRIBUTION:
        assert problems({name: None}, "simulator")
        assert "cannot be set" not in problems({name: None}, "proxy").get(name, "")
    assert problems({"kv_cache_dtype": "fp8"}, dtype="float32") == {
        "kv_cache_dtype": "is 'fp8', and engine.dtype is float32, where learner and engine agree to 1e-4: set "
        "engine.dtype to bfloat16"
    }
    assert problems({"kv_cache_dtype": "auto"}, dtype="float32") == {}
    assert problems({"quantization": "mxfp8"}, "proxy", dtype="float32") == {}


def test_only_weights_that_vllm_quantises_itself_can_be_replaced() -> None:
    assert "for weights that were quantised before" in problems({"quantization": "awq"})["quantization"]
    assert problems({"quantization": "fp8_per_tensr"})["quantization"].endswith("did you mean 'fp8_per_tensor'?")
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "config" / "quantization.py").read_text())
    (table,) = (
        node.value for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_ONLINE_SHORTHANDS"
    )  # fmt: skip
    assert isinstance(table, ast.Dict)
    assert {ast.literal_eval(key) for key in table.keys if key} | {"online"} == set(ONLINE)


def test_a_config_names_the_key() -> None:
    with pytest.raises(UserError) as error:
        load_config(DEV, ["policy.engine.args={logprobs_mode: raw_logprobs, max_num_batchd_tokens: 8}"])
    assert "policy.engine.args.logprobs_mode cannot be set: recorded log-probs must be" in str(error.value)
    assert "policy.engine.args.max_num_batchd_tokens is no argument of vLLM's AsyncEngineArgs; did" in str(error.value)


@pytest.mark.slow
def test_vllm_is_not_imported_for_it() -> None:
    overrides = "simulator.engine.args={max_num_batched_tokens: 512}"
    code = (
        "import sys; from calibrated_rl.config.load import load_config; "
        f"c = load_config({str(DEV)!r}, [{overrides!r}]); "
        "assert c.simulator.engine.args == {'max_num_batched_tokens': 512}; sys.exit('vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def test_without_vllm_names_are_left_to_the_machine_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    argument_types.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    try:
        assert problems({"unheard_of": 1}) == {} and problems({"dtype": "half"}) != {}
    finally:
        argument_types.cache_clear()


def test_the_docs_name_each_with_its_reason() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for name in ALL_REFUSED:
        assert any(f"`{name}`" in row.split("|")[1] for row in rows), name
