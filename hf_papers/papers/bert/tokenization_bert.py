"""WordPiece vocabularies for BERT (1810.04805, section 3): trained on texts of any kind, or published ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece
from transformers import AutoTokenizer, BertTokenizer

from hf_papers.errors import UserError
from hf_papers.hub.checkpoints import quiet_transformers
from hf_papers.hub.problems import hub_problems


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in this order: padding is 0
ALPHABET = 1000  # at most so many characters get tokens of their own, the most frequent ones
CONTINUES = "##"  # how WordPiece writes a piece that is not the start of a word
MAX_LENGTH = 512
SAVED = ("tokenizer.json", "tokenizer_config.json")  # what a folder with a tokenizer of transformers holds
# Some checkpoints round their number of embeddings up to a multiple of this, for speed.
VOCABULARY_PADDING = 128


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    lowercase: bool = True,
    min_frequency: int = 2,
    model_max_length: int = MAX_LENGTH,
) -> BertTokenizer:
    """A WordPiece tokenizer of exactly `vocab_size` tokens, the same one for the same texts.

    Args:
        texts: gone through twice; what can be gone through only once is held in memory.
        vocab_size: number of tokens, the five special ones included.
        lowercase: fold upper case and accents away, as the published `uncased` models do.
        min_frequency: how often two pieces must stand side by side to become one.
        model_max_length: longest sequence in tokens that the tokenizer truncates to.

    Raises `UserError` when the texts do not yield that many tokens.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise UserError(f"vocab_size must be larger than the {len(SPECIAL_TOKENS)} special tokens, not {vocab_size}.")
    if min_frequency < 1:
        raise UserError(f"min_frequency must be at least 1, not {min_frequency}.")
    texts = list(texts) if iter(texts) is texts else texts
    alphabet, inner = _alphabet(texts, lowercase)
    if not alphabet:
        raise UserError("There is no text to train a tokenizer on: every document is empty.")
    needed = len(SPECIAL_TOKENS) + len(inner) + len(alphabet)
    if vocab_size < needed:
        raise UserError(
            f"vocab_size {vocab_size} has no room for the single characters of these texts: the least is {needed}."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        # The library numbers the pieces "##a", "##b" … in the order of a hash map, another one in every process, and
        # breaks ties between merges by these numbers. Named as special tokens they are numbered by us.
        special_tokens=[*SPECIAL_TOKENS, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    raw = _raw_tokenizer(lowercase)
    raw.train_from_iterator(iter(texts), trainer)
    vocab = raw.get_vocab()
    if len(vocab) < vocab_size:
        raise UserError(
            f"The texts yield only {len(vocab)} word pieces that occur {min_frequency} times, not {vocab_size}: set "
            f"--vocab_size to {len(vocab)} or less, lower --min_frequency, or give more text."
        )
    ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=ordered, do_lower_case=lowercase, model_max_length=model_max_length)


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> Any:
    """A published tokenizer: a folder with tokenizer.json or vocab.txt, a vocab.txt itself, or an id on the Hub.

    Where no tokenizer_config.json says whether it folds case, a vocabulary without upper-case letters does.
    Raises `UserError` where there is no vocabulary.
    """
    path = Path(source).expanduser()
    if path.is_file() or (path.is_dir() and not any((path / name).is_file() for name in SAVED)):
        return _from_vocabulary(path)
    if not path.is_dir() and (isinstance(source, Path) or str(source).startswith((".", "/", "~"))):
        raise UserError(f"There is no tokenizer at {source}: give a folder with tokenizer.json or vocab.txt.")
    try:
        with hub_problems("Downloading the tokenizer", str(source), revision), quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"The tokenizer of {source} cannot be read: {reason}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes up where it finds no file
        raise UserError(f"{source} has no vocabulary: there is neither a tokenizer.json nor a vocab.txt in it.")
    return tokenizer


def _from_vocabulary(path: Path) -> BertTokenizer:
    """From a bare list of word pieces: that file, or the folder it lies in."""
    vocabulary = path if path.is_file() else path / "vocab.txt"
    if not vocabulary.is_file() or vocabulary.suffix != ".txt":
        raise UserError(f"{path} holds no tokenizer: there is neither a tokenizer.json nor a vocab.txt in it.")
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    if missing := [token for token in SPECIAL_TOKENS if token not in tokens]:
        raise UserError(f"{vocabulary} is not a vocabulary of BERT: it lacks {', '.join(missing)}.")
    cased = any(token != token.lower() for token in tokens if not token.startswith("["))
    vocab = {token: number for number, token in enumerate(tokens)}
    return BertTokenizer(vocab=vocab, do_lower_case=not cased, model_max_length=MAX_LENGTH)


def check_vocabulary(tokenizer: Any, vocab_size: int, pad_token_id: int | None = 0, *, rounded: bool = False) -> None:
    """Raise `UserError` unless a model of `vocab_size` rows of embeddings and this tokenizer mean the same tokens.

    rounded: the model may have up to `VOCABULARY_PADDING` rows that no token uses, as some published checkpoints do.
    """
    if not 0 <= vocab_size - len(tokenizer) < (VOCABULARY_PADDING if rounded else 1):
        raise UserError(
            f"The tokenizer has {len(tokenizer):,} tokens, but the model's vocab_size is {vocab_size:,}: they do not belong "
            f"together. Give the tokenizer that the model was trained with; a new model takes --vocab_size {len(tokenizer)}."
        )
    for name in ("pad", "unk", "cls", "sep", "mask"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise UserError(f"The tokenizer has no {name} token, which BERT needs: it is not a tokenizer of BERT.")
    if pad_token_id is not None and tokenizer.pad_token_id != pad_token_id:
        raise UserError(
            f"The tokenizer pads with {tokenizer.pad_token_id}, but the model's pad_token_id is {pad_token_id}: set "
            f"--pad_token_id {tokenizer.pad_token_id}."
        )


def _raw_tokenizer(lowercase: bool) -> Tokenizer:
    """WordPiece without a vocabulary, cutting and folding texts as BertTokenizer does."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _alphabet(texts: Iterable[str], lowercase: bool) -> tuple[list[str], list[str]]:
    """The most frequent characters of the texts, sorted, and the pieces `##x` of those that can stand inside a word."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    ranked = sorted((item for item in counts.items() if not item[0].isspace()), key=lambda item: (-item[1], item[0]))
    alphabet = sorted(character for character, _ in ranked[:ALPHABET])
    cut = pre_tokenizers.BertPreTokenizer()
    inner = [CONTINUES + character for character in alphabet if len(cut.pre_tokenize_str("a" + character)) == 1]
    return alphabet, inner


__all__ = ["SPECIAL_TOKENS", "check_vocabulary", "load_tokenizer", "train_tokenizer"]
