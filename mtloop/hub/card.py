"""The model card: README.md of what is pushed, made from the run folder alone.

Source: the metadata of https://huggingface.co/docs/hub/model-cards, written by huggingface_hub's ModelCardData and
EvalResult.
"""

from __future__ import annotations

import json
import re

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mtloop.config.settings import is_from_scratch
from mtloop.hub.facts import (
    NUM_WIDGETS,
    Facts,
    choose,
    data_name,
    dataset_id,
    dataset_text,
    hub_name,
    linked,
    source_text,
)
from mtloop.hub.parts import MAIN_BRANCH
from mtloop.hub.tables import examples, results, training
from mtloop.languages import base_code


def write_card(facts: Facts) -> str:
    """Write README.md."""
    parts = [_title(facts), _usage(facts), _adapter(facts), results(facts), examples(facts), training(facts)]
    body = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}\n"))


def language_of(code: str | None) -> str | None:
    """Return the ISO 639 code that a tokenizer's code begins with: en of en_XX, eng of eng_Latn; None without one."""
    found = re.fullmatch(r"([A-Za-z]{2,3})([_-].*)?", code or "")
    if found is None and code and len(base_code(code)) <= len("eng"):  # a name, as French
        return base_code(code)
    return found[1].lower() if found else None


def _metadata(facts: Facts) -> ModelCardData:
    data = facts.config.data
    codes = [language_of(code) for pair in data.languages for code in pair]
    languages = list(dict.fromkeys(code for code in codes if code))
    base = hub_name(facts.config.model.model_name_or_path)
    dataset = dataset_id(facts.config)
    return ModelCardData(
        language=languages or None,
        license=facts.target.license,
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        pipeline_tag="translation",
        tags=["translation", "mtloop"],
        metrics=["bleu", "chrf"],
        model_name=facts.target.repo_id.split("/")[-1],
        eval_results=_eval_results(facts) or None,
        widget=[{"text": source_text(facts, row)} for row in choose(facts.examples)[:NUM_WIDGETS]] or None,
    )


def _eval_results(facts: Facts) -> list[EvalResult]:
    name = data_name(facts.config)
    dataset = dataset_id(facts.config) or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    pairs = facts.config.data.pair_names
    return [
        EvalResult(
            task_type="translation",
            task_name=f"Translation {pair}".rstrip(),
            dataset_type=dataset,
            dataset_name=name,
            dataset_config=pair or facts.config.data.dataset_config_name,
            dataset_split=split,
            metric_type=metric,
            metric_name=title,
            metric_value=round(line[f"{metric}_{pair}" if pair else metric], 2),
            metric_config=line[f"{metric}_signature"].rpartition(": ")[2],
        )
        for split, line in (("validation", facts.scores), ("test", facts.test_scores))
        for pair in pairs or ("",)
        for metric, title in (("bleu", "BLEU"), ("chrf", "chrF"))
        if metric in line
    ]


def _title(facts: Facts) -> str:
    config, part = facts.config, facts.part
    directions = [f"{source} to {target}" for source, target in config.data.languages if source]
    direction = ", ".join(directions) or "text to text"
    if is_from_scratch(config):
        origin = "trained from scratch with mtloop"
    else:
        origin = f"fine-tuned with mtloop from {linked(config.model.model_name_or_path)}"
    num_epochs = config.optimizer.num_train_epochs
    if part.average_of:
        *others, last = [f"{step:,}" for step in part.average_of]
        steps = f"{', '.join(others)} and {last}" if others else last
        state = f"Training is complete; this is the average of the weights after {steps} updates."
    elif part.epoch is None:
        state = f"Training is complete; these are the weights after {part.step:,} updates."
    else:
        of = "" if config.optimizer.max_train_steps else f" of {num_epochs}"
        state = f"**Training in progress**: these are the weights after epoch {part.epoch}{of}, update {part.step:,}."
    lines = [
        f"# {facts.target.repo_id.split('/')[-1]}",
        "",
        f"Translates {direction}; {origin} on {dataset_text(config)}. {state}",
    ]
    for split, line in (("validation", facts.scores), ("test", facts.test_scores)):
        if line:
            lines += [
                "",
                f"**BLEU {line['bleu']:.2f}, chrF {line['chrf']:.2f}** on {line['num_sentences']:,} {split} sentences"
                + (f" (at update {line['step']:,})." if line["step"] != part.step else "."),
            ]
    return "\n".join(lines)


def _usage(facts: Facts) -> str:
    target, data = facts.target, facts.config.data
    revision = "" if target.revision == MAIN_BRANCH else f', revision="{target.revision}"'
    languages = ""
    source_lang, target_lang = data.languages[0]
    if facts.tokenizer.get("src_lang") and source_lang:  # in the tokenizer's own codes
        languages = f', src_lang="{facts.tokenizer["src_lang"]}", tgt_lang="{facts.tokenizer["tgt_lang"]}"'
    text = next((source_text(facts, row) for row in choose(facts.examples)), "...")
    name = target.repo_id + ("" if target.revision == MAIN_BRANCH else f"@{target.revision}")
    codes = f" --source_lang {source_lang} --target_lang {target_lang}" if source_lang else ""
    options = codes if languages or data.pairs else ""
    codes = f" --pairs {data.pairs}" if data.pairs else codes
    return f"""## How to use it

With transformers (version 5 has no translation pipeline):

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{target.repo_id}"{revision}{languages})
model = AutoModelForSeq2SeqLM.from_pretrained("{target.repo_id}"{revision})
batch = tokenizer([{json.dumps(text, ensure_ascii=False)}], return_tensors="pt", padding=True)
output = model.generate(**batch)  # beams, length and target language are in its generation config
print(tokenizer.batch_decode(output, skip_special_tokens=True))
```

With mtloop, translate files, or fine-tune it on your own sentence pairs:

```bash
python -m mtloop translate FILE -o OUT --model {name}{options}
accelerate launch train.py --model_name_or_path {name} --train_file pairs.jsonl{codes}
```"""


def _adapter(facts: Facts) -> str:
    """Say where the adapter of a LoRA run is, and how peft loads it."""
    if not facts.config.tuning.lora_rank or facts.part.average_of:  # an average is of the merged models
        return ""
    name, target = facts.config.model.model_name_or_path, facts.target
    revision = "" if target.revision == MAIN_BRANCH else f', revision="{target.revision}"'
    return (
        f"These are the weights of {linked(name)} with a LoRA adapter merged into them. The adapter alone is in "
        f'`adapter/`: `PeftModel.from_pretrained(base_model, "{target.repo_id}", subfolder="adapter"{revision})`, '
        "with peft."
    )
