"""Translate with any model that mtloop trains, on any number of processes, as the translation pipeline did."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from mtloop.checkpoint.listing import open_folder
from mtloop.config.environment import HardwareConfig
from mtloop.errors import UserError, rename_flag
from mtloop.generation.engine import Engine, EngineOptions, TransformersEngine, as_encoded, open_engine
from mtloop.generation.generate import Hypothesis, SearchOptions
from mtloop.generation.surviving import search_surviving
from mtloop.model.vocabularies import target_side
from mtloop.placeholders import lost
from mtloop.runtime.quiet import quiet_libraries
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.encoding import decode, encode_sources
from mtloop.tokenization.protection import is_protected

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Translation:
    """One translation of one text.

    Attributes:
        text: Detokenized.
        score: Log-probability in nats per generated token, as beam search ranks it; 0 for a blank text.
        is_source_cut: The source was over the model's longest.
        is_cut: It came to the longest translation, and may be unfinished.
        lost: The placeholders of the text that it lacks or adds, as placeholders.lost describes them.
        is_forced: No translation that the beams found kept them: the search had to, and their places are doubtful.
    """

    text: str
    score: float = 0.0
    is_source_cut: bool = False
    is_cut: bool = False
    lost: tuple[str, ...] = ()
    is_forced: bool = False


@dataclass(kw_only=True)
class Translator:
    """Translates texts with a model of mtloop, of a local folder, or of the Hub.

    Collective where the process is one of several: each calls it with the same texts and gets all translations.

    Attributes:
        model: A folder, a run folder (its final/, else its newest checkpoint), an export, or a Hub name, also
            `name@revision`.
        source_lang: Language code; multilingual models need both, unless they were saved with them.
        target_lang: The language of the translations.
        source_prefix: Put before every text; None for what the model needs, if anything (T5, multilingual Marians).
        num_beams: None for the model's own.
        n_best: Translations of each text, best first, at most num_beams.
        prefers_surviving: If True, translations that keep every placeholder come first, among all that the beams find;
            None for True with a protected model.
        max_tokens_per_batch: Padded source tokens of a batch: memory, not the result.
        max_source_length: Tokens of a text, at most; None for all that the model takes.
        max_target_length: Tokens of a translation, at most; None for the model's own.
        trust_remote_code: Whether code of the repository may run.
        no_verify: If True, a checkpoint or final/ is not compared with its manifest.
        runtime: What to compute on; None chooses the best there is.
        engine: "transformers", or "ctranslate2" for an export of `mtloop export`; None for what the folder holds.
        loaded: The engine with the model.

    Use it in a `with` block, or call close().
    """

    model: str = field(kw_only=False)
    source_lang: str | None = None
    target_lang: str | None = None
    source_prefix: str | None = None
    num_beams: int | None = None
    n_best: int = 1
    prefers_surviving: bool | None = None
    max_tokens_per_batch: int = 2000
    max_source_length: int | None = None
    max_target_length: int | None = None
    trust_remote_code: bool = False
    no_verify: bool = False
    runtime: Runtime | None = None
    engine: str | None = None
    loaded: Engine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Load the model.

        Raises:
            UserError: naming the field and the remedy.
        """
        is_own = self.runtime is None
        self.runtime = self.runtime or Runtime(HardwareConfig())
        # Also when it is dropped unclosed: accelerate keeps one state for all that a process does.
        self._close = weakref.finalize(self, self.runtime.close if is_own else lambda: None)
        self._close.atexit = False
        try:
            with quiet_libraries():
                self._load(self.runtime)
        except UserError as error:
            self.close()
            raise rename_flag(error, "--model") from error
        except BaseException:
            self.close()
            raise

    @property
    def network(self) -> PreTrainedModel:
        """The model itself: whoever changes its weights in place translates with the new ones.

        Raises:
            UserError: an export to another engine, whose weights cannot be changed.
        """
        if not isinstance(self.loaded, TransformersEngine):
            raise UserError(f"--model: an export (got {self.model}). Give the model that was exported.")
        return self.loaded.network

    def _load(self, runtime: Runtime) -> None:
        names = ("source_lang", "target_lang", "source_prefix", "num_beams", "max_source_length", "max_target_length")
        asked = EngineOptions(**{name: getattr(self, name) for name in names}, trust_remote_code=self.trust_remote_code)
        folder = open_folder(self.model, no_verify=self.no_verify)
        self.loaded = open_engine(folder, asked, runtime, engine=self.engine)
        self.source_prefix = self.loaded.source_prefix
        self.num_beams = self.loaded.num_beams
        self.max_source_length = self.loaded.max_source_length
        self.max_target_length = self.loaded.max_target_length
        if self.n_best > self.num_beams:
            raise UserError(
                f"--n_best: more than --num_beams {self.num_beams} (got {self.n_best}). Give at least as many beams."
            )

    def set_languages(self, source_lang: str | None, target_lang: str | None) -> None:
        """Translate from now on between other languages, with a model of several.

        Raises:
            UserError: a language that it does not have.
        """
        self.source_lang, self.target_lang = source_lang, target_lang
        self.loaded = self.loaded.for_languages(source_lang, target_lang)
        self.source_prefix = self.loaded.source_prefix

    def __call__(self, texts: str | Sequence[str]) -> Any:
        """Translate a text into a string, or a list of texts into a list of strings: the best of each."""
        is_one = isinstance(texts, str)
        if not is_one and not isinstance(texts, Iterable):
            raise TypeError(f"expected a text or a list of texts (got {type(texts).__name__})")
        best = [candidates[0].text for candidates in self.translate([texts] if isinstance(texts, str) else texts)]
        return best[0] if is_one else best

    def translate(self, texts: Sequence[str]) -> list[list[Translation]]:
        """Translate N texts, each once, whatever the batches; half a surrogate pair is read as U+FFFD.

        Returns:
            N lists of n_best translations, best first; a blank text gives one blank translation.

        Raises:
            TypeError: naming the item that is not a text.
        """
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(
                    f"text {number}: expected str (got {type(text).__name__}). Give a text or a list of texts."
                )
        unique = [text for text in dict.fromkeys(texts) if text.strip()]
        known = dict(zip(unique, self._translate_unique(unique), strict=True)) if unique else {}
        return [known[text] if text in known else [Translation(text="")] for text in texts]

    def _translate_unique(self, texts: list[str]) -> list[list[Translation]]:
        assert self.runtime is not None
        # Half a surrogate pair, which tokenizers refuse, becomes U+FFFD.
        sources = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        prefix = self.loaded.source_prefix or ""
        ids, is_long = encode_sources(self.loaded.tokenizer, sources, prefix, self.loaded.max_source_length)
        assert self.num_beams is not None
        prefers_surviving = (
            is_protected(self.loaded.tokenizer) if self.prefers_surviving is None else self.prefers_surviving
        )
        n_best = self.num_beams if prefers_surviving else self.n_best
        found = search_surviving(
            self.loaded,
            as_encoded(ids),
            np.array([len(row) for row in ids], dtype=np.int32),
            sources,
            self.runtime,
            SearchOptions(n_best=n_best, with_scores=True),
            max_tokens=self.max_tokens_per_batch,
        )
        rows = [
            [self._as_translation(text, candidate, is_source_cut=was_long) for candidate in candidates]
            for text, candidates, was_long in zip(sources, found, is_long, strict=True)
        ]
        if prefers_surviving:  # sorted is stable: the better translation stays first
            rows = [sorted(row, key=lambda one: bool(one.lost)) for row in rows]
        return [row[: self.n_best] for row in rows]

    def _as_translation(self, source: str, candidate: Hypothesis, *, is_source_cut: bool) -> Translation:
        tokens = candidate.tokens.tolist()
        pad_id = target_side(self.loaded.tokenizer).pad_token_id
        # The decoder start counts, and may be the padding token. At the limit the end may be forced: it proves nothing.
        length = 1 + sum(token != pad_id for token in tokens[1:])
        text = decode(self.loaded.tokenizer, [tokens], [source])[0]
        return Translation(
            text=text,
            score=candidate.score,
            is_source_cut=is_source_cut,
            is_cut=length >= self.loaded.max_target_length,
            lost=tuple(lost(source, text)),
            is_forced=candidate.is_forced,
        )

    def close(self) -> None:
        """Release the processes and accelerate's state, unless `runtime` was given; it cannot be used afterwards."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
