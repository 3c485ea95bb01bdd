"""The interface of the engines, the engine on transformers' generate, and how a folder is opened with its engine.

An engine takes encoded texts and returns hypotheses in one form, so that two engines can be compared token by token.
CTranslate2's engine is in ctranslate2.py, which is imported only for an export. Shape letter: N texts.
"""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.errors import UserError
from mtloop.generation import RECORD_NAME
from mtloop.generation.generate import Hypothesis, Planned, SearchOptions, generate_rows
from mtloop.generation.trial import try_model
from mtloop.model.generation_config import check_positions, configure_generation, first_tokens, position_limit
from mtloop.model.loading import load_model
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.loading import for_languages, load_tokenizer, source_prefix, target_language_token

if TYPE_CHECKING:
    from typing_extensions import Self

TRANSFORMERS = "transformers"
CTRANSLATE2 = "ctranslate2"
# The maximum number of tokens if neither the model nor the caller gives one.
DEFAULT_MAX_LENGTH = 512
# transformers' default generation length, which no translation model intends.
UNSET_MAX_LENGTH = 20
_IDS = List(Value("int32"))


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of a caller; None keeps the model's own.

    Attributes:
        source_lang: Language code.
        target_lang: Language code.
        source_prefix: Put before every text.
        num_beams: Beams of the search.
        max_source_length: Maximum tokens of a text.
        max_target_length: Maximum tokens of a translation.
        cuts_lengths: Whether lengths beyond the positions of the model are reduced to them instead of refused.
        trust_remote_code: Whether code of the repository may run.
    """

    source_lang: str | None = None
    target_lang: str | None = None
    source_prefix: str | None = None
    num_beams: int | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None
    cuts_lengths: bool = False
    trust_remote_code: bool = False


class Engine(ABC):
    """A model that is ready to translate.

    Attributes:
        tokenizer: Encodes texts and decodes translations.
        source_prefix: Put before every text; None for none.
        num_beams: Beams of the search.
        max_source_length: Maximum tokens of a text.
        max_target_length: Maximum tokens of a translation, decoder start included.
    """

    tokenizer: PreTrainedTokenizerBase
    source_prefix: str | None
    num_beams: int
    max_source_length: int
    max_target_length: int
    _asked: EngineOptions
    _model_config: Any

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Return this engine for the languages of another instance of its tokenizer."""
        other = copy.copy(self)
        other.tokenizer = tokenizer
        other._resolve_first_tokens()
        return other

    def for_languages(self, source_lang: str | None, target_lang: str | None) -> Self:
        """Return this engine for other languages; a prefix given by the caller stays.

        Raises:
            UserError: A language that the model does not have.
        """
        other = self.for_tokenizer(for_languages(self.tokenizer, source_lang, target_lang))
        asked = replace(self._asked, source_lang=source_lang, target_lang=target_lang)
        other.source_prefix = resolve_prefix(asked, self._model_config, other.tokenizer)
        return other

    @abstractmethod
    def _resolve_first_tokens(self) -> None:
        """Set the first tokens of a translation for the tokenizer's target language."""

    @abstractmethod
    def search(
        self, encoded: Dataset, batches: Sequence[Planned], runtime: Runtime, options: SearchOptions
    ) -> list[list[Hypothesis]]:
        """Translate N encoded texts, each once. Collective: every rank passes the same.

        Args:
            encoded: Columns input_ids and labels (not read), N rows; see as_encoded.
            batches: Indices of each batch, from plan_evaluation.
            runtime: The ranks that share the work.
            options: What to return.

        Returns:
            N lists of n_best hypotheses, best first; each begins with the decoder start.

        Raises:
            UserError: An option that the engine does not support.
        """


