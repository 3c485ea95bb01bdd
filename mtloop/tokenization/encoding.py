"""Encode rows of text into memory-mapped token ids and their lengths; fingerprint tokenizers. Shape letter: N rows."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import sentencepiece
import transformers
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mtloop.data.store import unwritable_cache
from mtloop.errors import RunFailed, first_line
from mtloop.model.vocabularies import target_side, target_vocabulary
from mtloop.placeholders import lost
from mtloop.runtime.launch import num_usable_cores
from mtloop.tokenization.protection import PROTECTED, is_protected, mask, mask_target, restore
from mtloop.tokenization.protection import identity as protection_identity

_ENCODING_VERSION = 2  # increase when the encoded columns change: old cache files are then not read
_MIN_ROWS_FOR_WORKERS = 20_000


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """N encoded rows, in the order of the text rows.

    Attributes:
        rows: Memory-mapped columns input_ids and labels, list<int32>, without padding; no indices mapping.
        source_lengths: int32 [N], tokens of each source after truncation, special tokens included.
        target_lengths: int32 [N], the same for each target.
        is_long: bool [N], a side exceeded its limit and was truncated.
        num_long_sources: Number of truncated sources.
        num_long_targets: Number of truncated targets.
    """

    rows: Dataset
    source_lengths: NDArray[np.int32]
    target_lengths: NDArray[np.int32]
    is_long: NDArray[np.bool_]
    num_long_sources: int
    num_long_targets: int


def encode_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_source_length: int,
    max_target_length: int,
    source_prefix: str | None,
    num_workers: int | None,
    overwrite_cache: bool = False,
    tokenizer_hash: str | None = None,
    worker_timeout: float = 1_800.0,
) -> Encoded:
    """Tokenize rows as tokenizer(source_prefix + source, text_target=target, truncation=True) would.

    The result is a cache file, shared by all processes that encode the same rows with the same tokenizer and limits;
    only the lengths are private memory.

    Args:
        rows: N >= 1 rows with the string columns source and target.
        tokenizer: As load_tokenizer or train_tokenizer returned it.
        max_source_length: Maximum tokens of a source, special tokens included.
        max_target_length: Maximum tokens of a target, special tokens included.
        source_prefix: Put before every source ("translate English to French: " for T5).
        num_workers: Worker processes; None is one per usable core, and one for fewer than 20,000 rows.
        overwrite_cache: Whether to tokenize again if there is a cache file.
        tokenizer_hash: From tokenizer_fingerprint, where it is known; None to compute it.
        worker_timeout: Seconds after which a worker process that is stopped is killed.

    Raises:
        ValueError: There are no rows.
        RunFailed: A worker process has died, or the cache cannot be written.
    """
    if len(rows) == 0:
        raise ValueError("no rows to encode")
    limits = {"max_source_length": max_source_length, "max_target_length": max_target_length}
    settings = {**limits, "source_prefix": source_prefix or ""}
    fingerprint = _encoding_fingerprint(rows, tokenizer_hash or tokenizer_fingerprint(tokenizer), settings)
    cache_dir = Path(datasets.config.HF_DATASETS_CACHE) / "mtloop"
    side = List(Value("int32"))
    num_processes = _num_processes(len(rows), num_workers)
    with _writing_cache(), _watched_workers(worker_timeout) if num_processes else contextlib.nullcontext():
        cache_dir.mkdir(parents=True, exist_ok=True)
        encoded = rows.map(
            _encode_batch,
            batched=True,
            fn_kwargs={"tokenizer": tokenizer, **settings},
            remove_columns=rows.column_names,
            features=Features(
                {"input_ids": side, "labels": side, "source_is_long": Value("bool"), "target_is_long": Value("bool")}
            ),
            new_fingerprint=fingerprint,
            cache_file_name=str(cache_dir / f"encoded-{fingerprint}.arrow"),
            load_from_cache_file=not overwrite_cache,
            num_proc=num_processes,
            desc="Tokenizing",
        )
    return _measure(encoded)


@contextlib.contextmanager
def _writing_cache() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable_cache(error) from error


@contextlib.contextmanager
def _watched_workers(timeout_s: float) -> Iterator[None]:
    """Kill worker processes that have been stopped for too long, and raise one error when one has died.

    Dataset.map notices the death of a worker, and waits for ever for one that is stopped.
    """
    is_over = threading.Event()

    def watch() -> None:
        stopped_since: dict[int, float] = {}
        while not is_over.wait(1.0):
            with contextlib.suppress(psutil.Error):
                stopped = [one for one in psutil.Process().children() if one.status() == psutil.STATUS_STOPPED]
                stopped_since = {one.pid: stopped_since.get(one.pid, time.monotonic()) for one in stopped}
                for one in stopped:
                    if time.monotonic() - stopped_since[one.pid] > timeout_s:
                        one.kill()

    watcher = threading.Thread(target=watch, name="mtloop-workers", daemon=True)
    watcher.start()
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:  # the latter two: the process that holds the queue
        if isinstance(error, RuntimeError) and "abruptly died" not in str(error):
            raise
        raise RunFailed(
            f"--preprocessing_num_workers: a process that tokenizes was killed or stopped ({first_line(error)[:80]}). "
            "Give --preprocessing_num_workers 1."
        ) from error
    finally:
        is_over.set()
        watcher.join()


def _encoding_fingerprint(rows: Dataset, tokenizer_hash: str, settings: dict[str, Any]) -> str:
    # datasets has no public name for _fingerprint. Its limit is 64 characters with the suffix of a shard.
    parts = [_ENCODING_VERSION, transformers.__version__, rows._fingerprint, tokenizer_hash, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _num_processes(num_rows: int, num_workers: int | None) -> int | None:
    """Return num_proc of Dataset.map; None is the current process."""
    if num_workers is None:
        usable = num_usable_cores()
        num_workers = usable if num_rows >= _MIN_ROWS_FOR_WORKERS else 1
    return min(num_workers, num_rows) if num_workers > 1 else None


def _encode_batch(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    max_source_length: int,
    max_target_length: int,
    source_prefix: str,
) -> dict[str, list[Any]]:
    input_ids, source_is_long = encode_sources(tokenizer, batch["source"], source_prefix, max_source_length)
    targets = batch["target"]
    if is_protected(tokenizer):
        targets = [mask_target(target, source) for target, source in zip(targets, batch["source"], strict=True)]
    labels, target_is_long = _encode_side(target_side(tokenizer), "text_target", targets, max_target_length)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "source_is_long": source_is_long,
        "target_is_long": target_is_long,
    }


def encode_sources(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], prefix: str, max_length: int
) -> tuple[list[list[int]], list[bool]]:
    """Encode texts to translate, masked where the tokenizer is that of a protected model.

    Args:
        tokenizer: As load_tokenizer or train_tokenizer returned it.
        texts: N texts, N >= 1.
        prefix: Put before every text.
        max_length: Maximum tokens, special tokens included.

    Returns:
        N lists of token ids, and whether each text was truncated.
    """
    if is_protected(tokenizer):
        texts = [mask(text) for text in texts]
    return _encode_side(tokenizer, "text", [prefix + text for text in texts], max_length)


def decode(tokenizer: PreTrainedTokenizerBase, translations: list[list[int]], sources: list[str]) -> list[str]:
    """Return the texts of translations, with the placeholders of their sources where the model is protected.

    Args:
        tokenizer: That of the sources.
        translations: N lists of token ids; each begins with the decoder start: the id of any token.
        sources: N texts, as they were before they were masked.
    """
    found = target_side(tokenizer).batch_decode([ids[1:] for ids in translations], skip_special_tokens=True)
    if is_protected(tokenizer):
        found = [restore(text, source) for text, source in zip(found, sources, strict=True)]
    return list(found)


def decode_best(tokenizer: PreTrainedTokenizerBase, candidates: list[list[list[int]]], sources: list[str]) -> list[str]:
    """Return for each source the first of its candidates that keeps every placeholder, or else the first.

    Args:
        tokenizer: That of the sources.
        candidates: For each of N sources its translations, best first, as in decode; where there is only one, nothing
            is looked for.
        sources: N texts, as they were before they were masked.
    """
    best = decode(tokenizer, [first for first, *_ in candidates], sources)
    for row, (_, *others) in enumerate(candidates):
        if others and lost(sources[row], best[row], PROTECTED):
            texts = decode(tokenizer, others, [sources[row]] * len(others))
            best[row] = next((text for text in texts if not lost(sources[row], text, PROTECTED)), best[row])
    return best


def _encode_side(
    tokenizer: PreTrainedTokenizerBase, side: str, texts: list[str], max_length: int
) -> tuple[list[list[int]], list[bool]]:
    """Encode the texts of one side, then those over the limit again, so that the tokenizer truncates them."""
    options = {"return_attention_mask": False, "verbose": False}
    ids = tokenizer(**{side: texts}, **options)["input_ids"]
    is_long = [len(row) > max_length for row in ids]
    long_texts = [text for text, over in zip(texts, is_long, strict=True) if over]
    if long_texts:
        cut: Iterator[list[int]] = iter(
            tokenizer(**{side: long_texts}, truncation=True, max_length=max_length, **options)["input_ids"]
        )
        ids = [next(cut) if over else row for row, over in zip(ids, is_long, strict=True)]
    return ids, is_long


def _measure(encoded: Dataset) -> Encoded:
    def column(name: str) -> pa.ChunkedArray:
        return encoded.data.column(name)

    source_is_long = column("source_is_long").to_numpy()
    target_is_long = column("target_is_long").to_numpy()
    return Encoded(
        rows=encoded.select_columns(["input_ids", "labels"]),
        source_lengths=pc.list_value_length(column("input_ids")).to_numpy(),
        target_lengths=pc.list_value_length(column("labels")).to_numpy(),
        is_long=source_is_long | target_is_long,
        num_long_sources=int(source_is_long.sum()),
        num_long_targets=int(target_is_long.sum()),
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sha256 (hex) of everything that determines the ids of a text.

    It covers the class, vocabulary, special and added tokens, languages, and the tokens and scores of sentencepiece
    models or the state of a Rust tokenizer, but no paths and no file bytes: it is equal in every folder and process.
    """
    identity = {
        "class": type(tokenizer).__name__,
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "target_vocabulary": sorted((target_vocabulary(tokenizer) or {}).items()),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added_tokens": [(i, repr(token)) for i, token in sorted(tokenizer.added_tokens_decoder.items())],
        "languages": [
            getattr(tokenizer, name, None) for name in ("src_lang", "tgt_lang", "source_lang", "target_lang")
        ],
        "switches": [tokenizer.truncation_side, getattr(tokenizer, "split_special_tokens", None)],
        "pieces": [
            _tokens_and_scores(getattr(tokenizer, name, None)) for name in ("spm_source", "spm_target", "sp_model")
        ],
        "backend": _backend_state(tokenizer),
        **({"protection": protection_identity()} if is_protected(tokenizer) else {}),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def have_same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return True if each id is the same token, which models must share to be averaged."""
    vocabularies = [(tokenizer.get_vocab(), target_vocabulary(tokenizer)) for tokenizer in (one, other)]
    return vocabularies[0] == vocabularies[1]


def _tokens_and_scores(model: Any) -> list[tuple[str, float]]:
    if not isinstance(model, sentencepiece.SentencePieceProcessor):
        return []
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]


def _backend_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    # Set by the last call with truncation or padding.
    return {name: value for name, value in state.items() if name not in ("truncation", "padding")}
