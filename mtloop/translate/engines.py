"""What runs a model for the Translator: transformers' generate, or CTranslate2 on an export.

An engine gets encoded texts and returns hypotheses in one form, so that the two can be compared piece by piece.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.errors import UserError
from mtloop.generation import Hypothesis, generate_n_best
from mtloop.model import first_tokens, load_model, position_limit, settle_generation
from mtloop.runtime import Runtime
from mtloop.tokenization import load_tokenizer, set_languages, source_prefix, target_language_token
from mtloop.translate.shell import RECORD_NAME

TRANSFORMERS, CTRANSLATE2 = "transformers", "ctranslate2"
# Where neither the model nor the caller names a longest text, in tokens.
DEFAULT_MAX_LENGTH = 512
# transformers' own default generation length, which no translation model means.
UNSET_MAX_LENGTH = 20
_IDS = List(Value("int32"))


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a caller asks of an engine; None leaves it to the model.

    Attributes:
        source_lang: Language code.
        target_lang: Language code.
        source_prefix: Put before every text.
        num_beams: Beams of the search.
        max_source_length: Tokens of a text, at most.
        max_target_length: Tokens of a translation, at most.
        trust_remote_code: Whether code of the repository may run.
    """

    source_lang: str | None = None
    target_lang: str | None = None
    source_prefix: str | None = None
    num_beams: int | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None
    trust_remote_code: bool = False


class Engine(Protocol):
    """A model that is ready to translate.

    Attributes:
        tokenizer: Encodes for it and decodes.
        source_prefix: Put before every text; None for nothing.
        num_beams: Beams that hold.
        max_source_length: Tokens of a text, at most.
        max_target_length: Tokens of a translation, at most, decoder start included.
    """

    tokenizer: PreTrainedTokenizerBase
    source_prefix: str | None
    num_beams: int
    max_source_length: int
    max_target_length: int

    def set_languages(self, source_lang: str | None, target_lang: str | None) -> None:
        """Translate between other languages from now on; a prefix that was asked for stays.

        Raises:
            UserError: a language that the model does not have.
        """

    def search(
        self, ids: list[list[int]], batches: list[NDArray[np.int64]], runtime: Runtime, *, n_best: int
    ) -> list[list[Hypothesis]]:
        """Translate N encoded texts, each once. Collective: every rank calls it with the same.

        Args:
            ids: N texts as piece ids.
            batches: Indices of each batch, from plan_evaluation.
            runtime: The ranks to share the work with.
            n_best: Translations of each text, at most num_beams.

        Returns:
            N lists of n_best hypotheses, best first; each begins with the decoder's start.
        """


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


def settle_prefix(wishes: Wishes, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what is put before every source: as asked, else what the model needs.

    Raises:
        UserError: a model of several languages that is not told which is wanted.
    """
    if wishes.source_prefix is not None:
        return wishes.source_prefix
    return source_prefix(model_config, tokenizer, wishes.source_lang, wishes.target_lang, must_choose=True)


def settle_lengths(wishes: Wishes, named: int | None, limit: int | None) -> tuple[int, int]:
    """Return the longest source and target that hold.

    Args:
        wishes: What the caller asks for.
        named: The model's own longest translation, None where it names none.
        limit: Positions of the model, None where it takes any.

    Raises:
        UserError: naming the flag that asks for more than the model has.
    """
    source = wishes.max_source_length or limit or DEFAULT_MAX_LENGTH
    target = wishes.max_target_length or named or limit or DEFAULT_MAX_LENGTH
    for flag, length in (("max_source_length", source), ("max_target_length", target)):
        if limit is not None and length > limit:
            raise UserError(f"--{flag} {length}: this model has {limit} positions; give at most {limit}")
    return source, target


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
    from mtloop.translate.exported import CTranslate2Engine

    return CTranslate2Engine(name, wishes, runtime)
