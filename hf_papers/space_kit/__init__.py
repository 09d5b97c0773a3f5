"""What every Space shares: look, header, loading of the checkpoint, errors as sentences, and the launch.

A Space makes no request of its own: fonts and styles are served by Gradio itself, telemetry is off, and the checkpoint
lies beside the app unless the environment variable MODEL_ID names another folder or Hub repository.
"""

import os


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when a Blocks is built; exactly this spelling
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from hf_papers.space_kit.checkpoints import (
    checkpoint_results,
    checkpoint_source,
    count_parameters,
    load_model,
    load_processor,
    require_checkpoint,
)
from hf_papers.space_kit.digits import DigitPad, example_digit, to_digit
from hf_papers.space_kit.drawing import (
    decode_drawing,
    drawing_pad,
    encode_drawing,
    open_picture,
    upright_picture,
)
from hf_papers.space_kit.page import (
    ACCENT,
    CONTRAST,
    QUIET,
    UNLISTED,
    caption,
    facts,
    footer,
    header,
    hint,
    launch,
    meters,
    percent,
    picture,
    run,
)
from hf_papers.space_kit.pictures import picture_grid, to_picture
from hf_papers.space_kit.sampling import draw_seed, sample_tab, walk_tab
from hf_papers.space_kit.visitors import MAX_SEED, bounded, errors_as_sentences, valid_seed, whole_number


__all__ = [
    "ACCENT",
    "CONTRAST",
    "MAX_SEED",
    "QUIET",
    "UNLISTED",
    "DigitPad",
    "bounded",
    "caption",
    "checkpoint_results",
    "checkpoint_source",
    "count_parameters",
    "decode_drawing",
    "draw_seed",
    "drawing_pad",
    "encode_drawing",
    "errors_as_sentences",
    "example_digit",
    "facts",
    "footer",
    "header",
    "hint",
    "launch",
    "load_model",
    "load_processor",
    "meters",
    "open_picture",
    "percent",
    "picture",
    "picture_grid",
    "require_checkpoint",
    "run",
    "sample_tab",
    "to_digit",
    "to_picture",
    "upright_picture",
    "valid_seed",
    "walk_tab",
    "whole_number",
]
