"""CTranslate2's engine: search with an export of `mtloop export` as transformers' generate searches with the model.

Owns the file of an export (Record) and the names of generate's settings in CTranslate2.

Differences between CTranslate2 4.8 and transformers 5.24:

- Both score by the log-probability divided by length ** length_penalty; the end counts, the decoder start does not.
- generate with early_stopping unset continues while the best open beam, by its length so far, is better than the worst
  finished one; CTranslate2 stops at num_beams x patience finished ones. See PATIENCE.
- generate normalizes before it removes a forbidden token, CTranslate2 after; such tokens are nearly impossible.
- CTranslate2 does not force an end token on a truncated translation; it is added if the model's settings ask for it.
- A text without tokens has an empty translation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig

from mtloop.atomic import Shape, json_text, read_record
from mtloop.errors import UserError, described, missing_package, refused
from mtloop.generation import RECORD_NAME
from mtloop.generation.engine import CTRANSLATE2, Engine, EngineOptions, resolve_lengths, resolve_prefix
from mtloop.generation.generate import Answer, Hypothesis, Planned, SearchOptions, gather_n_best, share_batches
from mtloop.model.vocabularies import target_side
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.loading import load_tokenizer, target_language_token

FORMAT_VERSION = 1
EXPORT_AGAIN = "Export the model again."
TOKENIZER_DIR = "tokenizer"
# Finished hypotheses to wait for, in beams, if generate's early_stopping is unset. Of 1,000 sentences of the demo after
# 2 epochs, with 4 beams, 964 were translated as by generate with 1, 992 with 1.5, 995 with 2, 996 with 3 and 4, in 2.6,
# 3.2, 3.1, 3.2 and 3.6 s (generate: 12.1).
PATIENCE = 2.0


@dataclass(frozen=True, kw_only=True)
class Search:
    """The generation config of the exported model, as far as CTranslate2 supports it.

    Attributes:
        num_beams: Beams, unless the caller gives others.
        max_length: Maximum tokens of a translation, decoder start included.
        min_length: Minimum tokens of a translation, decoder start included.
        position_limit: Positions of the model; None if it takes any.
        decoder_start_id: First token of the decoder's input.
        forced_bos_id: Token that always follows it.
        language_id: The target language's token; if it is one of these two, another language replaces it.
        eos_ids: Tokens that end a translation.
        has_forced_end: Whether the last token of a truncated translation is an end token.
        bad_words: Token sequences that are never generated.
        length_penalty: Exponent of the length by which a score is divided.
        repetition_penalty: Above 1 makes earlier tokens less likely.
        no_repeat_ngram_size: Length of sequences that may occur once; 0 for no limit.
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
        """Return True if the decoder starts with the target language (mBART): CTranslate2 gets it with each text."""
        return self.language_id is not None and self.decoder_start_id == self.language_id


@dataclass(frozen=True, kw_only=True)
class Record:
    """The contents of mtloop_export.json.

    Attributes:
        model: Name of the exported model, as the user gave it.
        run_id: The run that trained it, if known.
        step: Its optimizer step, if known.
        quantization: As given; None keeps fp32.
        versions: Versions of the libraries that made it.
        search: The generation settings.
        parity: A report for each test set that both engines translated.
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
            OSError: The file cannot be written.
        """
        (folder / RECORD_NAME).write_text(json_text(asdict(self)), encoding="utf-8")


_SEARCH: Shape = {
    "num_beams": int, "max_length": int, "decoder_start_id": int, "eos_ids": [int], "min_length?": int,
    "position_limit?": (int, None), "forced_bos_id?": (int, None), "language_id?": (int, None), "has_forced_end?": bool,
    "bad_words?": [[int]], "length_penalty?": float, "repetition_penalty?": float, "no_repeat_ngram_size?": int,
    "stops_early?": bool,
}  # fmt: skip


def read_export(folder: Path) -> Record:
    """Read the record of an export. Raises UserError naming the folder."""
    found = read_record(folder / RECORD_NAME, {"format_version": int, "search": _SEARCH}, remedy=EXPORT_AGAIN)
    if found["format_version"] > FORMAT_VERSION:
        raise UserError(f"--model {folder}: exported by a newer mtloop. Install that version, or export again.")
    with refused(lambda error: _corrupt(folder, RECORD_NAME, error)):  # an entry that is unknown or missing
        return Record(**{**found, "search": Search(**found["search"])})