class TransformersEngine(Engine):
    """The engine on transformers' generate, or on greedy search in fixed shapes on XLA."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        asked: EngineOptions,
        max_source_length: int,
        source_prefix: str | None = None,
    ) -> None:
        """Wrap a model with a configured generation config, on its device; evaluate it in eval mode.

        Args:
            network: The model, unwrapped; changes of its weights in place take effect.
            tokenizer: Set to its languages.
            asked: The languages, and a prefix if the caller gave one.
            max_source_length: Maximum tokens of a text.
            source_prefix: Put before every text.
        """
        self.network, self.tokenizer = network, tokenizer
        self._asked, self._model_config = asked, network.config
        self.source_prefix = source_prefix
        generation: Any = network.generation_config
        self.num_beams = generation.num_beams
        self.max_source_length, self.max_target_length = max_source_length, int(generation.max_length)
        self._first: dict[str, int] = {}  # first tokens that differ from the generation config's

    @classmethod
    def load(cls, name: str, asked: EngineOptions, runtime: Runtime) -> Self:
        """Load a model from a folder or the Hub. Collective.

        Raises:
            UserError: Naming the flag and the remedy.
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
        max_source_length, max_target_length = resolve_lengths(
            asked,
            own if isinstance(own, int) and own > 1 and own != UNSET_MAX_LENGTH else None,
            position_limit(network.config),
        )
        configure_generation(
            network,
            tokenizer,
            num_beams=asked.num_beams,
            max_length=max_target_length,
            forced_bos_token_id=target_language_token(tokenizer),
        )
        network = network.to(runtime.device).eval()
        runtime.on_main(lambda: try_model(network, tokenizer, runtime, flag=f"--model_name_or_path {name}"))
        return cls(network, tokenizer, asked=asked, max_source_length=max_source_length, source_prefix=prefix)

    def _resolve_first_tokens(self) -> None:
        first = first_tokens(self.network, self.tokenizer, target_language_token(self.tokenizer))
        self._first = {name: token_id for name, token_id in first.items() if token_id is not None}

    def search(
        self, encoded: Dataset, batches: Sequence[Planned], runtime: Runtime, options: SearchOptions
    ) -> list[list[Hypothesis]]:
        """Translate; see Engine."""
        pad_id = self.tokenizer.pad_token_id
        assert pad_id is not None
        return generate_rows(self.network, encoded, batches, runtime, options, pad_id=pad_id, overrides=self._first)


def open_engine(name: str, asked: EngineOptions, runtime: Runtime, *, engine: str | None) -> Engine:
    """Open a model with the given engine, by default the one that its folder is made for. Collective.

    Raises:
        UserError: Naming the flag and the remedy.
    """
    is_export = (Path(name) / RECORD_NAME).is_file()
    if engine == CTRANSLATE2 and not is_export:
        raise UserError(
            f"--engine: ctranslate2 needs an export of mtloop (got {name}). Make one with "
            f"`mtloop export --model {name} -o DIR --format ctranslate2` and give DIR as --model."
        )
    if engine == TRANSFORMERS and is_export:
        raise UserError(
            f"--model {name}: transformers cannot run an export to CTranslate2. Give the model it was made from."
        )
    if not is_export:
        return TransformersEngine.load(name, asked, runtime)
    from mtloop.generation.ctranslate2 import CTranslate2Engine

    return CTranslate2Engine(name, asked, runtime)


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
        UserError: Naming the flags of train.py; see errors.rename_flag.
    """
    tokenizer = runtime.one_first(
        lambda: load_tokenizer(
            name, source_lang=source_lang, target_lang=target_lang, trust_remote_code=trust_remote_code
        )
    )
    attention = "eager" if runtime.device.type == "cpu" else None

    def warn(line: str) -> None:  # standard output may be the translations
        if runtime.is_main:
            print(line, file=sys.stderr)

    def load() -> Any:
        return load_model(
            name, tokenizer, dropout=None, attention=attention, trust_remote_code=trust_remote_code, say=warn
        )

    return tokenizer, runtime.one_first(load)


def resolve_prefix(asked: EngineOptions, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the prefix of every source: the caller's, or what the model needs.

    Raises:
        UserError: A model of several languages needs to be told the target language.
    """
    if asked.source_prefix is not None:
        return asked.source_prefix
    return source_prefix(model_config, tokenizer, asked.source_lang, asked.target_lang, must_choose=True)


def resolve_lengths(asked: EngineOptions, own: int | None, limit: int | None) -> tuple[int, int]:
    """Return the maximum tokens of a source and of a translation.

    Args:
        asked: Lengths given by the caller.
        own: The model's maximum length of a translation, None if it has none.
        limit: Positions of the model, None if it takes any.

    Raises:
        UserError: Naming the flag of a length beyond the positions.
    """
    source = asked.max_source_length or limit or DEFAULT_MAX_LENGTH
    target = asked.max_target_length or own or limit or DEFAULT_MAX_LENGTH
    if limit is not None and asked.cuts_lengths:
        source, target = min(source, limit), min(target, limit)
    check_positions(limit, max_source_length=source, max_target_length=target)
    return source, target


def as_encoded(ids: list[list[int]]) -> Dataset:
    """Return N texts as an encoded data set.

    Args:
        ids: N lists of token ids, none empty (Marian's normalizer can leave only </s>).
    """
    return Dataset.from_dict(
        {"input_ids": ids, "labels": [[0]] * len(ids)}, features=Features({"input_ids": _IDS, "labels": _IDS})
    )
