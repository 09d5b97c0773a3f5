"""Rows of a data set put together to documents, cut into sentences, tokenised: an endless row of them that resumes exactly.

Three kinds of data sets. Where a row is a document, the house's stream shuffles, shards and keeps the tokenised rows. Where
a document is several rows (books by sentences, encyclopaedias by lines) these must stay together: then every process reads
all rows in order and keeps every n-th document.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hf_papers.data import Source
from hf_papers.data.texts import text_of
from hf_papers.errors import UserError
from hf_papers.papers.bert.sentences_bert import split_sentences


DocumentKind = Literal["row", "headings", "sentences"]

ROWS_AT_ONCE = {"row": 32, "headings": 1000, "sentences": 1000}  # what is asked of the stream at a time
LONGEST_DOCUMENT = 10_000  # rows of one document; what is longer is cut, so that memory stays bounded
TITLE = re.compile(r"\s*= (?!= )(.+?)(?<! =) =\s*")  # " = Title = ", but not " = = Section = = "
SECTION = re.compile(r"\s*(?:= )+(.+?)(?: =)+\s*")


@dataclass(frozen=True)
class Document:
    """Token ids of a document (n,), without special tokens, and the lengths in tokens of its sentences (s,)."""

    tokens: np.ndarray
    lengths: np.ndarray


NOTHING = Document(np.zeros(0, np.uint16), np.zeros(0, np.int32))


class SentenceTokenizer:
    """Sentences into token ids in the smallest type that holds the vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32

    def __call__(self, documents: list[list[str]]) -> list[Document]:
        """Sentences by document -> documents. Sentences without a token are left out."""
        sentences = [sentence for document in documents for sentence in document]
        encoded = iter(self._backend.encode_batch_fast(sentences, add_special_tokens=False))
        made = []
        for document in documents:
            ids = [tokens for tokens in (next(encoded).ids for _ in document) if tokens]
            flat = np.fromiter((token for tokens in ids for token in tokens), self._dtype)
            made.append(Document(flat, np.array([len(tokens) for tokens in ids], np.int32)))
        return made


def clean_wikitext(line: str) -> str:
    """A line of WikiText without its marks: " = = Plot = = " -> "Plot", "10 @,@ 000" -> "10,000"."""
    section = SECTION.fullmatch(line)
    line = section[1] if section else line
    for mark in ("-", ",", "."):
        line = line.replace(f" @{mark}@ ", mark)
    return line


def sentences_of(rows: list[str], kind: DocumentKind) -> list[str]:
    """The sentences of a document that consists of these rows."""
    if kind == "sentences":
        return [row.strip() for row in rows]
    if kind == "headings":
        rows = [clean_wikitext(row) for row in rows]
    return [sentence for row in rows for sentence in split_sentences(row)]


def assemble(rows: Iterable[str], kind: DocumentKind, rows_per_document: int) -> Iterator[list[str]]:
    """Rows, in order -> the rows of each document."""
    document: list[str] = []
    for row in rows:
        if document and starts_document(row, len(document), kind, rows_per_document):
            yield document
            document = []
        document.append(row)
    if document:
        yield document


def starts_document(row: str, rows_before: int, kind: DocumentKind, rows_per_document: int) -> bool:
    """Whether `row` begins a new document, `rows_before` rows after the last one began."""
    if kind == "row" or rows_before >= LONGEST_DOCUMENT:
        return True
    if kind == "sentences":
        return rows_before >= rows_per_document
    return TITLE.fullmatch(row) is not None


# A place is where a document begins: the stream's state before the batch that its first row is in, the number of the row
# in that batch, and how many documents of all processes came before it.
Place = dict[str, Any]


