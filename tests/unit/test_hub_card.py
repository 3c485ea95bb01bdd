"""Test hub.card: valid metadata, the numbers of the run, and no paths of the machine."""

import json

import pytest
from huggingface_hub import ModelCard

from mtloop.config.parse import parse_config
from mtloop.hub.card import (
    choose,
    data_name,
    dataset_id,
    duration,
    epoch_rows,
    escape,
    hub_name,
    language_of,
    write_card,
)
from mtloop.hub.parts import Target, epoch_part, files_of, final_part
from tests.support.hub_runs import RUN_ID, SIGNATURES, evaluation, make_run

TARGET = Target(repo_id="team/en-fr")
FINE_TUNING = ("--model_name_or_path", "Helsinki-NLP/opus-mt-en-fr@abc", "--source_lang", "en", "--target_lang", "fr")


def card_of(folder, step=20, target=TARGET):
    """Return the card of an epoch, or of the end for step None, loaded by the Hub's class."""
    part = final_part(folder) if step is None else epoch_part(folder, folder.checkpoints_dir / f"step_{step}")
    return ModelCard(write_card(folder, part, target))


def test_card_of_the_end_shows_the_curves_that_are_pushed_with_it(tmp_path):
    folder = make_run(tmp_path, is_finished=True)
    assert "curves.png" not in card_of(folder, None).text
    folder.curves_path.write_bytes(b"a picture")
    part, epoch = final_part(folder), epoch_part(folder, folder.checkpoints_dir / "step_20")
    assert "](curves.png)\n" in write_card(folder, part, TARGET) and "curves.png" not in write_card(
        folder, epoch, TARGET
    )
    assert files_of(folder, part, with_training=False)["curves.png"] == {
        "path": str(folder.curves_path),
        "sha256": None,
    }
    assert "curves.png" not in files_of(folder, epoch, with_training=True)


def test_card_metadata(tmp_path):
    folder = make_run(tmp_path, *FINE_TUNING, "--dataset_name", "kde4", is_finished=True)
    data = card_of(folder, None, Target(repo_id="team/en-fr", license="apache-2.0")).data
    assert (data.language, data.license, data.pipeline_tag) == (["en", "fr"], "apache-2.0", "translation")
    assert (data.base_model, data.datasets) == ("Helsinki-NLP/opus-mt-en-fr", ["Helsinki-NLP/kde4"])
    assert (data.library_name, data.metrics) == ("transformers", ["bleu", "chrf"])
    assert data.model_name == "en-fr" and {"translation", "mtloop"} <= set(data.tags)
    assert data.widget == [{"text": "source 0"}, {"text": "source 3"}, {"text": "source 6"}]
    bleu, chrf = data.eval_results
    assert (bleu.metric_type, bleu.metric_value, bleu.metric_config) == ("bleu", 60.0, SIGNATURES["bleu_signature"])
    assert (chrf.metric_type, chrf.metric_value, chrf.metric_config) == ("chrf", 70.0, SIGNATURES["chrf_signature"])
    assert (bleu.dataset_type, bleu.dataset_name, bleu.dataset_split) == ("Helsinki-NLP/kde4", "kde4", "validation")


def test_card_omits_unknown_metadata(tmp_path):
    data = card_of(make_run(tmp_path, epochs=2)).data
    assert data.license is None and data.base_model is None and data.datasets is None
    assert data.eval_results[0].dataset_type == "mtloop-demo"


@pytest.mark.slow
def test_card_lists_each_epoch(tmp_path):
    folder = make_run(tmp_path, is_finished=True)
    rows = [line for line in card_of(folder, None).text.splitlines() if line.startswith("| ") and "|---" not in line]
    # The loss of epoch 1: (4.0 * 100 + 2.0 * 300) / 400 target tokens.
    assert rows[1:5] == [
        "| before training | 0 |  | 5.0000 | 1.00 | 11.00 |",
        "| 1 | 10 | 2.5000 | 4.0000 | 20.00 | 30.00 |",
        "| 2 | 20 | 1.2500 | 3.0000 | 40.00 | 50.00 |",
        "| 3 | 30 | 0.8333 | 2.0000 | **60.00** | 70.00 |",
    ]
    # An epoch's card knows nothing of what came later.
    assert "| 3 | 30 |" not in card_of(folder, 20).text and "**40.00**" in card_of(folder, 20).text


