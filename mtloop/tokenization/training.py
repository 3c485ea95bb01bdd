"""Train a shared sentencepiece vocabulary and write it as a MarianTokenizer folder."""

import io
import json
import random
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import MarianTokenizer, PreTrainedTokenizerBase

from mtloop.atomic import new_folder
from mtloop.errors import UserError
from mtloop.tokenization.protection import MASKS, PLACEHOLDERS, RECORD

MAX_TRAINING_TEXTS = 1_000_000
# The vocabulary depends on the number of threads: sentencepiece 0.2 trains three with 1, 2 and 16.
_NUM_THREADS = 16
_MAX_CHARS = 1000  # at most 4,000 bytes of UTF-8
_EOS, _UNK, _PAD = "</s>", "<unk>", "<pad>"


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    output_dir: Path,
    source_lang: str | None,
    target_lang: str | None,
    language_tokens: Sequence[str] = (),
    is_protected: bool = False,
) -> PreTrainedTokenizerBase:
    """Train one sentencepiece unigram model for both languages and write it as a MarianTokenizer folder.

    Ids: `</s>` 0, `<unk>` 1, tokens, `<pad>` last, so that the embedding needs exactly vocab_size rows. The same texts
    in the same order give the same bytes in every process and folder.

    Tabs, newlines, U+00A0 and repeated spaces inside a text are kept by encoding and decoding, as is a text such as
    "</s>". Not kept are: white space at either end (MarianTokenizer strips it when decoding), U+2581 (becomes a space),
    characters outside the covered 99.98 % (become <unk>, which is not decoded), and `>>...<<` at the start of a text
    (a language code for Marian).

    Args:
        texts: Texts of both sides. If more than MAX_TRAINING_TEXTS, a seeded sample is used.
        vocab_size: Entries of the vocabulary, a multiple of 8.
        output_dir: Folder to create; appears complete or not at all. A tokenizer there is replaced.
        source_lang: Stored in the tokenizer's config.
        target_lang: Stored in the tokenizer's config.
        language_tokens: Entries such as `>>fra<<`, for a model of several target languages; between the tokens and
            `<pad>`, within vocab_size.
        is_protected: Whether the texts are masked; the masks are in the vocabulary.

    Raises:
        UserError: vocab_size does not fit the corpus; output_dir contains other files.
    """
    assert vocab_size > 0 and vocab_size % 8 == 0
    if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / "tokenizer_config.json").is_file():
        raise UserError(f"--train_tokenizer: {str(output_dir)!r} contains other files. Choose another --output_dir.")
    num_tokens = vocab_size - 1 - len(language_tokens)
    symbols = MASKS if is_protected else ()
    spm_model = _train_sentencepiece(_sample_texts(texts, MAX_TRAINING_TEXTS), num_tokens, vocab_size, symbols)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(output_dir) as folder:
        record = {RECORD: PLACEHOLDERS} if is_protected else {}
        _fill_folder(folder, spm_model, language_tokens, source_lang=source_lang, target_lang=target_lang, **record)
    return MarianTokenizer.from_pretrained(output_dir)


def _sample_texts(texts: Iterable[str], max_texts: int) -> list[str]:
    """Draw a seeded uniform sample in one pass (a fixed stride could select one side of alternating sides)."""
    # Source: Vitter 1985, algorithm R.
    rng = random.Random(0)
    sample: list[str] = []
    num_seen = 0
    for text in texts:
        if not text.strip():
            continue
        num_seen += 1
        if len(sample) < max_texts:
            sample.append(text)
        elif (slot := int(rng.random() * num_seen)) < max_texts:
            sample[slot] = text
    return sample


def _train_sentencepiece(texts: list[str], num_tokens: int, vocab_size: int, symbols: Sequence[str]) -> bytes:
    """Return a serialized sentencepiece model of num_tokens; vocab_size includes `<pad>` and language tokens.

    Symbols are tokens wherever they are in a text; the spaces around them are kept.
    """
    if not texts:
        raise UserError("--train_tokenizer: the training texts are all empty. Check the corpus.")
    model = io.BytesIO()
    _check_threads(_NUM_THREADS)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_split(texts),
            model_writer=model,  # a model_prefix would be stored in the bytes
            model_type="unigram",
            vocab_size=num_tokens,
            num_threads=_NUM_THREADS,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.9998,
            byte_fallback=False,
            # The trainer drops every tab, so a tab must be a separate symbol.
            user_defined_symbols=["\t", *symbols],
            required_chars="\n\u00a0",
            eos_id=0,
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_vocab_size_advice(str(error), vocab_size, vocab_size - num_tokens, len(texts))) from error
    return model.getvalue()


def _check_threads(number: int) -> None:
    """Start threads for an instant: where it cannot, the trainer of sentencepiece aborts the process.

    Raises:
        RuntimeError: The system does not allow so many.
    """
    is_over = threading.Event()
    started = []
    try:
        for _ in range(number):
            thread = threading.Thread(target=is_over.wait)
            thread.start()
            started.append(thread)
    finally:
        is_over.set()
        for thread in started:
            thread.join()


def _split(texts: list[str]) -> Iterator[str]:
    """Split long texts: the trainer skips those over 4,192 bytes silently, and is quadratic in repetitive ones."""
    for text in texts:
        for start in range(0, len(text), _MAX_CHARS):
            yield text[start : start + _MAX_CHARS]


def _vocab_size_advice(message: str, vocab_size: int, num_others: int, num_texts: int) -> str:
    """Convert sentencepiece's two errors about the size to entries of the vocabulary and multiples of 8."""
    if too_high := re.search(r"Please set it to a value <= (\d+)", message):
        largest = (int(too_high[1]) + num_others) // 8 * 8
        return (
            f"--vocab_size: too large for a corpus of {num_texts} texts, sources and targets (got {vocab_size}). "
            f"Use {largest} or less."
        )
    if too_low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        smallest = -(-(int(too_low[1]) + num_others) // 8) * 8
        return f"--vocab_size: too small for the characters of the corpus (got {vocab_size}). Use {smallest} or more."
    return f"--train_tokenizer: sentencepiece failed ({' '.join(message.split())}). Check the corpus."


def _fill_folder(
    folder: Path,
    spm_model: bytes,
    language_tokens: Sequence[str],
    **config: Any,
) -> None:
    """Write the tokenizer's files, with more entries for its config."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm_model)
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    for token in (*language_tokens, _PAD):
        vocabulary[token] = len(vocabulary)
    (folder / "source.spm").write_bytes(spm_model)
    (folder / "target.spm").write_bytes(spm_model)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        model_max_length=512,
        # Otherwise a "</s>" in a text, which is HTML's end of strike-through, would end the sentence.
        split_special_tokens=True,
        **config,
    )
    tokenizer.save_pretrained(folder)
    # transformers 5 no longer writes this file; older versions and other programs read it.
    special_tokens = {"eos_token": _EOS, "unk_token": _UNK, "pad_token": _PAD}
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens, indent=2) + "\n", encoding="utf-8")
