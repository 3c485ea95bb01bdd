"""Run a model with transformers' generate, or open the engine that a folder is of.

An engine gets encoded texts and returns hypotheses in one form, so that the two can be compared piece by piece.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.errors import UserError
from mtloop.generation import RECORD_NAME
from mtloop.generation.engine import (
    CTRANSLATE2,
    TRANSFORMERS,
    UNSET_MAX_LENGTH,
    Engine,
    EngineOptions,
    resolve_lengths,
    resolve_prefix,
)
from mtloop.generation.generate import Hypothesis, Planned, generate_rows
from mtloop.model.generation_config import configure_generation, first_tokens, position_limit
from mtloop.model.loading import load_model
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.loading import for_languages, load_tokenizer, target_language_token

if TYPE_CHECKING:
    from typing_extensions import Self


class TransformersEngine:
    """transformers' generate, or greedy search in fixed shapes on XLA."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        asked: EngineOptions,
        max_source_length: int,
        source_prefix: str | None = None,
    ) -> None:
        """Wrap a model whose generation config is settled, on its device; evaluate it in eval mode.

        Args:
            network: The model, unwrapped; whoever changes its weights in place translates with the new ones.
            tokenizer: Set to its languages.
            asked: The languages, and a prefix that was asked for.
            max_source_length: Tokens of a text, at most.
            source_prefix: Put before every text.
        """
        self.network, self.tokenizer, self._asked = network, tokenizer, asked
        self.source_prefix = source_prefix
        generation: Any = network.generation_config
        self.num_beams: int = generation.num_beams
        self.max_source_length, self.max_target_length = max_source_length, int(generation.max_length)
        self._first: dict[str, int] = {}  # what a translation begins with, where it is not as the model's config says

    @classmethod
    def load(cls, name: str, asked: EngineOptions, runtime: Runtime) -> Self:
        """Load a model of a folder or of the Hub. Collective.

        Raises:
            UserError: naming the flag and the remedy.
        """
        tokenizer, network = load_pair(
            name,
            runtime,
            source_lang=asked.source_lang,
            target_lang=asked.target_lang,
            trust_remote_code=asked.trust_remote_code,
        )
        prefix = resolve_prefix(asked, network.config, tokenizer)
        own = network.generation_config.max_length
        named = own if own is not None and own != UNSET_MAX_LENGTH else None
        max_source_length, max_target_length = resolve_lengths(asked, named, position_limit(network))
        configure_generation(
            network,
            tokenizer,
            num_beams=asked.num_beams,
            max_length=max_target_length,
            forced_bos_token_id=target_language_token(tokenizer),
        )
        network = network.to(runtime.device).eval()
        return cls(network, tokenizer, asked=asked, max_source_length=max_source_length, source_prefix=prefix)

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Change the languages; see Engine."""
        other = copy.copy(self)
        other.tokenizer = tokenizer
        first = first_tokens(self.network, tokenizer, target_language_token(tokenizer))
        other._first = {name: token_id for name, token_id in first.items() if token_id is not None}
        return other

    def for_languages(self, source_lang: str | None, target_lang: str | None) -> Self:
        """Change the languages; see Engine."""
        other = self.for_tokenizer(for_languages(self.tokenizer, source_lang, target_lang))
        asked = replace(self._asked, source_lang=source_lang, target_lang=target_lang)
        other.source_prefix = resolve_prefix(asked, self.network.config, other.tokenizer)
        return other

    def search(
        self,
        encoded: Dataset,
        batches: Sequence[Planned],
        runtime: Runtime,
        *,
        n_best: int = 1,
        with_scores: bool = False,
        max_length_ratio: float | None = None,
    ) -> list[list[Hypothesis]]:
        """Translate; see Engine."""
        assert self.tokenizer.pad_token_id is not None
        return generate_rows(
            self.network,
            encoded,
            batches,
            runtime,
            pad_id=self.tokenizer.pad_token_id,
            n_best=n_best,
            with_scores=with_scores,
            options=self._first,
            max_length_ratio=max_length_ratio,
        )


def load_pair(
    name: str,
    runtime: Runtime,
    *,
    source_lang: str | None = None,
    target_lang: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedTokenizerBase, Any]:
    """Load the tokenizer and the model of a folder or of the Hub, for translating. Collective.

    Raises:
        UserError: naming the flags of train.py; see errors.renamed.
    """
    tokenizer = runtime.one_first(
        lambda: load_tokenizer(
            name, source_lang=source_lang, target_lang=target_lang, trust_remote_code=trust_remote_code
        )
    )
    attention = "eager" if runtime.device.type == "cpu" else None
    network = runtime.one_first(
        lambda: load_model(name, tokenizer, dropout=None, attention=attention, trust_remote_code=trust_remote_code)
    )
    return tokenizer, network


def open_engine(name: str, asked: EngineOptions, runtime: Runtime, *, engine: str | None) -> Engine:
    """Open a model with the engine that is asked for, else with the one that its folder is of. Collective.

    Raises:
        UserError: naming the flag and the remedy.
    """
    is_export = (Path(name) / RECORD_NAME).is_file()
    if engine == CTRANSLATE2 and not is_export:
        raise UserError(
            f"--engine ctranslate2: {name} is no export of mtloop; make one with "
            f"`mtloop export --model {name} -o DIR --format ctranslate2` and give DIR as --model"
        )
    if engine == TRANSFORMERS and is_export:
        raise UserError(
            f"--model {name}: an export to CTranslate2, which transformers cannot run; give the model it was made of"
        )
    if not is_export:
        return TransformersEngine.load(name, asked, runtime)
    from mtloop.generation.ctranslate2 import CTranslate2Engine

    return CTranslate2Engine(name, asked, runtime)