class DocumentReader:
    """Endless (document, its place, its epoch) of a split for process `rank` of `world_size`."""

    def __init__(
        self,
        source: Source,
        split: str,
        tokenizer: Any,
        *,
        kind: DocumentKind = "row",
        rows_per_document: int = 100,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.kind, self.rows_per_document = kind, rows_per_document
        self.rank, self.world_size = rank, world_size
        self.where = f"split '{split}' of '{source.name}'"
        self._tokenize = SentenceTokenizer(tokenizer)
        by_row = kind == "row"
        if not by_row:
            # Several workers would each read other rows and tear documents apart.
            source = copy.copy(source)
            workers = min(1, source.arguments.num_workers)
            source.arguments = replace(source.arguments, num_workers=workers, memory_budget_gb=0)
        self._stream = source.stream(
            split,
            self._tokenized_rows if by_row else self._texts,
            ROWS_AT_ONCE[kind],
            seed=seed,
            rank=rank if by_row else 0,
            world_size=world_size if by_row else 1,
            shuffle=by_row,
            drop_last=False,
        )

    def start(self) -> Place:
        """The place of the first document."""
        return {"stream": self._stream.state_dict(), "row": 0, "document": 0}

    def read(self, place: Place | None = None) -> Iterator[tuple[Document, Place, int]]:
        """Documents from `place` on, without end. Empty ones are left out.

        Raises `UserError` when a whole epoch holds no document for this process.
        """
        if place is not None:
            self._stream.load_state_dict(place["stream"])
        place = place or self.start()
        found, last = False, None
        for document, where, epoch in self._by_row(place) if self.kind == "row" else self._by_lines(place):
            if last is not None and epoch > last and not found:
                raise UserError(
                    f"There is no text in {self.where} for process {self.rank} of {self.world_size}: every document of it "
                    "is empty. Choose another split or column, or fewer processes."
                )
            found = (found and epoch == last) or len(document.tokens) > 0
            last = epoch
            if len(document.tokens):
                yield document, where, epoch

    def close(self) -> None:
        self._stream.close()

    def _texts(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"text": [text_of(row, self.where) for row in rows]}

    def _tokenized_rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        made = self._tokenize([split_sentences(text_of(row, self.where)) for row in rows])
        return {"tokens": [document.tokens for document in made], "lengths": [document.lengths for document in made]}

    def _batches(self, place: Place) -> Iterator[tuple[dict[str, Any], dict[str, Any], int]]:
        """(batch, the stream's state before it, its epoch)."""
        before = place["stream"]
        for batch in self._stream:
            yield batch, before, self._stream.epoch
            before = self._stream.state_dict()

    def _by_row(self, place: Place) -> Iterator[tuple[Document, Place, int]]:
        first, number = place["row"], place["document"]
        for batch, before, epoch in self._batches(place):
            for row in range(first, len(batch["tokens"])):
                document = Document(batch["tokens"][row], batch["lengths"][row])
                yield document, {"stream": before, "row": row, "document": number}, epoch
                number += 1
            first = 0

    def _by_lines(self, place: Place) -> Iterator[tuple[Document, Place, int]]:
        first, number = place["row"], place["document"]
        rows: list[str] = []
        begun, of_epoch = place, 0
        for batch, before, epoch in self._batches(place):
            for row in range(first, len(batch["text"])):
                text = batch["text"][row]
                new = epoch != of_epoch or starts_document(text, len(rows), self.kind, self.rows_per_document)
                if rows and new:
                    own = number % self.world_size == self.rank
                    yield self._tokenize([sentences_of(rows, self.kind)])[0] if own else NOTHING, begun, of_epoch
                    rows, number = [], number + 1
                if not rows:
                    begun, of_epoch = {"stream": before, "row": row, "document": number}, epoch
                rows.append(text)
            first = 0


class MixedReader:
    """Documents of several readers in turns, so that each gives its share of the tokens: BookCorpus and Wikipedia.

    An epoch ends whenever one of them is through, so that no document comes twice in it.
    """

    def __init__(self, readers: list[DocumentReader], shares: list[float]) -> None:
        self.readers, self.shares = readers, shares
        self.where = " and ".join(reader.where for reader in readers)

    def start(self) -> Place:
        return {"places": [reader.start() for reader in self.readers], "tokens": [0] * len(self.readers)}

    def read(self, place: Place | None = None) -> Iterator[tuple[Document, Place, int]]:
        """As `DocumentReader.read`."""
        place = place or self.start()
        documents = [reader.read(where) for reader, where in zip(self.readers, place["places"], strict=True)]
        tokens = list(place["tokens"])
        heads = [next(iterator) for iterator in documents]
        while True:
            turn = min(range(len(heads)), key=lambda index: tokens[index] / self.shares[index])
            here = {"places": [head[1] for head in heads], "tokens": list(tokens)}
            yield heads[turn][0], here, sum(head[2] for head in heads)
            tokens[turn] += len(heads[turn][0].tokens)
            heads[turn] = next(documents[turn])


def document_rows(
    source: Source, split: str, kind: DocumentKind = "row", rows_per_document: int = 100
) -> Iterator[list[str]]:
    """The rows of every document of a split once, in order, as they are read."""
    where = f"split '{split}' of '{source.name}'"
    return assemble((text_of(row, where) for row in source.rows(split)), kind, rows_per_document)


def raw_documents(
    source: Source, split: str, kind: DocumentKind = "row", rows_per_document: int = 100
) -> Iterator[list[str]]:
    """The sentences of every document of a split once, in order, without empty documents."""
    for rows in document_rows(source, split, kind, rows_per_document):
        if sentences := [sentence for sentence in sentences_of(rows, kind) if sentence]:
            yield sentences


def documents_once(
    source: Source, split: str, tokenizer: Any, kind: DocumentKind = "row", rows_per_document: int = 100
) -> Iterator[Document]:
    """The same, tokenised."""
    tokenize = SentenceTokenizer(tokenizer)
    for sentences in raw_documents(source, split, kind, rows_per_document):
        document = tokenize([sentences])[0]
        if len(document.tokens):
            yield document


__all__ = [
    "Document",
    "DocumentKind",
    "DocumentReader",
    "MixedReader",
    "document_rows",
    "documents_once",
    "raw_documents",
]
