"""Translator: what the translation pipeline was, for any model that mtloop trains, on any number of processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtloop.batching import plan_evaluation
from mtloop.config import HardwareConfig, UserError
from mtloop.generation import Hypothesis, generate_n_best
from mtloop.model import load_model, position_limit, settle_generation
from mtloop.run_folder import RunFolder
from mtloop.runtime import Runtime
from mtloop.tokenization import encode_side, load_tokenizer, source_prefix, target_language_token

# Where neither the model nor the caller names a longest text, in tokens.
DEFAULT_MAX_LENGTH = 512
# transformers' own default generation length, which no translation model means.
UNSET_MAX_LENGTH = 20
# What the loaders name in their advice; here the flag has another name.
TRAINING_FLAGS = "(--tokenizer_name / )?--model_name_or_path"
_IDS = List(Value("int32"))


@dataclass(frozen=True, kw_only=True)
class Translation:
    """One translation of one text.

    Attributes:
        text: Detokenized.
        score: Log-probability in nats per generated token, as beam search ranks it; 0 for a blank text.
        is_source_cut: The source was over the model's longest.
        is_cut: It came to the longest translation, and may be unfinished.
    """

    text: str
    score: float = 0.0
    is_source_cut: bool = False
    is_cut: bool = False


@dataclass(kw_only=True)
class Translator:
    """Translates texts with a model of mtloop, of a local folder, or of the Hub.

    Collective where the process is one of several: each calls it with the same texts and gets all translations.

    Attributes:
        model: A folder, a run folder (its final/, else its newest checkpoint), or a Hub name, also `name@revision`.
        source_lang: Language code; multilingual models need both, unless they were saved with them.
        target_lang: Likewise.
        source_prefix: Put before every text; None for what the model needs, if anything (T5, multilingual Marians).
        num_beams: None for the model's own.
        n_best: Translations of each text, best first, at most num_beams.
        max_tokens_per_batch: Padded source tokens of a batch: memory, not the result.
        max_source_length: Tokens of a text, at most; None for all that the model takes.
        max_target_length: Tokens of a translation, at most; None for the model's own.
        trust_remote_code: Whether code of the repository may run.
        runtime: What to compute on; None chooses the best there is.
    """

    model: str = field(kw_only=False)
    source_lang: str | None = None
    target_lang: str | None = None
    source_prefix: str | None = None
    num_beams: int | None = None
    n_best: int = 1
    max_tokens_per_batch: int = 2000
    max_source_length: int | None = None
    max_target_length: int | None = None
    trust_remote_code: bool = False
    runtime: Runtime | None = None
    _network: PreTrainedModel = field(init=False, repr=False)
    _tokenizer: PreTrainedTokenizerBase = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Load the model.

        Raises:
            UserError: naming the field and the remedy.
        """
        self.runtime = self.runtime or Runtime(HardwareConfig())
        try:
            self._load(self.runtime)
        except UserError as error:
            raise UserError(re.sub(TRAINING_FLAGS, "--model", str(error))) from error

    @property
    def network(self) -> PreTrainedModel:
        """The model itself: whoever changes its weights in place translates with the new ones."""
        return self._network

    def _load(self, runtime: Runtime) -> None:
        tokenizer, network = load_pair(
            self.model,
            runtime,
            source_lang=self.source_lang,
            target_lang=self.target_lang,
            trust_remote_code=self.trust_remote_code,
        )
        self._tokenizer = tokenizer
        self._network = network.to(runtime.device).eval()
        if self.source_prefix is None:
            self.source_prefix = source_prefix(
                network.config, tokenizer, self.source_lang, self.target_lang, must_choose=True
            )
        limit = position_limit(network)
        self.max_source_length = self.max_source_length or limit or DEFAULT_MAX_LENGTH
        own = network.generation_config.max_length
        is_named = own is not None and own != UNSET_MAX_LENGTH
        self.max_target_length = self.max_target_length or (own if is_named else limit or DEFAULT_MAX_LENGTH)
        for flag, length in (
            ("max_source_length", self.max_source_length),
            ("max_target_length", self.max_target_length),
        ):
            if limit is not None and length > limit:
                raise UserError(f"--{flag} {length}: this model has {limit} positions; give at most {limit}")
        self.num_beams = settle_generation(
            network,
            tokenizer,
            num_beams=self.num_beams,
            max_length=self.max_target_length,
            forced_bos_token_id=target_language_token(tokenizer),
        )
        if self.n_best > self.num_beams:
            raise UserError(f"--n_best {self.n_best}: --num_beams is {self.num_beams}; give at least as many beams")

    def __call__(self, texts: str | Sequence[str]) -> Any:
        """Translate a text into a string, or a list of texts into a list of strings: the best of each."""
        is_one = isinstance(texts, str)
        best = [candidates[0].text for candidates in self.translate([texts] if isinstance(texts, str) else texts)]
        return best[0] if is_one else best

    def translate(self, texts: Sequence[str]) -> list[list[Translation]]:
        """Translate N texts, each once, whatever the batches.

        Returns:
            N lists of n_best translations, best first; a blank text gives one blank translation.
        """
        unique = [text for text in dict.fromkeys(texts) if text.strip()]
        known = dict(zip(unique, self._translate_unique(unique), strict=True)) if unique else {}
        return [known[text] if text in known else [Translation(text="")] for text in texts]

    def _translate_unique(self, texts: list[str]) -> list[list[Translation]]:
        assert self.max_source_length is not None and self.max_target_length is not None and self.runtime is not None
        sources = [(self.source_prefix or "") + text for text in texts]
        ids, is_long = encode_side(self._tokenizer, "text", sources, self.max_source_length)
        pad_id = self._tokenizer.pad_token_id
        assert pad_id is not None
        # No row may be without tokens (Marian's normaliser can leave none but </s>); labels are not looked at.
        encoded = Dataset.from_dict(
            {"input_ids": ids, "labels": [[0]] * len(ids)}, features=Features({"input_ids": _IDS, "labels": _IDS})
        )
        lengths = np.array([len(row) for row in ids], dtype=np.int32)
        batches = plan_evaluation(lengths, max_tokens=self.max_tokens_per_batch)
        found = generate_n_best(self._network, encoded, batches, self.runtime, pad_id=pad_id, n_best=self.n_best)
        return [
            [self._as_translation(candidate, is_source_cut=was_long) for candidate in candidates]
            for candidates, was_long in zip(found, is_long, strict=True)
        ]

    def _as_translation(self, candidate: Hypothesis, *, is_source_cut: bool) -> Translation:
        pieces = candidate.pieces.tolist()
        assert self.max_target_length is not None
        # The decoder start counts, and may be the padding piece. An end proves nothing: at the limit it may be forced.
        length = 1 + sum(piece != self._tokenizer.pad_token_id for piece in pieces[1:])
        decoded = self._tokenizer.decode(pieces, skip_special_tokens=True)
        return Translation(
            text=str(decoded),
            score=candidate.score,
            is_source_cut=is_source_cut,
            is_cut=length >= self.max_target_length,
        )

    def close(self) -> None:
        """Give the processes' common ground back; the translator cannot be used afterwards."""
        if self.runtime is not None:
            self.runtime.close()


def load_pair(
    model: str,
    runtime: Runtime,
    *,
    source_lang: str | None = None,
    target_lang: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedTokenizerBase, Any]:
    """Load the tokenizer and the model that Translator would. Collective.

    Raises:
        UserError: in the words of train.py, which name the flags of TRAINING_FLAGS.
    """
    name = model_folder(model)
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


def model_folder(name: str) -> str:
    """Return the folder to load: of a run folder its final/, else its newest checkpoint; any other name as it is."""
    folder = RunFolder(Path(name))
    if (folder.path / "config.json").exists() or not folder.path.is_dir():
        return name
    if (folder.final_dir / "config.json").exists():
        return str(folder.final_dir)
    from mtloop.checkpoint import list_checkpoints

    checkpoints = list_checkpoints(folder)
    return str(checkpoints[-1][1]) if checkpoints else name
