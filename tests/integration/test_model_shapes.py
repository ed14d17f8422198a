"""Any model, any setting: refused in words, or the learner's log-probs are those of transformers, one by one."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import HealthCheck, assume
from hypothesis import strategies as st

from calibrated_rl.chat.tokens import view_of
from calibrated_rl.data.dialogue import Scenario, Side, Source, Split, TokenSequence, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.learner import probe
from calibrated_rl.learner.attention import layout_of
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.model import TokenLogProbs
from calibrated_rl.learner.packing import pack
from calibrated_rl.models.supported import check_config, check_model_folder
from tests.support.made_up_models import VOCABULARY, make_model
from tests.support.template_families import FAMILIES, family

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "n_embd": 32, "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64,
    "num_hidden_layers": 2, "n_layer": 2, "num_attention_heads": 4, "n_head": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "n_positions": 256, "word_embed_proj_dim": 32, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "original_max_position_embeddings": 256,
}  # fmt: skip
NOISE = {
    name: 0.4 for name in (
        "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "attention_dropout", "dropout", "layerdrop",
        "activation_dropout", "residual_dropout", "router_jitter_noise", "input_jitter_noise",
    )
}  # fmt: skip
"""Whatever a config may call it."""

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "windows": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    "large head": {"head_dim": 16},
    "biased": {"attention_bias": True, "mlp_bias": True, "use_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "yarn": {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4,
    }},
    "llama3": {"rope_parameters": {
        "rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "rope_theta": 1e4,
    }},
    "partial rotary": {"partial_rotary_factor": 0.5, "rotary_pct": 0.5},
    "multipliers": {
        "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.1, "scale_emb": 3.0,
    },
    "rough norms": {"rms_norm_eps": 0.1, "layer_norm_eps": 0.1, "layer_norm_epsilon": 0.1, "norm_eps": 0.1},
}  # fmt: skip
LEARNED = (
    "gpt2", "gpt_neox", "gpt_bigcode", "opt", "phi", "phi3", "phimoe", "persimmon", "llama", "mistral", "mixtral",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma3_text", "granite", "granitemoe", "olmo2", "olmo3",
    "olmoe", "smollm3", "starcoder2", "seed_oss", "exaone4", "glm4", "ernie4_5", "apertus", "nanochat",
)  # fmt: skip
UNKNOWN = {
    "phimoe": {"windows": "sliding_window"}, "qwen2_moe": {"windows": "sliding_window"},
    "qwen2": {"windows": "in some layers only"}, "qwen3": {"windows": "in some layers only"},
    "qwen3_moe": {"windows": "in some layers only"}, "gemma": {"biased": "attention_bias"},
    "olmoe": {"biased": "attention_bias", "rough norms": "rms_norm_eps"}, "ernie4_5": {"biased": "use_bias"},
}  # fmt: skip
"""What is refused of what transformers can compute: windows that are told by a mask alone, and what vLLM ignores."""
REFUSED = {
    "cohere": "logit_scale", "gemma2": "attn_logit_softcapping", "stablelm": "needs a mask",
    "nemotron": "gets no layout of which tokens attend to which",
}  # fmt: skip


def make(kind: str, **settings: Any) -> Any:
    """A random model of a kind; those of the settings that its config knows."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    usual = CONFIG_MAPPING[kind]()
    known = {key: value for key, value in (SIZES | NOISE | settings).items() if hasattr(usual, key)}
    if known.get("head_dim") and getattr(usual, "head_dim", None) is None:
        known.pop("head_dim")
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**known)
    if len(getattr(config, "layer_types", None) or [1, 2]) != 2:
        config.layer_types = config.layer_types[:2]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def sequences(longest: int = 100) -> list[TokenSequence]:
    """Some begin alike."""
    random = np.random.default_rng(0)
    shared, made = random.integers(3, VOCABULARY, 10), []
    for length in (30, longest, 45, 5):
        ids = random.integers(3, VOCABULARY, length).astype(np.int32)
        ids[: min(10, length - 1)] = shared[: min(10, length - 1)]
        made.append(TokenSequence(
            ids=ids, mask=random.random(length) < 0.6, logprobs=np.full(length, np.nan, np.float32),
            versions=np.full(length, -1, np.int32), turns=np.zeros(length, np.int32),
        ))  # fmt: skip
    return made


