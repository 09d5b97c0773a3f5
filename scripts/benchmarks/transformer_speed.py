"""Our Transformer beside torch.nn.Transformer: seconds of a training step; and translation with and without the cache.

    python scripts/benchmarks/transformer_speed.py --output results.json

Both networks have the same sizes, embeddings, positions, dropout, smoothed loss, optimiser and batches, and take their steps
in turns within one process. Sources and targets of a batch differ in length, as those of real batches by token count do.
torch.nn.Transformer projects every position onto the vocabulary, ours those that hold a token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_papers.papers.transformer.configuration_transformer import PaperTransformerConfig
from hf_papers.papers.transformer.modeling_transformer import (
    IGNORED,
    PaperTransformerForSeq2SeqLM,
    shift_right,
    sinusoids,
)
from hf_papers.papers.transformer.training_transformer import with_label_positions
from hf_papers.training.run import command_line, current_commit, describe_hardware, installed_versions


SMOOTHING = 0.1
Inputs = dict[str, torch.Tensor]


class Reference(nn.Module):
    """torch.nn.Transformer with what it lacks for translation: tied embeddings, sinusoids, output layer, smoothed loss."""

    def __init__(self, config: PaperTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.tokens.weight, std=config.d_model**-0.5)
        self.register_buffer("positions", sinusoids(config.max_position_embeddings, config.d_model), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = nn.Transformer(
            config.d_model,
            config.num_heads,
            config.num_encoder_layers,
            config.num_decoder_layers,
            config.d_ff,
            config.dropout,
            batch_first=True,
        )
        for module in self.transformer.modules():  # the paper drops outputs of sub-layers only
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = config.attention_dropout
            if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout.p = config.activation_dropout
        # Post-norm layers have normalised their outputs.
        self.transformer.encoder.norm = self.transformer.decoder.norm = None

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        scaled = self.tokens(tokens) * self.config.d_model**0.5
        return self.dropout(scaled + self.positions[: tokens.shape[1]])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        target = shift_right(labels, self.config.bos_token_id, self.config.pad_token_id)
        length, hidden = target.shape[1], attention_mask == 0
        causal = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        decoded = self.transformer(
            self.embed(input_ids),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
            tgt_is_causal=True,
        )
        logits = F.linear(decoded, self.tokens.weight).flatten(0, 1).float()
        return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, label_smoothing=SMOOTHING)


def random_pairs(rows: int, longest: int, vocab_size: int) -> Inputs:
    """Rows of a batch by token count: none of them shorter than four fifths of the longest."""
    lengths = torch.randint(longest * 4 // 5, longest + 1, (2, rows)).clamp(min=1)
    lengths[:, 0] = longest
    is_token = torch.arange(longest) < lengths[..., None]  # (2, rows, longest)
    tokens = torch.randint(4, vocab_size, (2, rows, longest))
    return {
        "input_ids": tokens[0].masked_fill(~is_token[0], 0),
        "attention_mask": is_token[0].long(),
        "labels": tokens[1].masked_fill(~is_token[1], IGNORED),
    }


def step_of(model: nn.Module, loss_of: Callable[[], torch.Tensor], bf16: bool) -> Callable[[], float]:
    """A function that takes one training step (forward, backward, Adam) and returns its seconds of this process's time."""
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-4, (0.9, 0.98), 1e-9, fused=True)

    def step() -> float:
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - started

    return step


def in_turns(steps: dict[str, Callable[[], float]], repeats: int, ours: str, theirs: str) -> dict[str, Any]:
    """Median seconds of each, and the median over the repetitions of theirs / ours; the first repetition warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name in list(steps) if repeat % 2 else list(steps)[::-1]:
            elapsed = steps[name]()
            if repeat:
                seconds[name].append(round(elapsed, 4))
    ratios = [slow / fast for slow, fast in zip(seconds[theirs], seconds[ours], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "medians": medians, "ratio": round(statistics.median(ratios), 3)}


def training(name: str, sizes: dict[str, Any], tokens: int, longest: int, bf16: bool, repeats: int) -> dict[str, Any]:
    config = PaperTransformerConfig(**sizes)
    ours, theirs = PaperTransformerForSeq2SeqLM(config), Reference(config)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1], f"the networks must be equal in size, not {counts}"
    pairs = random_pairs(tokens // longest, longest, config.vocab_size)
    with_positions = with_label_positions(pairs)
    steps = {
        "hf_papers": step_of(ours, lambda: ours(**with_positions, label_smoothing=SMOOTHING).loss, bf16),
        "torch.nn.Transformer": step_of(theirs, lambda: theirs(**pairs), bf16),
    }
    what = f"training step, {name}, {tokens // longest} x {longest} tokens, {'bfloat16' if bf16 else 'float32'}"
    return {"what": what, **in_turns(steps, repeats, "hf_papers", "torch.nn.Transformer")}


def translating(name: str, sizes: dict[str, Any], rows: int, length: int, beams: int, repeats: int) -> dict[str, Any]:
    """Beam search of `length` tokens from sources as long, with and without the cache."""
    model = PaperTransformerForSeq2SeqLM(PaperTransformerConfig(**sizes)).eval()
    model.generation_config.eos_token_id = None  # random weights might end a text early
    sources = torch.randint(4, model.config.vocab_size, (rows, length))

    def search(use_cache: bool) -> Callable[[], float]:
        def translate() -> float:
            started = time.process_time()
            written = model.generate(
                input_ids=sources,
                attention_mask=torch.ones_like(sources),
                num_beams=beams,
                length_penalty=0.6,
                use_cache=use_cache,
                max_new_tokens=length,
                max_length=None,
            )
            assert written.shape[1] == length + 1
            return time.process_time() - started

        return translate

    steps = {"cache": search(True), "no cache": search(False)}
    what = f"translation, {name}, {rows} texts, beam {beams}, {length} tokens, with the cache against without"
    return {"what": what, **in_turns(steps, repeats, "cache", "no cache")}


SMALL = {
    "vocab_size": 6000,
    "d_model": 224,
    "d_ff": 512,
    "num_heads": 4,
    "num_encoder_layers": 3,
    "num_decoder_layers": 3,
}
MULTI30K = {**SMALL, "dropout": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="steps of each; those of base take a third")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file to write the result to, as JSON")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    few = max(1, options.repeats // 3)
    rows = []
    for measure, arguments in (
        (training, ("3 + 3 x 224", MULTI30K, 2048, 16, True, options.repeats)),
        (training, ("3 + 3 x 224", MULTI30K, 2048, 16, False, options.repeats)),
        (training, ("base", {}, 512, 32, False, few)),
        (translating, ("3 + 3 x 224", MULTI30K, 1, 64, 4, options.repeats)),
        (translating, ("3 + 3 x 224", MULTI30K, 8, 64, 4, options.repeats)),
        (translating, ("base", {}, 1, 64, 4, few)),
    ):
        rows.append(measure(*arguments))
        print(f"{rows[-1]['what']:<95} ratio {rows[-1]['ratio']:.2f}", flush=True)
    result = {
        "what": "seconds of torch.nn.Transformer (or without the cache) over seconds of ours (with it), medians over turns",
        "rows": rows,
        "hardware": describe_hardware(torch.device("cpu"), 1),
        "versions": installed_versions(),
        "commit": current_commit(),
        "command": command_line(),
    }
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"Written: {options.output}")


if __name__ == "__main__":
    main()
