"""Which language a text is in, as far as it can be told without a model: by script, and by common little words.

Within the Latin script the words that every sentence has (articles, pronouns, prepositions) are counted for a few
languages (after Cavnar and Trenkle, "N-Gram-Based Text Categorization", SDAIR 1994, and its baselines of function
words). A text with fewer than ``FEWEST_HITS`` of them has no language here: names and short answers have none.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from calibrated_rl.health.text import without_quotations, words

STOP_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(text.split())
    for language, text in {
        "en": "the a an and or but is are was were be been am do does did have has had i you he she we they it my "
        "your his her our their me him them this that these those to of in on at for with from by as not no can could "
        "would should will what which when where who how if there here please i'm i'd it's don't that's so just about",
        "de": "der die das den dem des ein eine einen einem einer und oder aber ist sind war waren sein bin hat habe "
        "haben ich du er sie wir ihr es mein meine dein deine mich dich mir dir uns zu von im am auf für mit aus bei "
        "als nicht kein keine kann könnte möchte würde wird was welche wann wo wer wie wenn hier bitte noch auch gern "
        "nur sehr soll",
        "fr": "le la les un une des du de et ou mais est sont était être suis ai as a avons avez ont je tu il elle "
        "nous vous ils mon ma mes ton votre vos me te se ce cette ces ça à au aux en dans sur pour avec par pas ne "
        "que qui quel quelle quand où comment si voudrais plus très j'ai c'est n'est d'un d'une puis-je puis soit "
        "j'aimerais",
        "es": "el la los las un una unos y o pero es son era ser soy estoy está hay he ha yo tú él ella nosotros me "
        "te se mi mis tu su sus lo le a de del al en por para con sin no que quien qué cuál cuándo dónde cómo cuando "
        "si aquí quiero quiere puede puedes más muy este esta eso mucho tengo tiene queremos quieres",
        "it": "il lo la i gli le un uno una e o ma è sono era essere ho hai ha abbiamo io tu lui lei noi mi ti si ci "
        "mio mia tuo di del della dei in nel da per con su non che chi quale quando dove come se qui vorrei può più "
        "molto questo questa sia niente perché al alla anche",
        "nl": "de het een en of maar is zijn was waren ben heb hebt heeft hebben ik jij je hij zij we wij ons mij "
        "mijn uw me van in op aan voor met uit bij als niet geen kan kunt zou wil wilt wordt wat welke wanneer waar "
        "wie hoe dat deze die hier graag nog ook maar te om naar er",
        "pt": "o a os as um uma e ou mas é são era ser sou estou está tem tenho eu tu ele ela nós você me te se meu "
        "minha seu sua de do da dos das no na nos em por para com sem não que quem qual quando onde como aqui quero "
        "pode mais muito este esta isso ao à num",
        "sv": "en ett den det de och eller men är var vara har hade jag du han hon vi ni mig dig oss min mitt din er "
        "av i på för med från till om inte ingen kan kunde skulle vill vad vilken när var vem hur här gärna också som "
        "att så",
    }.items()
}
"""By language (ISO 639-1)."""

FEWEST_HITS = 3
"""Little words that a text needs to have a language."""
LEAST_SHARE = 0.25
"""Of its words; a sentence in one language quotes and names things in another."""
CLEARLY = 2.0
"""By how much the words of one language must outnumber those of another: neighbours share many."""

NO_SCRIPT = ""
_SAME = {"HIRAGANA": "KANA", "KATAKANA": "KANA", "KATAKANA-HIRAGANA": "KANA"}


@lru_cache(maxsize=10_000)
def _script_of(character: str) -> str:
    name = unicodedata.name(character, "").partition(" ")[0]
    return _SAME.get(name, name)


@lru_cache(maxsize=20_000)
def script(text: str) -> str:
    """The script of most letters of ``text``, as Unicode names it (``LATIN``, ``CYRILLIC``, ``CJK``, ``KANA``, ...);
    empty without a clear majority, and of fewer than three letters (one of Han)."""
    counts = Counter(_script_of(character) for character in without_quotations(text) if character.isalpha())
    if counts["KANA"]:  # Japanese writes Han as well
        counts["KANA"] += counts.pop("CJK", 0)
    if not counts:
        return NO_SCRIPT
    name, count = counts.most_common(1)[0]
    least = 1 if name in ("CJK", "KANA", "HANGUL") else 3
    return name if count >= least and count > 0.6 * counts.total() else NO_SCRIPT


@lru_cache(maxsize=20_000)
def hits(text: str) -> dict[str, int]:
    """Little words of each language in ``text``, quotations left out."""
    spoken = words(without_quotations(text))
    return {language: sum(word in little for word in spoken) for language, little in STOP_WORDS.items()}


@lru_cache(maxsize=20_000)
def language(text: str) -> str:
    """The language of a text in Latin script; empty: it cannot be told."""
    spoken = words(without_quotations(text))
    (first, most), (_, second) = Counter(hits(text)).most_common(2)
    clear = most >= FEWEST_HITS and most >= LEAST_SHARE * len(spoken) and most > second
    return first if clear else ""


def language_of_all(texts: Sequence[str]) -> str:
    """The language of several texts together; empty: it cannot be told."""
    return language(" \n".join(texts))
