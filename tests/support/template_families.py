"""Tokenizers with chat templates in the shape of those of several families, made on the spot; texts are our own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from calibrated_rl.chat.tokens import ChatTokens

WORDS = ["hello i want a table for two on friday", "which day ?", "booked friday seven two", "you are kind"] * 3
DATE = "2024-02-29"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Only what follows the last user message keeps its reasoning; an empty block in the prompt turns reasoning off.
QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{%- set text = m.content.split('</think>')[-1].lstrip('\\n') %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
{{- text + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
LLAMA = """
{{- bos_token }}
{%- if not date_string is defined %}
{%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}
{%- else %}{% set date_string = '01 Jan 2020' %}{% endif %}
{%- endif %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nIt is ' + date_string + '.\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}
{{- (m.content | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
_GEMMA = """
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
{{- (m.content | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% set first = '' %}" + _GEMMA
)
GEMMA3 = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}" + _GEMMA
)
# Instructions stand before the last message of a user, wherever that is.
MISTRAL = """
{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set messages = messages[1:] if system is not none else messages %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}
{%- if m.role == 'user' %}
{{- '[INST] ' + (system + '\\n\\n' if loop.last and system is not none else '') + m.content + '[/INST]' }}
{%- else %}{{- ' ' + (m.content | trim) + eos_token }}{% endif %}
{%- endfor %}"""
PHI3 = """
{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% else %}{{- eos_token }}{% endif %}"""
# The prompt ends before the channel, and the last answer ends in another token than the earlier ones.
GPT_OSS = """
{{- '<|start|>system<|message|>It is ' + strftime_now('%Y-%m-%d') + '. Effort: ' + (reasoning_effort or 'medium') }}
{{- '<|end|>' }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{- '<|start|>developer<|message|># Rules\\n\\n' + m.content + '<|end|>' }}
{%- elif m.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""
# A turn ends with the header of the next one.
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM45 = """
{{- '[gMASK]<sop>' }}
{%- set silent = enable_thinking is defined and not enable_thinking %}
{%- for m in messages %}
{{- '<|' + m.role + '|>\\n' }}
{%- if m.role == 'assistant' %}{{- '<think></think>\\n' + m.content.split('</think>')[-1].strip() }}
{%- else %}{{- m.content + ('/nothink' if silent and m.role == 'user' else '') }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' + ('\\n<think></think>' if silent else '') }}{% endif %}"""
# The prompt opens the reasoning that a history leaves out.
R1 = """
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{- m.content }}
{%- elif m.role == 'user' %}{{- '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' %}{{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{% endif %}"""
DEEPSEEK31 = """
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{- m.content }}
{%- elif m.role == 'user' %}{{- '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' %}
{{- '<｜Assistant｜></think>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}"""
# Reasoning is marked in plain text.
NEMOTRON = """
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content.split('</think>')[-1].lstrip() }}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# The first version of Phi-3's: instructions are left out without a word.
SILENT = """
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>\\n' + m.content + '<|end|>\\n<|assistant|>\\n' }}
{%- elif m.role == 'assistant' %}{{- m.content + '<|end|>\\n' }}{% endif %}
{%- endfor %}"""
# Without reasoning every answer has an empty block, in prompt and history.
SMOLLM3 = """
{%- set quiet = enable_thinking is defined and not enable_thinking %}
{{- '<|im_start|>system\\nIt is ' + strftime_now('%d %b %Y') + ', ' + ('/no_think' if quiet else '/think') + '\\n\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{% set messages = messages[1:] %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if quiet else '') }}
{{- m.content.lstrip('\\n') + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if quiet else '') }}
{%- endif %}"""
# An answer has marks of its own within the turn.
COMMAND = """
{{- bos_token }}
{%- for m in messages %}
{%- set who = {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}[m.role] %}
{{- '<|START_OF_TURN_TOKEN|>' + who }}
{%- if m.role == 'assistant' %}{{- '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}
{%- else %}{{- m.content }}{% endif %}
{{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

TOOLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
THINK = ("<think>", "</think>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
LLAMA_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GLM_TOKENS = ("[gMASK]", "<sop>", "<|system|>", "<|assistant|>", "<|observation|>", "<|user|>")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A chat template with the added tokens of its vocabulary."""

    template: str
    special: Sequence[str]
    """Flagged as special; the first begins a sequence, if ``begins``, and the last ends a turn."""
    plain: Sequence[str] = ()
    """Added, but not flagged."""
    begins: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    thinks: bool = False
    """Whether the template does something to reasoning, so that its histories are not what a side has seen."""
    make: Callable[[], Any] | None = None
    """Makes the tokenizer without added tokens; None: a byte-level one."""
    strips: Sequence[str] = ()
    """Tokens that take white space behind them along."""

    def tokenizer(self) -> Any:
        from tokenizers import AddedToken

        made = (self.make or byte_level)()
        for flagged, contents in ((True, self.special), (False, self.plain)):
            made.add_tokens(
                [AddedToken(t, special=flagged, normalized=False, rstrip=t in self.strips) for t in contents]
            )
        made.eos_token = made.pad_token = self.special[-1]
        if self.begins:
            made.bos_token = self.special[0]
        made.chat_template = self.template
        return made

    def tokens(self, name: str, date: str = DATE) -> ChatTokens:
        return ChatTokens(self.tokenizer(), name, settings=self.settings, date=date)


def byte_level() -> Any:
    """Every text comes back as it was."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentence_pieces() -> Any:
    """A space belongs to the word behind it, and one is put before the first word of a text; all of ASCII is known."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    alphabet = ["\u2581", "\n", *map(chr, range(33, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def unigrams() -> Any:
    """As SentencePiece's unigram models, which have their control tokens among the pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["\u2581", "\n", *map(chr, range(33, 127)), "\u2581friday", "and"]
    pieces = ["<unk>", "<|im_start|>", "<|im_end|>", *THINK, *words]
    backend = Tokenizer(models.Unigram([(piece, -float(1 + len(piece) // 9)) for piece in pieces], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def prefixed_pieces() -> Any:
    """As the older ones of Llama's family: a space is put before every stretch of text between control tokens."""
    from tokenizers import decoders, normalizers

    made = sentence_pieces()
    backend = made.backend_tokenizer
    backend.pre_tokenizer = None  # type: ignore[assignment]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


_ALWAYS = QWEN3.replace("is false %}{{- '<think>\\n\\n</think>\\n\\n' }}", "%}{{- '<think>\\n' }}")
_QWEN: dict[str, Any] = {
    "template": QWEN3, "special": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "plain": (*TOOLS, *THINK),
}  # fmt: skip
_MISTRAL: dict[str, Any] = {"template": MISTRAL, "special": ("<s>", "[INST]", "[/INST]", "</s>"), "begins": True}
_GEMMA_TOKENS: dict[str, Any] = {
    "special": ("<bos>", "<start_of_turn>", "<end_of_turn>"), "plain": ("<b>", "\n\n"), "begins": True,
}  # fmt: skip
FAMILIES: dict[str, Family] = {
    "chatml": Family(template=CHATML, special=("<|im_start|>", "<|im_end|>")),
    "qwen3": Family(**_QWEN, thinks=True),
    "qwen3_silent": Family(**_QWEN, settings={"enable_thinking": False}, thinks=True),
    "llama": Family(template=LLAMA, special=LLAMA_TOKENS, begins=True),
    "gemma2": Family(template=GEMMA2, **_GEMMA_TOKENS),
    "gemma3": Family(template=GEMMA3, **_GEMMA_TOKENS),
    "mistral": Family(**_MISTRAL),
    "mistral_pieces": Family(**_MISTRAL, make=sentence_pieces),
    "mistral_prefixed": Family(**_MISTRAL, make=prefixed_pieces),
    "unigrams": Family(template=CHATML, special=("<|im_start|>", "<|im_end|>"), plain=THINK, make=unigrams),
    "phi3": Family(
        template=PHI3, special=("<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|end|>"),
        strips=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "gpt_oss": Family(
        template=GPT_OSS, special=("<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|end|>", "<|return|>"),
        settings={"reasoning_effort": "low"},
    ),
    "glm4": Family(template=GLM4, special=GLM_TOKENS),
    "glm45": Family(template=GLM45, special=("/nothink", *GLM_TOKENS), plain=THINK, thinks=True),
    "glm45_silent": Family(
        template=GLM45, special=("/nothink", *GLM_TOKENS), plain=THINK, settings={"enable_thinking": False}, thinks=True
    ),
    "r1": Family(template=R1, special=DEEPSEEK, plain=THINK, begins=True, thinks=True),
    "deepseek31": Family(template=DEEPSEEK31, special=DEEPSEEK, plain=THINK, begins=True, thinks=True),
    "deepseek31_thinking": Family(
        template=DEEPSEEK31, special=DEEPSEEK, plain=THINK, begins=True, settings={"thinking": True}, thinks=True
    ),
    "qwen3_thinking": Family(**_QWEN | {"template": _ALWAYS}, settings={"enable_thinking": True}, thinks=True),
    "smollm3": Family(template=SMOLLM3, special=("<|im_start|>", "<|im_end|>"), plain=THINK, thinks=True),
    "smollm3_silent": Family(
        template=SMOLLM3, special=("<|im_start|>", "<|im_end|>"), plain=THINK, settings={"enable_thinking": False},
        thinks=True,
    ),
    "silent": Family(template=SILENT, special=("<s>", "<|user|>", "<|assistant|>", "<|end|>"), begins=True),
    "command": Family(
        template=COMMAND, begins=True, special=(
            "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
            "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_THINKING|>", "<|END_THINKING|>", "<|END_OF_TURN_TOKEN|>",
        ),
    ),
    "nemotron": Family(template=NEMOTRON, special=LLAMA_TOKENS, begins=True, thinks=True),
}  # fmt: skip


@cache
def family(name: str) -> ChatTokens:
    return FAMILIES[name].tokens(name)
