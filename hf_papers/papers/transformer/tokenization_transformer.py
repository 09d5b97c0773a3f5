"""One byte-pair vocabulary for source and target (section 5.1): trained on texts of any kind, saved with the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import quiet_transformers
from hf_papers.hub.problems import hub_problems


SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")  # in this order: their numbers are the config's defaults
SPACE = "▁"  # what a space before a word becomes, so that texts come back as they were
ALPHABET = 1000  # at most so many characters get tokens of their own, the most frequent ones
MAX_LENGTH = 512


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    lowercase: bool = False,
    min_frequency: int = 2,
    model_max_length: int = MAX_LENGTH,
) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of exactly `vocab_size` tokens (1508.07909), the same one for the same texts.

    Words are cut at spaces and punctuation; every digit is a token, because numbers are copied and not translated.
    Whatever it encodes ends with </s>.

    Args:
        texts: of both languages; gone through twice, so what can be gone through only once is held in memory.
        vocab_size: number of tokens, the four special ones included.
        lowercase: fold upper case away; accents stay. What is translated is lower-case too then.
        min_frequency: how often two pieces must stand side by side to become one.
        model_max_length: longest sequence in tokens that the tokenizer truncates to.

    Raises `UserError` when the texts do not yield that many tokens.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise UserError(f"vocab_size must be larger than the {len(SPECIAL_TOKENS)} special tokens, not {vocab_size}.")
    if min_frequency < 1:
        raise UserError(f"min_frequency must be at least 1, not {min_frequency}.")
    texts = list(texts) if iter(texts) is texts else texts
    tokenizer = _raw_tokenizer(lowercase)
    alphabet = _alphabet(texts, tokenizer.normalizer)
    if alphabet == [SPACE]:
        raise UserError("There is no text to train a tokenizer on: every text is empty.")
    needed = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < needed:
        raise UserError(
            f"vocab_size {vocab_size} has no room for the single characters of these texts: the least is {needed}."
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise UserError(
            f"The texts yield only {found} tokens that occur {min_frequency} times, not {vocab_size}: set --vocab_size to "
            f"{found} or less, lower --min_frequency, or give more text."
        )
    pad, unk, bos, eos = SPECIAL_TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _raw_tokenizer(lowercase: bool) -> Tokenizer:
    """Byte-pair encoding without a vocabulary. Decoding what was encoded gives the text, its spaces made single."""
    tokenizer = Tokenizer(BPE(unk_token=SPECIAL_TOKENS[1], fuse_unk=True))
    case = [normalizers.Lowercase()] if lowercase else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *case])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return tokenizer


def _alphabet(texts: Iterable[str], normalizer: Any) -> list[str]:
    """The most frequent characters of the texts, sorted, and the mark of a space."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    ranked = sorted((item for item in counts.items() if not item[0].isspace()), key=lambda item: (-item[1], item[0]))
    return sorted({SPACE, *(character for character, _ in ranked[:ALPHABET])})


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer in a folder or a repository of the Hub. Raises `UserError` when there is none."""
    path = Path(source).expanduser()
    if not path.is_dir() and (isinstance(source, Path) or str(source).startswith((".", "/", "~"))):
        raise UserError(f"There is no folder {source} to read a tokenizer from.")
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        raise UserError(f"{path} holds no tokenizer: there is no tokenizer.json in it.")
    if not path.is_dir():
        with hub_problems("Downloading the tokenizer", str(source)), quiet_transformers():
            return AutoTokenizer.from_pretrained(str(source))
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the Rust side raises bare exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"The tokenizer in {source} cannot be read: {reason}") from error


def check_vocabulary(tokenizer: Any, config: Any) -> None:
    """Raise `UserError` unless a model of this config and this tokenizer mean the same tokens."""
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"The tokenizer has {len(tokenizer):,} tokens, but the model's vocab_size is {config.vocab_size:,}: they do not "
            f"belong together. Set --vocab_size {len(tokenizer)}, or give the model's own tokenizer."
        )
    for name in ("pad", "bos", "eos"):
        ours, theirs = getattr(config, f"{name}_token_id"), getattr(tokenizer, f"{name}_token_id")
        if theirs is None:
            raise UserError(
                f"The tokenizer has no {name} token, which the model needs: train one with train-tokenizer."
            )
        if ours != theirs:
            raise UserError(
                f"The tokenizer's {name} token has the number {theirs}, but the model's {name}_token_id is {ours}: set "
                f"--{name}_token_id {theirs}."
            )


__all__ = ["SPACE", "SPECIAL_TOKENS", "check_vocabulary", "load_tokenizer", "train_tokenizer"]
