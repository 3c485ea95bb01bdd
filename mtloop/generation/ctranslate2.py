"""CTranslate2's engine: a folder of `mtloop export` searched as transformers' generate would search the model.

Owns what an export says of itself (Record) and how generate's settings are called in CTranslate2.

Where the two differ, in CTranslate2 4.8 and transformers 5.24:

- The score of both is the log-probability by length ** length_penalty; the end counts, the decoder's start does not.
- generate with early_stopping unset goes on while the best open beam, by its length so far, beats the worst finished
  one; CTranslate2 stops at num_beams x patience finished ones. See PATIENCE.
- generate norms before it strikes a forbidden piece out, CTranslate2 after; such pieces are all but impossible.
- CTranslate2 does not force an end upon what is cut, so it is added where the model's settings ask for it.
- A text of which no piece is left is translated by nothing at all.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedTokenizerBase

from mtloop.atomic import json_text, read_json
from mtloop.errors import UserError
from mtloop.generation import RECORD_NAME
from mtloop.generation.engine import CTRANSLATE2, EngineOptions, resolve_lengths, resolve_prefix
from mtloop.generation.generate import Answer, Hypothesis, Planned, gather_n_best, share_batches
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.loading import for_languages, load_tokenizer, target_language_token

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT_VERSION = 1
TOKENIZER_DIR = "tokenizer"
# Finished hypotheses that are waited for, in beams, where generate's early_stopping is unset. Of 1,000 sentences of the
# demo after 2 epochs, with 4 beams, 964 came out as from generate with 1, 992 with 1.5, 995 with 2, 996 with 3 and 4,
# in 2.6, 3.2, 3.1, 3.2 and 3.6 s (generate: 12.1).
PATIENCE = 2.0


@dataclass(frozen=True, kw_only=True)
class Search:
    """How generate searches with the model that was exported: its generation config, as far as CTranslate2 has it.

    Attributes:
        num_beams: Unless others are asked for.
        max_length: Tokens of a translation, decoder start included.
        min_length: Likewise; no end comes before.
        position_limit: Positions of the model; None where it takes any.
        decoder_start_id: Piece that the decoder sees first.
        forced_bos_id: Piece that comes behind it in any case.
        language_id: The target language's piece; where it is one of these two, another language takes its place.
        eos_ids: Pieces that end a translation.
        has_forced_end: The last piece of a translation that is cut is an end.
        bad_words: Piece sequences that never come out.
        length_penalty: Power of the length that a score is divided by.
        repetition_penalty: Above 1 makes pieces that have come before less likely.
        no_repeat_ngram_size: Sequences of this length come once; 0 for no such thing.
        stops_early: Whether to stop as soon as num_beams hypotheses are finished.
    """

    num_beams: int
    max_length: int
    decoder_start_id: int
    eos_ids: list[int]
    min_length: int = 0
    position_limit: int | None = None
    forced_bos_id: int | None = None
    language_id: int | None = None
    has_forced_end: bool = False
    bad_words: list[list[int]] = field(default_factory=list)
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stops_early: bool = False

    @property
    def starts_with_language(self) -> bool:
        """Whether the decoder's start is the target language (mBART): CTranslate2 is then told it with each text."""
        return self.language_id is not None and self.decoder_start_id == self.language_id


@dataclass(frozen=True, kw_only=True)
class Record:
    """mtloop_export.json.

    Attributes:
        model: What was exported, as it was named.
        run_id: The run that trained it, where it is known.
        step: Its step, likewise.
        quantization: As it was asked for; None keeps fp32.
        versions: Of the libraries that made it.
        search: The generation settings.
        parity: A report for each test set that both engines have translated.
    """

    model: str
    run_id: str | None
    step: int | None
    quantization: str | None
    versions: dict[str, str]
    search: Search
    parity: list[dict[str, Any]] = field(default_factory=list)
    format: str = CTRANSLATE2
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write the file into the folder of the export.

        Raises:
            OSError: when it cannot be written.
        """
        (folder / RECORD_NAME).write_text(json_text(asdict(self)), encoding="utf-8")


def read_record(folder: Path) -> Record:
    """Read what an export says of itself.

    Raises:
        UserError: naming the file.
    """
    found = read_json(folder / RECORD_NAME)
    try:
        if found["format_version"] > FORMAT_VERSION:
            raise UserError(f"--model {folder}: exported by a newer mtloop; install that one, or export again")
        return Record(**{**found, "search": Search(**found["search"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"--model {folder}: its {RECORD_NAME} is damaged ({error}); export the model again") from error


def import_ctranslate2() -> Any:
    """Return the package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ctranslate2
    except ImportError as error:
        raise UserError(f"ctranslate2 is not installed here ({error}); `pip install ctranslate2`") from error
    return ctranslate2


