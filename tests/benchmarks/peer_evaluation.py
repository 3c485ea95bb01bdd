"""One contestant of eval_speed.py, in a process apart: the course's evaluation loop, or mtloop's.

Takes one JSON object: side (course or mtloop), model, file, languages, batch_size or engine, precision and max_tokens,
beams, threads.
Prints the seconds of translating and decoding all rows, loading left out, and writes the hypotheses to `output`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MAX_LENGTH = 128


def course(given: dict[str, Any], sources: list[str], targets: list[str]) -> tuple[float, list[str]]:
    """Translate in the order of the file, as the course's custom loop does: generate, pad, gather, decode."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForSeq2SeqLM.from_pretrained(given["model"])
    encoded = tokenizer(sources, text_target=targets, max_length=MAX_LENGTH, truncation=True)
    rows = [{name: encoded[name][i] for name in encoded} for i in range(len(sources))]
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    loader = DataLoader(rows, collate_fn=collator, batch_size=given["batch_size"])  # type: ignore[arg-type]
    model, loader = accelerator.prepare(model, loader)
    model.eval()
    hypotheses: list[str] = []
    start = time.perf_counter()
    for batch in loader:
        with torch.no_grad():
            generated = accelerator.unwrap_model(model).generate(
                batch["input_ids"], attention_mask=batch["attention_mask"], max_length=MAX_LENGTH,
                num_beams=given["num_beams"],
            )  # fmt: skip
        generated = accelerator.pad_across_processes(generated, dim=1, pad_index=tokenizer.pad_token_id)
        pieces = accelerator.gather(generated).cpu().numpy()
        hypotheses += tokenizer.batch_decode(pieces, skip_special_tokens=True)
    return time.perf_counter() - start, hypotheses


def mtloop(given: dict[str, Any], sources: list[str], targets: list[str]) -> tuple[float, list[str]]:
    """Translate with what train.py's evaluation uses; for CTranslate2 the conversion counts."""
    import numpy as np

    from mtloop.batching.division import plan_evaluation
    from mtloop.config.environment import HardwareConfig
    from mtloop.generation.conversion import convert
    from mtloop.generation.ctranslate2 import CTranslate2Engine
    from mtloop.generation.engine import Engine, EngineOptions, TransformersEngine, as_encoded
    from mtloop.generation.generate import SearchOptions
    from mtloop.runtime.ranks import Runtime
    from mtloop.tokenization.encoding import encode_sources

    runtime = Runtime(HardwareConfig(mixed_precision=given["precision"], cpu_threads=given["threads"]))
    asked = EngineOptions(
        source_lang=given["source_lang"], target_lang=given["target_lang"], num_beams=given["num_beams"],
        max_source_length=MAX_LENGTH, max_target_length=MAX_LENGTH,
    )  # fmt: skip
    live = TransformersEngine.load(given["model"], asked, runtime)
    ids, _ = encode_sources(live.tokenizer, sources, "", MAX_LENGTH)
    encoded, lengths = as_encoded(ids), np.array([len(row) for row in ids])
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        engine: Engine = live
        if given["engine"] == "ctranslate2":
            folder = Path(temporary) / "converted"
            convert(live.network, live.tokenizer, given["model"], folder, quantization=None).save(folder)
            engine = CTranslate2Engine(str(folder), asked, runtime)
        found = engine.search(
            encoded, plan_evaluation(lengths, max_tokens=given["max_tokens"]), runtime, SearchOptions()
        )
        pieces = [best.tokens.tolist() for best, *_ in found]
        hypotheses = live.tokenizer.batch_decode(pieces, skip_special_tokens=True)
        return time.perf_counter() - start, hypotheses


def main() -> None:
    """Run one contestant."""
    given = json.loads(sys.argv[1])
    pairs = [json.loads(line)["translation"] for line in Path(given["file"]).read_text("utf-8").splitlines()]
    sides = {"course": course, "mtloop": mtloop}
    sources, targets = ([pair[given[name]] for pair in pairs] for name in ("source_lang", "target_lang"))
    seconds, hypotheses = sides[given["side"]](given, sources, targets)
    Path(given["output"]).write_text(json.dumps(hypotheses), "utf-8")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