def test_card_shows_intervals_and_p_values(tmp_path):
    folder = make_run(tmp_path, epochs=2)
    assert "confidence interval" not in card_of(folder).text
    lines = [json.loads(line) for line in folder.metrics.path.read_text().splitlines()]
    for line in lines:
        if "bleu" in line:
            line |= {"bleu_ci": 1.2, "chrf_ci": 0.9}
        if "bleu" in line and line["step"]:
            line |= {"bleu_gain": 19.0, "bleu_p_value": 1 / 1001, "chrf_gain": -0.5, "chrf_p_value": 0.25}
    folder.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = card_of(folder).text
    assert "| before training | 0 |  | 5.0000 | 1.00 ± 1.20 | 11.00 ± 0.90 |" in text
    assert "| **40.00 ± 1.20 (+19.00, p = 0.001)** | 50.00 ± 0.90 (-0.50, p = 0.250) |" in text
    assert "± is half of the 95 % confidence interval, by bootstrap." in text


def test_epoch_rows_of_several_evaluations_in_an_epoch():
    lines = [
        {**evaluation(0, bleu=1.0), "step": 4, "epoch": 0.4},
        {**evaluation(0, bleu=2.0), "step": 8, "epoch": 0.8},
        {**evaluation(1, bleu=3.0), "split": "test"},
        {"step": 12, "epoch": 1.2, "loss": None, "target_tokens": 5},
        {**evaluation(2, bleu=4.0), "step": 13, "epoch": 1.3},
    ]
    assert [(label, line["bleu"], loss) for label, line, loss in epoch_rows(lines)] == [
        ("0.8", 2.0, None),
        ("1.3", 4.0, None),
    ]


def test_card_describes_progress(tmp_path):
    folder = make_run(tmp_path, is_finished=True)
    assert "**Training in progress**: these are the weights after epoch 2 of 3, update 20." in card_of(folder).text
    assert "Training is complete; these are the weights after 30 updates." in card_of(folder, None).text
    text = card_of(folder).text
    for told in ("device cpu · 2 processes", "torch 2.13.0", "1 h 1 min of updates", RUN_ID, "f" * 16, "2 (empty)"):
        assert told in text, told


@pytest.mark.slow
def test_card_describes_adapter(tmp_path):
    folder = make_run(tmp_path / "lora", *FINE_TUNING, "--dataset_name", "kde4", "--lora_rank", "8")
    text = card_of(folder, target=Target(repo_id="team/en-fr", revision="dev")).text
    assert "of [Helsinki-NLP/opus-mt-en-fr](https://huggingface.co/Helsinki-NLP/opus-mt-en-fr) with a LoRA" in text
    assert 'PeftModel.from_pretrained(base_model, "team/en-fr", subfolder="adapter", revision="dev")' in text
    assert "| lora_rank | 8 |" in text
    assert "LoRA" not in card_of(make_run(tmp_path / "whole", *FINE_TUNING, "--dataset_name", "kde4")).text


def test_card_shows_test_scores_at_end(tmp_path):
    folder = make_run(tmp_path, is_finished=True)
    with folder.metrics.path.open("a") as file:
        file.write(json.dumps({"split": "test", **evaluation(3, bleu=55.5)}) + "\n")
    assert "**BLEU 55.50, chrF 65.50** on 30 test sentences." in card_of(folder, None).text
    assert [result.dataset_split for result in card_of(folder, None).data.eval_results[2:]] == ["test", "test"]
    assert "55.50" not in card_of(folder, 30).text


