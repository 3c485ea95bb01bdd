"""The interface of the engines that run a model: encoded texts in, hypotheses in one form out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from mtloop.generation.generate import Hypothesis, Planned
from mtloop.model.generation_config import check_positions
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.loading import source_prefix

if TYPE_CHECKING:
    from typing_extensions import Self

TRANSFORMERS = "transformers"
CTRANSLATE2 = "ctranslate2"
# Where neither the model nor the caller names a longest text, in tokens.
DEFAULT_MAX_LENGTH = 512
# transformers' own default generation length, which no translation model means.
UNSET_MAX_LENGTH = 20
_IDS = List(Value("int32"))


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What a caller asks of an engine; None leaves it to the model.

    Attributes:
        source_lang: Language code.
        target_lang: Language code.
        source_prefix: Put before every text.
        num_beams: Beams of the search.
        max_source_length: Tokens of a text, at most.
        max_target_length: Tokens of a translation, at most.
        cuts_lengths: Lengths beyond the positions of the model are cut to them instead of refused.
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

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Return this engine for the languages that another instance of its tokenizer is set to."""

    def for_languages(self, source_lang: str | None, target_lang: str | None) -> Self:
        """Return this engine for other languages; a prefix that was asked for stays.

        Raises:
            UserError: a language that the model does not have.
        """

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
        """Translate N encoded texts, each once. Collective: every rank calls it with the same.

        Args:
            encoded: Columns input_ids and labels (not looked at), N rows; see as_encoded.
            batches: Indices of each batch, from plan_evaluation.
            runtime: The ranks to share the work with.
            n_best: Translations of each text, at most num_beams.
            with_scores: Whether the scores are wanted; without, they may be 0.
            max_length_ratio: As in generate_rows.

        Returns:
            N lists of n_best hypotheses, best first; each begins with the decoder's start.
        """


def as_encoded(ids: list[list[int]]) -> Dataset:
    """Return N texts as an encoded data set.

    Args:
        ids: N lists of token ids, none empty (Marian's normaliser can leave nothing but </s>).
    """
    return Dataset.from_dict(
        {"input_ids": ids, "labels": [[0]] * len(ids)}, features=Features({"input_ids": _IDS, "labels": _IDS})
    )


def resolve_prefix(asked: EngineOptions, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what is put before every source: as asked, else what the model needs.

    Raises:
        UserError: a model of several languages that is not told which is wanted.
    """
    if asked.source_prefix is not None:
        return asked.source_prefix
    return source_prefix(model_config, tokenizer, asked.source_lang, asked.target_lang, must_choose=True)


def resolve_lengths(asked: EngineOptions, named: int | None, limit: int | None) -> tuple[int, int]:
    """Return the longest source and target that hold.

    Args:
        asked: What the caller asks for.
        named: The model's own longest translation, None where it names none.
        limit: Positions of the model, None where it takes any.

    Raises:
        UserError: naming the flag that asks for more than the model has.
    """
    source = asked.max_source_length or limit or DEFAULT_MAX_LENGTH
    target = asked.max_target_length or named or limit or DEFAULT_MAX_LENGTH
    if limit is not None and asked.cuts_lengths:
        source, target = min(source, limit), min(target, limit)
    check_positions(limit, max_source_length=source, max_target_length=target)
    return source, target