def import_ctranslate2(flag: str) -> Any:
    """Return the package ctranslate2. Raises UserError naming the flag that needs it if it is not installed."""
    try:
        import ctranslate2
    except ImportError as error:
        raise missing_package(flag, "ctranslate2", "ctranslate2", error=error) from error
    return ctranslate2


class CTranslate2Engine(Engine):
    """The engine on CTranslate2. It computes in the export's quantization, whatever the runtime's precision."""

    def __init__(self, name: str, asked: EngineOptions, runtime: Runtime) -> None:
        """Load an export. Collective.

        Raises:
            UserError: Naming the flag and the remedy.
        """
        folder = Path(name)
        ctranslate2 = import_ctranslate2(f"--model {name}")
        record = runtime.one_first(lambda: read_export(folder))
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
        with refused(
            lambda error: (
                f"--model {name}: CTranslate2 {version('ctranslate2')} cannot load it ({described(error)}). "
                "Export it again."
            )
        ):
            self._translator = ctranslate2.Translator(
                name,
                device="cuda" if is_cuda else "cpu",
                device_index=(runtime.device.index or 0) if is_cuda else 0,
                intra_threads=runtime.num_threads,
            )
        self._source_tokens = _vocabulary(folder, "source")
        self._target_tokens = _vocabulary(folder, "target")
        self._target_ids = {token: number for number, token in enumerate(self._target_tokens)}

    def _resolve_first_tokens(self) -> None:
        search = self.search_settings
        language = target_language_token(self.tokenizer)
        self._start_id: int = search.decoder_start_id
        self._forced_ids = [] if search.forced_bos_id is None else [search.forced_bos_id]
        if language is not None and search.starts_with_language:
            self._start_id = language
        if language is not None and search.forced_bos_id == search.language_id:
            self._forced_ids = [language]

    def search(
        self, encoded: Dataset, batches: Sequence[Planned], runtime: Runtime, options: SearchOptions
    ) -> list[list[Hypothesis]]:
        """Translate; see Engine. There is no max_length_ratio: CTranslate2 has one limit for a batch."""
        if options.max_length_ratio is not None:
            raise UserError(
                f"--max_length_ratio: CTranslate2 has no such limit (got {options.max_length_ratio}). Leave it out."
            )
        ids: list[list[int]] = encoded["input_ids"][:]
        answers = self._answers(ids, batches, runtime, options.n_best)
        return gather_n_best(answers, len(ids), runtime, n_best=options.n_best)

    def _answers(self, ids: list[list[int]], batches: Sequence[Any], runtime: Runtime, n_best: int) -> Iterator[Answer]:
        options = {**self._options(), "num_hypotheses": n_best, "return_scores": True, "return_end_token": True}
        prefix = self._prefix()
        pad_id = target_side(self.tokenizer).pad_token_id
        for row_ids in share_batches(batches, runtime):
            sources = [[self._source_tokens[token_id] for token_id in ids[row]] for row in row_ids]
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
            "max_input_length": 0,  # no truncation
            # generate's lengths count the decoder start, CTranslate2's do not; a forced end needs a position.
            "max_decoding_length": max(1, self.max_target_length - 1 - search.has_forced_end),
            "min_decoding_length": max(0, search.min_length - 1),
        }

    def _named(self, ids: Sequence[Any]) -> list[str]:
        return [self._target_tokens[number] for number in ids]

    def _as_generated(self, found: list[str]) -> list[int]:
        """Return a hypothesis as generate does: with the decoder start and a forced end."""
        ids = [self._target_ids[token] for token in found]
        search = self.search_settings
        if search.has_forced_end and (not ids or ids[-1] not in search.eos_ids):
            ids.append(search.eos_ids[0])
        return [self._start_id, *ids]


def _model_config(folder: Path) -> Any:
    with refused(lambda error: _corrupt(folder, f"{TOKENIZER_DIR}/config.json", error)):
        return AutoConfig.from_pretrained(folder / TOKENIZER_DIR)


def _vocabulary(folder: Path, side: str) -> list[str]:
    """Return the tokens of one side by id."""
    path = folder / f"{side}_vocabulary.json"
    path = path if path.exists() else folder / "shared_vocabulary.json"
    with refused(lambda error: _corrupt(folder, path.name, error)):
        tokens: list[str] = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
            raise TypeError("not a list of tokens")
        return tokens


def _corrupt(folder: Path, file: str, error: BaseException) -> str:
    return f"--model {folder}: {file} is corrupt ({described(error)}). {EXPORT_AGAIN}"