def test_card_escapes_ten_examples(tmp_path):
    folder = make_run(tmp_path, epochs=2)
    odd = {"index": 0, "source": "<b>a|b</b>\n*x* [y](z)", "reference": "r", "hypothesis": "`h`"}
    path = folder.hypotheses_dir / "step_20.jsonl"
    path.write_text(json.dumps(odd) + "\n" + path.read_text().split("\n", 1)[1])
    rows = [line for line in card_of(folder).text.splitlines() if "hypothesis" in line or "&lt;b" in line]
    assert len(rows) == 10
    assert rows[0] == "| &lt;b&gt;a\\|b&lt;/b&gt; \\*x\\* \\[y\\](z) | \\`h\\` | r |"
    assert rows[1] == "| source 3 | hypothesis 3 of 20 | reference 3 |"
    assert len(escape("x" * 1000)) == 300


def test_card_lists_settings_without_paths(tmp_path):
    (tmp_path / "base").mkdir()
    files = ["--train_file", str(tmp_path / "secret" / "a.jsonl"), "--source_lang", "eng_Latn", "--target_lang", "fr"]
    words = ["--model_name_or_path", str(tmp_path / "base"), *files, "--learning_rate", "3e-4", "--push_to_hub"]
    card = card_of(make_run(tmp_path / "run", *words, epochs=2))
    assert "| learning_rate | 0.0003 |" in card.text and "| train_file | a.jsonl |" in card.text
    assert str(tmp_path) not in str(card) and "secret" not in str(card) and "push_to_hub" not in card.text
    assert card.data.language == ["eng", "fr"] and card.data.base_model is None
    assert "the local model base" in card.text and card.data.eval_results[0].dataset_type == "a-jsonl"
    assert "adam_beta1" not in card.text  # as the default is


def test_card_snippet_names_branch_and_languages(tmp_path):
    folder = make_run(tmp_path, *FINE_TUNING, "--dataset_name", "demo", "--source_prefix", "translate: ", epochs=2)
    step = folder.checkpoints_dir / "step_20"
    (step / "tokenizer_config.json").write_text('{"src_lang": "en_XX", "tgt_lang": "fr_XX"}')
    text = write_card(folder, epoch_part(folder, step), Target(repo_id="team/en-fr", revision="big"))
    assert 'from_pretrained("team/en-fr", revision="big", src_lang="en_XX", tgt_lang="fr_XX")' in text
    options = "--source_lang en --target_lang fr"  # the prefix stands in the model's config
    assert f"mtloop translate FILE -o OUT --model team/en-fr@big {options}" in text
    assert 'tokenizer(["translate: source 0"]' in text and "--model_name_or_path team/en-fr@big" in text
    assert "own vocabulary" not in text and "Placeholders" not in text
    (step / "tokenizer_config.json").write_text('{"separate_vocabs": true, "protect": "placeholders"}')
    text = write_card(folder, epoch_part(folder, step), Target(repo_id="team/en-fr", revision="big"))
    assert "The target has its own vocabulary, and transformers drops its tokens" in text
    assert "transformers alone does not mask or restore them. Translate with mtloop." in text


