"""Names of the estimators that two sets of dialogues can be given; none of them is loaded here."""

from collections.abc import Mapping

ESTIMATORS: Mapping[str, str] = {
    "words": "calibrated_rl.shift.two_sample_words:WordsTest",
    "figures": "calibrated_rl.shift.two_sample_figures:FiguresTest",
    "acts": "calibrated_rl.shift.two_sample_acts:ActsTest",
    "tokens": "calibrated_rl.shift.two_sample_tokens:TokenTest",
    "encoder": "calibrated_rl.shift.two_sample_encoder:EncoderTest",
    "history": "calibrated_rl.shift.history_shift:HistoryShift",
    "mauve": "calibrated_rl.shift.mauve:Mauve",
    "lengths": "calibrated_rl.shift.lengths:Lengths",
    "act_divergence": "calibrated_rl.shift.act_divergence:ActDivergence",
    "likeness": "calibrated_rl.shift.likeness:Likeness",
    "coverage": "calibrated_rl.shift.coverage:Coverage",
}
"""Short name to import path."""
ENCODED = ("encoder", "mauve")
"""Those that need a sentence encoder."""
