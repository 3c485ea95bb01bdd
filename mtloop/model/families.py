"""Define the table of model families: one row for each `model_type` of transformers.

A new family is a new row. Must not import torch or transformers: the tokenizers read this table too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """Describe the models of one `model_type`; a default holds for most of them.

    Attributes:
        source_prefix: The prefix of every source. "task": the task in words, as T5 was trained. "task of several": the
            same, only if one run has several pairs; both: the token of the target language, if the vocabulary has such
            tokens (MADLAD-400). "language": the token of the target language, if the tokenizer has several. None: no
            prefix.
        decoder_start: The first token of the decoder's input. "config": decoder_start_token_id of the config. "last
            label": the last real label, for mBART the language token. "model": from the model's own
            prepare_decoder_input_ids_from_labels.
        attention: Names of the query and value projections, the default layers of a LoRA adapter. None: try the names
            of the other rows.
        has_plain_head: Whether the logits are the output layer's, plus final_logits_bias where there is one. Then the
            loss needs the logits of real target positions only.
        positions: "table": at most max_position_embeddings. "extended": a table of sines that transformers extends as
            needed. "relative": biases within the layers, for any length.
        frozen: Names of modules that are never trained: from_pretrained (transformers 5.23) unfreezes tables of sines,
            which get no gradient, and data parallelism waits for every gradient.
        ctranslate2_loader: The class of ctranslate2.converters.transformers that reads the weights; None: no export.
        ctranslate2_needs: An attribute of the config and the version of transformers that introduced it; without it
            transformers computes other outputs than CTranslate2.
    """

    source_prefix: Literal["task", "task of several", "language"] | None = None
    decoder_start: Literal["config", "last label", "model"] = "config"
    attention: tuple[str, str] | None = ("q_proj", "v_proj")
    has_plain_head: bool = True
    positions: Literal["table", "extended", "relative"] = "table"
    frozen: tuple[str, ...] = ()
    ctranslate2_loader: str | None = None
    ctranslate2_needs: tuple[str, str] | None = None


_SINES = ("embed_positions",)
_T5 = Family(source_prefix="task of several", attention=("q", "v"), positions="relative")

FAMILIES: dict[str, Family] = {
    "marian": Family(source_prefix="language", frozen=_SINES, ctranslate2_loader="BartLoader"),  # BART, other norms
    "t5": replace(_T5, source_prefix="task", ctranslate2_loader="T5Loader"),
    "mt5": replace(_T5, ctranslate2_loader="MT5Loader"),
    # Before transformers 5.24 the outputs and positions differed: log-probabilities by whole nats.
    "umt5": replace(_T5, ctranslate2_loader="UMT5Loader", ctranslate2_needs=("scale_decoder_outputs", "5.24")),
    "longt5": replace(_T5, has_plain_head=False),
    "bart": Family(ctranslate2_loader="BartLoader"),
    "mbart": Family(decoder_start="last label", ctranslate2_loader="MBartLoader"),
    "plbart": Family(decoder_start="last label", ctranslate2_loader="BartLoader"),
    "pegasus": Family(frozen=_SINES, ctranslate2_loader="PegasusLoader"),
    "m2m_100": Family(positions="extended", ctranslate2_loader="M2M100Loader"),  # and NLLB
    "prophetnet": Family(attention=("query_proj", "value_proj"), has_plain_head=False),
    "fsmt": Family(decoder_start="last label", frozen=_SINES, has_plain_head=False),
}
UNLISTED = Family(decoder_start="model", attention=None, has_plain_head=False)


def family_of(model_config: Any) -> Family:
    """Return the row of a model's family, UNLISTED if there is none."""
    return FAMILIES.get(model_config.model_type, UNLISTED)


def attention_names(family: Family) -> Iterable[tuple[str, str]]:
    """Return the names that a family's query and value projections may have, in the order to try them."""
    if family.attention is not None:
        return (family.attention,)
    return dict.fromkeys(row.attention for row in FAMILIES.values() if row.attention is not None)