def test_card_of_several_pairs(tmp_path):
    folder = make_run(tmp_path, "demo", "--pairs", "en-fr,fr-en", epochs=2)
    lines = [json.loads(line) for line in folder.metrics.path.read_text().splitlines()]
    for line in lines:
        if "bleu" in line:
            line |= {"bleu_en-fr": 41.0, "bleu_fr-en": 39.0, "chrf_en-fr": 51.0, "chrf_fr-en": 49.0}
            line["bleu_signature"] = f"mean of 2: {line['bleu_signature']}"
    folder.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"index": 0, "source": "Ouvrir", "reference": "Open", "hypothesis": "Open", "pair": "fr-en"}]
    (folder.hypotheses_dir / "step_20.jsonl").write_text(json.dumps(rows[0]) + "\n")
    step = folder.checkpoints_dir / "step_20"
    tasks = {"translation_fr_to_en": {"prefix": ">>en<< "}}
    (step / "config.json").write_text(json.dumps({"task_specific_params": tasks}))
    card = card_of(folder)
    assert card.data.language == ["en", "fr"] and "Translates en to fr, fr to en; " in card.text
    found = {(one.dataset_config, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found[("en-fr", "bleu")] == 41.0 and found[("fr-en", "chrf")] == 49.0 and len(found) == 4
    assert card.data.eval_results[0].metric_config == SIGNATURES["bleu_signature"]
    assert "| fr-en | 39.00 | 49.00 |" in card.text and 'tokenizer([">>en<< Ouvrir"]' in card.text
    assert "--source_lang en --target_lang fr\n" in card.text and "--pairs en-fr,fr-en" in card.text


def test_card_lists_every_recorded_metric(tmp_path):
    folder = make_run(tmp_path, epochs=2)
    lines = [json.loads(line) for line in folder.metrics.path.read_text().splitlines()]
    lines[-1] |= {"same_words": 0.5, "user_metrics": {"same_words": False}}
    folder.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = card_of(folder)
    assert "| BLEU | chrF | same_words |" in card.text
    assert "| before training | 0 |  | 5.0000 | 1.00 | 11.00 |  |" in card.text  # it was not recorded there
    assert "| **40.00** | 50.00 | 0.50 |" in card.text
    assert "- same_words (computed by a user's function; lower is better)" in card.text
    assert card.data.metrics == ["bleu", "chrf", "same_words"] and card.data.eval_results[-1].metric_value == 0.5


def test_card_has_a_table_of_the_kinds_of_survival(tmp_path):
    folder = make_run(tmp_path, epochs=2)
    lines = [json.loads(line) for line in folder.metrics.path.read_text().splitlines()]
    lines[-1] |= {"survival": 98.5, "survival_signature": "rows:9", "survival_tag": 75.0, "survival_tag_ci": 1.5}
    folder.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = card_of(folder)
    assert "| BLEU | chrF | survival |" in card.text and "| **40.00** | 50.00 | 98.50 |" in card.text
    assert "| placeholder | survival |" in card.text and "| &lt;tag&gt; | 75.00 ± 1.50 |" in card.text
    assert card.data.metrics == ["bleu", "chrf", "survival"] and len(card.data.eval_results) == 3
    assert "| placeholder |" not in card_of(make_run(tmp_path / "plain")).text


def test_card_without_evaluation(tmp_path):
    folder = make_run(tmp_path, epochs=2)
    folder.metrics.path.unlink()
    card = card_of(folder)
    assert "## Results" not in card.text and "## Examples" not in card.text and card.data.eval_results is None


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("en", "en"),
        ("en_XX", "en"),
        ("eng_Latn", "eng"),
        ("zh-CN", "zh"),
        ("pt_BR", "pt"),
        ("French", "fr"),
        ("xx", None),
        ("zzz_Latn", None),
        ("qaa", None),
        ("und", None),
        (None, None),
    ],
)
def test_language_of(code, language):
    assert language_of(code) == language


def test_hub_name_dataset_id_and_data_name(tmp_path):
    assert hub_name("google-t5/t5-small@v1") == "google-t5/t5-small" and hub_name("t5-small") == "t5-small"
    assert [hub_name(name) for name in (None, str(tmp_path), "./m", "/m", "a/b/c")] == [None] * 5
    for name, found in (("demo", None), ("opus:KDE4/v2", None), ("kde4", "Helsinki-NLP/kde4"), ("a/b@c", "a/b")):
        config = parse_config([*FINE_TUNING, "--dataset_name", name])
        assert dataset_id(config) == found
    assert data_name(parse_config([*FINE_TUNING, "--train_file", "/x/y.en", "/x/y.fr"])) == "y.en"


def test_duration_and_choose():
    assert [duration(s) for s in (7.4, 75, 3700)] == ["7 s", "1 min 15 s", "1 h 1 min"]
    assert [row["i"] for row in choose([{"i": i} for i in range(25)])] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert choose([{"i": 1}]) == [{"i": 1}]