def one_by_one(model: Any, given: list[TokenSequence]) -> torch.Tensor:
    """What transformers gives for the masked tokens of each sequence alone."""
    found = []
    for each in given:
        ids = torch.from_numpy(each.ids).long()
        with torch.no_grad():
            logs = model.eval()(ids[None], use_cache=False).logits[0].float().log_softmax(-1)
        found.append(logs[:-1].gather(-1, ids[1:, None])[:, 0][torch.from_numpy(each.mask[1:])])
    return torch.cat(found)


def packed(module: TokenLogProbs, given: list[TokenSequence], most: int = 4096) -> torch.Tensor:
    batch = SampleBatch.of_sequences(given)
    found = torch.full((len(batch.ids),), torch.nan)
    for each in pack(batch, most):
        tensors = [torch.from_numpy(a) for a in (each.input_ids, each.position_ids, each.select, each.targets)]
        found[torch.from_numpy(each.source)] = module(*tensors, layout_of(each, torch.device("cpu"), torch.float32))[0]
    return found[torch.from_numpy(batch.scored)]


@pytest.mark.parametrize("kind", LEARNED)
def test_learner_and_transformers_agree_whatever_is_set(kind: str) -> None:
    agreed, refused = [], list[str]()
    for name, settings in SETTINGS.items():
        given = sequences()
        try:
            model = make(kind, **settings)
            expected = one_by_one(model, given)
        except (ValueError, KeyError, AttributeError, RuntimeError, StrictDataclassClassValidationError):
            assert name != "plain"
            continue  # transformers itself cannot compute such a model
        if settings and not any(hasattr(model.config, key) for key in settings):
            continue
        try:
            module = TokenLogProbs(model).train()
        except UserError as error:
            assert UNKNOWN[kind][name] in str(error)
            refused.append(name)
            continue
        with torch.no_grad():
            first, second = packed(module, given), packed(module, given)
        assert torch.equal(first, second), f"{name}: something is drawn"
        assert (first - expected).abs().max() < 1e-5, name
        agreed.append(name)
    assert len(agreed) >= 3, agreed
    assert refused == list(UNKNOWN.get(kind, ()))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_known_is_refused_in_words(kind: str) -> None:
    with pytest.raises(UserError, match=REFUSED[kind]):
        TokenLogProbs(make(kind))


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("granite", {"logits_scaling": 8.0}, "'logits_scaling'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ("gpt2", {"scale_attn_weights": False}, "'scale_attn_weights' False"),
        ("mixtral", {"hidden_act": "gelu"}, "'hidden_act' 'gelu'"),
        ("gemma", {"hidden_act": "relu"}, "vLLM computes 'gelu_pytorch_tanh'"),
        ("gemma", {"attention_bias": True}, "'attention_bias' True"),
        ("olmoe", {"norm_topk_prob": True}, "'norm_topk_prob' True"),
        ("olmoe", {"rms_norm_eps": 1e-6}, "'rms_norm_eps' 1e-06"),
        ("olmoe", {"clip_qkv": 1.0}, "'clip_qkv' 1.0"),
        ("ernie4_5", {"use_bias": True}, "'use_bias' True"),
        ("qwen2_moe", {"qkv_bias": False}, "'qkv_bias' False"),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, "in some layers only"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_settings_that_differ_are_refused_by_name(kind: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        TokenLogProbs(make(kind, **settings))


class Louder(torch.nn.Module):
    """Makes of a model one that multiplies its logits, under a setting that nobody has heard of."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        plain = model.forward

        def louder(**given: Any) -> Any:
            found = plain(**given)
            found.logits = found.logits * 1.5
            return found

        model.forward = louder
        model.config.loudness = 1.5


def test_what_a_model_does_beside_decoder_and_head_is_noticed() -> None:
    model = make_model()
    Louder(model)
    with pytest.raises(UserError, match=r"type llama are not supported as this one is configured: .* nats a token"):
        TokenLogProbs(model)


def test_a_kind_of_model_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_compared", set())
    assert probe.Probe.of(make_model()) is not None
    TokenLogProbs(make_model())
    assert probe.Probe.of(make_model()) is None and probe.Probe.of(make_model(tied=False)) is not None


def longrope(first: int) -> Any:
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": first, **factors}
    return make("phi3", rope_parameters=rope, original_max_position_embeddings=first)


def test_positions_that_depend_on_the_length_stay_on_one_side(tmp_path: Path) -> None:
    """Packed with a longer one, a sequence would get the positions of the longer one."""
    model, given = longrope(64), sequences(longest=60)
    expected = one_by_one(model, given)
    config = model.config
    module = TokenLogProbs(model)
    with torch.no_grad():
        assert (packed(module, given) - expected).abs().max() < 1e-5
    assert module.longest == 64
    check_config(config, 64)
    with pytest.raises(UserError, match=r"'longrope' .* set engine.max_model_len to at most 64, and not 65"):
        check_config(config, 65)
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="engine.max_model_len to at most 64, and not 128"):
        check_model_folder(tmp_path, 128)
    # What goes wrong otherwise: the same short sequence beside a longer one.
    module.longest = None
    with torch.no_grad():
        alone, beside = packed(module, given[:1]), packed(module, [given[0], *sequences(longest=100)[1:2]])
    assert (alone - beside[: len(alone)]).abs().max() > 0.01


def test_quantised_models_are_refused_before_anything_starts(tmp_path: Path) -> None:
    config = make_model().config
    config.save_pretrained(tmp_path)
    check_model_folder(tmp_path, 128)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UserError, match="quantization_config"):
        check_model_folder(tmp_path, 128)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "phimoe"])
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    """Dropout of a layer itself would be drawn anew while it is computed again."""
    gradients, calls = [], []

    def counted(*given: Any, inner: Any) -> Any:
        calls.append(1)
        return inner(*given)

    for recomputed in (False, True):
        model = make(kind)
        module = TokenLogProbs(model)
        if recomputed:
            module.recompute_activations()
            for layer in module._recomputed:
                layer._gradient_checkpointing_func = partial(counted, inner=layer._gradient_checkpointing_func)
        module.train()
        packed(module, sequences()).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == 2, "each layer once"
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


SAID = st.lists(st.text("abdehiknorstuwy ?", min_size=1, max_size=20), min_size=3, max_size=7)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@hypothesis.given(
    kind=st.sampled_from(LEARNED), chosen=st.sets(st.sampled_from(sorted(SETTINGS)), max_size=3),
    name=st.sampled_from(sorted(FAMILIES)), dialogues=st.lists(SAID, min_size=2, max_size=4),
    budget=st.sampled_from((64, 300, 4096)), side=st.sampled_from(list(Side)),
)  # fmt: skip
def test_any_model_with_any_template_and_settings(
    kind: str, chosen: set[str], name: str, dialogues: list[list[str]], budget: int, side: Side
) -> None:
    """Refused in words, or the learner scores the turns of real dialogues as transformers does, one by one."""
    chat = family(name)
    said = [
        [Turn(side=list(Side)[number % 2], text=text, source=Source.LOG) for number, text in enumerate(texts)]
        for texts in dialogues
    ]
    scenario = Scenario(id="s", split=Split.CALIBRATION, policy_instructions="be kind", user_instructions="be you",
                        greeting="hi")  # fmt: skip
    given = [view_of(chat, scenario, side, turns).sequence() for turns in said]
    merged = {key: value for each in sorted(chosen) for key, value in SETTINGS[each].items()}
    room = {"max_position_embeddings": 1024, "n_positions": 1024, "original_max_position_embeddings": 1024}
    try:
        model = make(kind, **room | {"vocab_size": len(chat.tokenizer)} | merged)
        expected = one_by_one(model, given)
    except (ValueError, KeyError, AttributeError, RuntimeError, StrictDataclassClassValidationError):
        assume(False)  # transformers itself cannot compute such a model
        raise
    try:
        module = TokenLogProbs(model).train()
    except UserError as error:
        assert str(error)
        return
    with torch.no_grad():
        assert (packed(module, given, budget) - expected).abs().max() < 2e-5
