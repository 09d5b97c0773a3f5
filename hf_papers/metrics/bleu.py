"""BLEU as sacreBLEU computes it: a number that says how it was made, so that two of them can be compared (1804.08771).

BLEU is the geometric mean of the shares of n-grams (n = 1 to 4) of a translation that its reference contains too, times a
penalty for translations that are shorter than their references. Its value depends on how texts are cut into words and on
case; the *signature* names all of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from hf_papers.errors import UserError


if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU


@dataclass(frozen=True)
class BleuResult:
    """score: 0 to 100. signature: how it was computed. precisions: per cent of the 1-, 2-, 3- and 4-grams that are right.
    brevity_penalty: at most 1. length_ratio: words of the translations / words of the references."""

    score: float
    signature: str
    precisions: tuple[float, ...]
    brevity_penalty: float
    length_ratio: float


def corpus_bleu(
    translations: Sequence[str], references: Sequence[str], *, lowercase: bool = False, tokenize: str = "13a"
) -> BleuResult:
    """BLEU of a whole test set; the mean over sentences is another number. One reference each.

    Args:
        translations: as a reader would get them, detokenised.
        references: untouched, as the data set has them.
        lowercase: compare without regard to case, which the signature says.
        tokenize: how sacreBLEU cuts both into words; "13a" is its default, and right for languages with spaces.
    """
    if len(translations) != len(references):
        raise UserError(f"{len(translations)} translations cannot be compared with {len(references)} references.")
    if not references:
        raise UserError("BLEU needs one translation or more.")
    for texts, name in ((translations, "translation"), (references, "reference")):
        if wrong := next((text for text in texts if not isinstance(text, str)), None):
            raise UserError(f"BLEU compares texts, and a {name} is {wrong!r}.")
    metric = _metric(lowercase, tokenize)
    result = metric.corpus_score(list(translations), [list(references)])
    return BleuResult(
        score=result.score,
        signature=str(metric.get_signature()),
        precisions=tuple(result.precisions),
        brevity_penalty=result.bp,
        length_ratio=result.sys_len / max(1, result.ref_len),
    )


@cache
def _metric(lowercase: bool, tokenize: str) -> BLEU:
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(f"sacreBLEU has no way to cut words called '{tokenize}': {', '.join(BLEU.TOKENIZERS)}.")
    return BLEU(lowercase=lowercase, tokenize=tokenize)


__all__ = ["BleuResult", "corpus_bleu"]
