"""What runs a model for the Translator: transformers' generate, or CTranslate2 on an export.

An engine gets encoded texts and returns hypotheses in one form, so that the two can be compared piece by piece.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.errors import UserError
from mtloop.generation import Hypothesis, generate_n_best
from mtloop.generation.engine import (
    CTRANSLATE2,
    RECORD_NAME,
    TRANSFORMERS,
    UNSET_MAX_LENGTH,
    Engine,
    Wishes,
    settle_lengths,
    settle_prefix,
)
from mtloop.model import first_tokens, load_model, position_limit, settle_generation
from mtloop.runtime import Runtime
from mtloop.tokenization import load_tokenizer, set_languages, target_language_token

_IDS = List(Value("int32"))


class TransformersEngine:
    """transformers' generate. `network` is the model in eval mode on the device, its generation config settled."""

    def __init__(self, name: str, wishes: Wishes, runtime: Runtime) -> None:
        """Load a model. Collective.

        Raises:
            UserError: naming the flag and the remedy.
        """
        tokenizer, network = load_pair(
            name,
            runtime,
            source_lang=wishes.source_lang,
            target_lang=wishes.target_lang,
            trust_remote_code=wishes.trust_remote_code,
        )
        self._wishes = wishes
        self.source_prefix = settle_prefix(wishes, network.config, tokenizer)
        limit = position_limit(network)
        own = network.generation_config.max_length
        named = own if own is not None and own != UNSET_MAX_LENGTH else None
        self.tokenizer = tokenizer
        self.network: PreTrainedModel = network.to(runtime.device).eval()
        self.max_source_length, self.max_target_length = settle_lengths(wishes, named, limit)
        self.num_beams = settle_generation(
            network,
            tokenizer,
            num_beams=wishes.num_beams,
            max_length=self.max_target_length,
            forced_bos_token_id=target_language_token(tokenizer),
        )

    def set_languages(self, source_lang: str | None, target_lang: str | None) -> None:
        """Change the languages; see Engine."""
        wishes = replace(self._wishes, source_lang=source_lang, target_lang=target_lang)
        set_languages(self.tokenizer, source_lang, target_lang)
        self.source_prefix = settle_prefix(wishes, self.network.config, self.tokenizer)
        language = target_language_token(self.tokenizer)
        for name, token_id in first_tokens(self.network, self.tokenizer, language).items():
            setattr(self.network.generation_config, name, token_id)

    def search(
        self, ids: list[list[int]], batches: list[NDArray[np.int64]], runtime: Runtime, *, n_best: int
    ) -> list[list[Hypothesis]]:
        """Translate; see Engine."""
        pad_id = self.tokenizer.pad_token_id
        assert pad_id is not None
        # No row may be without tokens (Marian's normaliser can leave none but </s>); labels are not looked at.
        encoded = Dataset.from_dict(
            {"input_ids": ids, "labels": [[0]] * len(ids)}, features=Features({"input_ids": _IDS, "labels": _IDS})
        )
        return generate_n_best(self.network, encoded, batches, runtime, pad_id=pad_id, n_best=n_best)


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
        UserError: in the words of train.py, which name the flags of TRAINING_FLAGS.
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


def open_engine(name: str, wishes: Wishes, runtime: Runtime, *, engine: str | None) -> Engine:
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
        return TransformersEngine(name, wishes, runtime)
    from mtloop.generation.ctranslate2 import CTranslate2Engine

    return CTranslate2Engine(name, wishes, runtime)
