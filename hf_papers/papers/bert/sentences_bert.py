"""Documents into sentences by a few rules, which is all that pre-training asks: a "sentence" is any span of running text."""

from __future__ import annotations

import re


# Words that end in a full stop in the middle of a sentence, without it.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st jr sr rev gen col lt sgt capt gov sen rep pres hon messrs mt ft no nos vs etc inc ltd co corp "
    "dept univ assn bros fig figs eq eqs sec vol ed eds pp approx est al cf viz e.g i.e u.s u.k u.n a.m p.m jan feb mar "
    "apr jun jul aug sept sep oct nov dec".split()
)
ALWAYS_BEFORE_A_NAME = frozenset(
    "mr mrs ms dr prof st rev gen col lt sgt capt gov sen rep pres hon messrs mt vs e.g i.e cf viz no nos fig figs".split()
)
# What may end a sentence: . ! ? …, as written ("end. Next") or set apart by a tokeniser ("end . next"), with the quotes
# and brackets that close behind it.
END = re.compile(r"""(?:(?P<apart>(?<=\s)[.!?…]+)|(?P<close>[.!?…]+))["'”’)\]]*(?=\s)""")
RULE = re.compile(r"[\W_]{3,}")  # a line of stars or dashes, drawn under a title
BLANK_LINE = re.compile(r"\n\s*\n")
WRAPPED_WIDTH = 100  # texts with longer lines break them at paragraphs, not at a margin


def split_sentences(document: str) -> list[str]:
    """The sentences of a document, in order, without empty ones; white space within becomes single spaces.

    Blank lines end a sentence, and so do line breaks, unless the text is wrapped at a margin: then a line that had no
    room for the next word goes on in the next line. Within a line a sentence ends at . ! ? or …, when what follows does
    not start in lower case and what precedes is neither an initial nor a known abbreviation. In text that is
    tokenised already (" . ") the mark stands apart and always ends it.
    """
    document = document.replace("\r\n", "\n").replace("\r", "\n")
    width = max((len(line) for line in document.split("\n")), default=0)
    sentences = []
    for block in BLANK_LINE.split(document):
        lines = [line for line in block.split("\n") if not RULE.fullmatch(line.strip())]
        for line in _unwrap(lines, width):
            sentences += _split_line(" ".join(line.split()))
    return sentences


def _unwrap(lines: list[str], width: int) -> list[str]:
    """Lines of a block, those that were broken only at a margin of `width` characters put together again."""
    if width > WRAPPED_WIDTH:
        return lines
    whole: list[str] = []
    # Characters that the line before had left; a word that fits there was not put below by the margin.
    room = width + 1
    for line in lines:
        words = line.split(None, 1)
        if whole and words and len(words[0]) >= room:
            whole[-1] += " " + line
        else:
            whole.append(line)
        room = width - len(line.rstrip()) if words else width + 1
    return whole


def _split_line(line: str) -> list[str]:
    sentences, start = [], 0
    for match in END.finditer(line):
        if match.start() >= start and _is_end(line, match):
            sentences.append(line[start : match.end()].strip())
            start = match.end()
    sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _is_end(line: str, match: re.Match[str]) -> bool:
    if match["apart"]:
        return True
    following = line[match.end() :].lstrip().lstrip("\"'“‘([-")
    if following[:1].islower():
        return False
    if match["close"] != ".":
        return True
    word = line[: match.start()].rsplit(" ", 1)[-1].lstrip("\"'“‘([").lower()
    if len(word) == 1 and word.isalpha() and word != "i":  # an initial
        return False
    if word in ALWAYS_BEFORE_A_NAME:
        return False
    return word not in ABBREVIATIONS or following[:1].isupper()


__all__ = ["split_sentences"]
