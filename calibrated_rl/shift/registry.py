"""Names of the estimators that two sets of dialogues can be given; none of them is loaded here."""

from collections.abc import Mapping

ESTIMATORS: Mapping[str, str] = {
    "words": "calibrated_rl.shift.two_sample.words:WordsTest",
    "figures": "calibrated_rl.shift.two_sample.figures:FiguresTest",
    "acts": "calibrated_rl.shift.two_sample.acts:ActsTest",
    "tokens": "calibrated_rl.shift.two_sample.tokens:TokenTest",
    "encoder": "calibrated_rl.shift.two_sample.encoder:EncoderTest",
    "history": "calibrated_rl.shift.estimators.history_shift:HistoryShift",
    "mauve": "calibrated_rl.shift.estimators.mauve:Mauve",
    "lengths": "calibrated_rl.shift.estimators.lengths:Lengths",
    "act_divergence": "calibrated_rl.shift.estimators.act_divergence:ActDivergence",
    "likeness": "calibrated_rl.shift.estimators.likeness:Likeness",
    "coverage": "calibrated_rl.shift.estimators.coverage:Coverage",
}
"""Short name to import path."""
ENCODED = ("encoder", "mauve")
"""Those that need a sentence encoder."""