class CTranslate2Engine:
    """CTranslate2 on an export. It computes as the export was quantised, whatever the runtime's precision."""

    def __init__(self, name: str, asked: EngineOptions, runtime: Runtime) -> None:
        """Load an export. Collective.

        Raises:
            UserError: naming the flag and the remedy.
        """
        folder = Path(name)
        ctranslate2 = import_ctranslate2()
        record = runtime.one_first(lambda: read_record(folder))
        self.search_settings = search = record.search
        self.tokenizer = runtime.one_first(
            lambda: load_tokenizer(
                str(folder / TOKENIZER_DIR), source_lang=asked.source_lang, target_lang=asked.target_lang
            )
        )
        self._asked = asked
        self._model_config = _model_config(folder)
        self.source_prefix = resolve_prefix(asked, self._model_config, self.tokenizer)
        self._resolve_first_tokens()
        self.max_source_length, self.max_target_length = resolve_lengths(
            asked, search.max_length, search.position_limit
        )
        self.num_beams = asked.num_beams or search.num_beams
        is_cuda = runtime.device.type == "cuda"
        try:
            self._translator = ctranslate2.Translator(
                name,
                device="cuda" if is_cuda else "cpu",
                device_index=(runtime.device.index or 0) if is_cuda else 0,
                intra_threads=runtime.num_threads,
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--model {name}: CTranslate2 {version('ctranslate2')} cannot load it ({reason})"
            ) from error
        self._source_pieces = _vocabulary(folder, "source")
        self._target_pieces = _vocabulary(folder, "target")
        self._target_ids = {piece: number for number, piece in enumerate(self._target_pieces)}

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Change the languages; see Engine."""
        other = copy.copy(self)
        other.tokenizer = tokenizer
        other._resolve_first_tokens()
        return other

    def for_languages(self, source_lang: str | None, target_lang: str | None) -> Self:
        """Change the languages; see Engine."""
        other = self.for_tokenizer(for_languages(self.tokenizer, source_lang, target_lang))
        asked = replace(self._asked, source_lang=source_lang, target_lang=target_lang)
        other.source_prefix = resolve_prefix(asked, self._model_config, other.tokenizer)
        return other

    def _resolve_first_tokens(self) -> None:
        """Find what a translation begins with: an export of a multilingual model has all its languages."""
        search = self.search_settings
        language = target_language_token(self.tokenizer)
        self._start_id: int = search.decoder_start_id
        self._forced_ids = [] if search.forced_bos_id is None else [search.forced_bos_id]
        if language is not None and search.starts_with_language:
            self._start_id = language
        if language is not None and search.forced_bos_id == search.language_id:
            self._forced_ids = [language]

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
        """Translate; see Engine.

        Raises:
            UserError: for a max_length_ratio: CTranslate2 has one limit for a batch.
        """
        if max_length_ratio is not None:
            raise UserError(f"--max_length_ratio {max_length_ratio}: CTranslate2 has no such limit; leave it out")
        ids: list[list[int]] = encoded["input_ids"][:]
        return gather_n_best(self._answers(ids, batches, runtime, n_best), len(ids), runtime, n_best=n_best)

    def _answers(self, ids: list[list[int]], batches: Sequence[Any], runtime: Runtime, n_best: int) -> Iterator[Answer]:
        options = {**self._options(), "num_hypotheses": n_best, "return_scores": True, "return_end_token": True}
        prefix = self._prefix()
        pieces = self._source_pieces
        pad_id = self.tokenizer.pad_token_id
        for row_ids in share_batches(batches, runtime):
            sources = [[pieces[number] for number in ids[row]] for row in row_ids]
            results = self._translator.translate_batch(sources, [prefix] * len(sources), **options)
            rows = [self._as_generated(found) for result in results for found in result.hypotheses]
            longest = max(map(len, rows))
            table = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
            yield row_ids, table, torch.tensor([score for result in results for score in result.scores])

    def _prefix(self) -> list[str] | None:
        start = [self._start_id] if self.search_settings.starts_with_language else []
        return self._named(start + self._forced_ids) or None

    def _options(self) -> dict[str, Any]:
        search = self.search_settings
        return {
            "beam_size": self.num_beams,
            "patience": 1.0 if search.stops_early else PATIENCE,
            "length_penalty": search.length_penalty,
            "repetition_penalty": search.repetition_penalty,
            "no_repeat_ngram_size": search.no_repeat_ngram_size,
            "suppress_sequences": [self._named(sequence) for sequence in search.bad_words] or None,
            "end_token": self._named(search.eos_ids),
            "max_input_length": 0,  # nothing is cut behind the caller's back
            # generate's lengths count the decoder's start, CTranslate2's do not; an end that is forced takes a place.
            "max_decoding_length": max(1, self.max_target_length - 1 - search.has_forced_end),
            "min_decoding_length": max(0, search.min_length - 1),
        }

    def _named(self, ids: Sequence[Any]) -> list[str]:
        return [self._target_pieces[number] for number in ids]

    def _as_generated(self, found: list[str]) -> list[int]:
        """Return a hypothesis as generate gives it: from the decoder's start, with the end that it forces."""
        ids = [self._target_ids[piece] for piece in found]
        search = self.search_settings
        if search.has_forced_end and (not ids or ids[-1] not in search.eos_ids):
            ids.append(search.eos_ids[0])
        return [self._start_id, *ids]


def _model_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder / TOKENIZER_DIR)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--model {folder}: its {TOKENIZER_DIR}/config.json cannot be read ({reason}); export again"
        ) from error


def _vocabulary(folder: Path, side: str) -> list[str]:
    """Return the pieces of a side by id."""
    path = folder / f"{side}_vocabulary.json"
    try:
        return json.loads((path if path.exists() else folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {folder}: its {side} vocabulary cannot be read ({error}); export again") from error
