"""The tiny model of tests and the dev mode: a random Llama of about 1.3 M parameters, and a byte-level BPE trained on
given texts. Both are made on the spot, in seconds, without anything from outside."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.models.folders import publishing
from calibrated_rl.settings.fields import Positive

TINY_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""One token opens a message, one closes it: every scaffold token counts in a context of 512."""

TINY_CONTROL_TOKENS = ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""Padding, end of turn, and the three role headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyConfig:
    """The sizes of a tiny model. With the defaults it has at most 1.35 M parameters, in fp32."""

    hidden: Positive = 192
    """Size of its states; `hidden / heads` must be a multiple of 32."""
    layers: Positive = 2
    """Number of layers."""
    heads: Positive = 6
    """Attention heads of a layer."""
    intermediate: Positive = 768
    """Inner size of the feed-forward part."""
    vocab_size: Positive = 800
    """Tokens at most, 256 bytes and the control tokens among them. They are built from the words of the logs: with as
    many as there are frequent words, nearly every word is one token."""
    context: Positive = 512
    """Longest dialogue in tokens."""


def make_tiny(folder: Path, texts: Iterable[str], seed: int, *, tied: bool = True, **sizes: int) -> Path:
    """Make a random tiny Llama and a tokenizer for ``texts`` in ``folder``; the same arguments give the
    same files. Returns ``folder``.

    Args:
        tied: the output layer shares the weights of the embeddings.
        sizes: those of ``TinyConfig``.

    Raises:
        UserError: the head size is one that vLLM's CPU attention lacks, or the vocabulary cannot contain
            all bytes.
    """
    size = TinyConfig(**sizes)
    hidden, heads, vocab_size = size.hidden, size.heads, size.vocab_size
    if hidden % heads or (hidden // heads) % 32:
        raise UserError(f"hidden {hidden} over {heads} heads: the head size must be a multiple of 32")
    if vocab_size < 256 + len(TINY_CONTROL_TOKENS):
        raise UserError(f"a vocabulary of {vocab_size} cannot contain 256 bytes and the control tokens")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(texts, vocab_size=vocab_size, context=size.context)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=tied,
        # Small models learn to copy words from the dialogue in half the steps when they start wider than 0.02.
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama)
    with publishing(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return folder


def tiny_tokenizer(texts: Iterable[str], *, vocab_size: int, context: int) -> Any:
    """Byte-level BPE trained on ``texts``, with control tokens and chat template.

    Every byte has a token, so any text can be encoded. A space is put before the first word, so that a
    word is the same token at the start of a turn and within it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(TINY_CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|end|>",
        additional_special_tokens=list(TINY_CONTROL_TOKENS[2:]),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer
