"""Load or build the seq2seq model, check it against its tokenizer, and settle its generation config.

Must not know data, ranks or training. Shape letters: B sentences, T target tokens, V vocabulary.
"""

from mtloop.model.generating import (
    check_positions,
    first_tokens,
    position_limit,
    settle_generation,
    shift_right,
    static_mask,
)
from mtloop.model.loading import (
    MAX_SPARE_ROWS,
    MODEL_SIZES,
    build_model,
    first_line,
    layers_of,
    load_config,
    load_model,
)
from mtloop.model.scoring import batch_loss_sum

__all__ = [
    "MAX_SPARE_ROWS",
    "MODEL_SIZES",
    "batch_loss_sum",
    "build_model",
    "check_positions",
    "first_line",
    "first_tokens",
    "layers_of",
    "load_config",
    "load_model",
    "position_limit",
    "settle_generation",
    "shift_right",
    "static_mask",
]
