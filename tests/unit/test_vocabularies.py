"""Test two vocabularies: targets have their own ids, also where the source's <pad> is an ordinary token of them."""

import importlib.machinery
import io
import json
import shutil
import sys
import types

import pytest
import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer
from transformers.models.fsmt.tokenization_fsmt import FSMTTokenizer

from mtloop.cli.commands.train import main as train
from mtloop.config.model import ModelConfig
from mtloop.errors import UserError
from mtloop.model.generation_config import configure_generation
from mtloop.model.loading import build_model, load_model
from mtloop.model.vocabularies import target_side, target_vocabulary
from mtloop.tokenization.encoding import decode, have_same_tokens
from mtloop.tokenization.loading import load_tokenizer
from mtloop.translate.translator import Translator
from tests.support.commands import command

PAIRS = [("the cat", "le chat"), ("the dog", "le chien"), ("a cat", "un chat")]
PAIRS += [("a dog sees the cat", "un chien voit le chat")]
# "le" has the id of the source's <pad>, "</s>" another one than in the sources.
SOURCE_IDS = ["</s>", "<unk>", "▁the", "▁cat", "▁dog", "▁a", "▁sees", "<pad>"]
TARGET_IDS = ["<unk>", "▁chat", "▁chien", "</s>", "▁un", "▁voit", "▁oui", "▁le", "▁non", "<pad>"]
SCRATCH = ["--model_size", "tiny", "--dropout", "0", "--warmup_steps", "0", "--learning_rate", "2e-3"]
PAD, LE = SOURCE_IDS.index("<pad>"), TARGET_IDS.index("▁le")


def words_model(texts):
    """Return a sentencepiece model of whole words, serialized."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="word", vocab_size=20, hard_vocab_limit=False,
        eos_id=0, unk_id=1, bos_id=-1, pad_id=-1, minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for side, texts in zip(("source", "target"), zip(*PAIRS, strict=True), strict=True):
        (folder / f"{side}.spm").write_bytes(words_model(texts))
    for name, tokens in (("vocab.json", SOURCE_IDS), ("target_vocab.json", TARGET_IDS)):
        (folder / name).write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json", "target_vocab.json")]
    tokenizer = MarianTokenizer(*files, separate_vocabs=True, source_lang="en", target_lang="fr", model_max_length=64)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_path(tokenizer_path):
    """A Marian that has learned PAIRS, from ids that are written out here."""
    torch.manual_seed(0)
    size = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 64))}
    config = MarianConfig(
        vocab_size=len(SOURCE_IDS), decoder_vocab_size=len(TARGET_IDS), share_encoder_decoder_embeddings=False,
        d_model=32, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64, dropout=0.0,
        pad_token_id=PAD, eos_token_id=TARGET_IDS.index("</s>"), decoder_start_token_id=PAD, init_std=0.1,
        forced_eos_token_id=TARGET_IDS.index("</s>"), **size,
    )  # fmt: skip
    model = MarianMTModel(config)
    model.model.decoder.embed_tokens.padding_idx = None
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    sources, targets = (
        [torch.tensor([ids.index(f"▁{word}") for word in text.split()] + [ids.index("</s>")]) for text in texts]
        for texts, ids in zip(zip(*PAIRS, strict=True), (SOURCE_IDS, TARGET_IDS), strict=True)
    )
    inputs = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=PAD)
    labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    for _ in range(80):
        loss = model(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    model.generation_config.bad_words_ids = [[PAD]]  # as converted models have it
    model.save_pretrained(tokenizer_path)
    return tokenizer_path


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"en": source, "fr": target}) + "\n" for source, target in PAIRS * 3))
    return path


def test_target_side_has_the_ids_of_the_targets(tokenizer_path):
    tokenizer = MarianTokenizer.from_pretrained(tokenizer_path)
    targets = target_side(tokenizer)
    assert target_vocabulary(tokenizer) == {token: number for number, token in enumerate(TARGET_IDS)}
    assert (targets.pad_token_id, targets.eos_token_id, targets.unk_token_id) == (9, 3, 0)
    assert targets(text_target="le chat zzz")["input_ids"] == [LE, 1, 0, 3]
    assert tokenizer("the cat zzz")["input_ids"] == [2, 3, 1, 0]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, targets.eos_token_id) == (PAD, 0, 3)
    # The decoder start may be any token; the padding after the end is the targets'.
    assert decode(tokenizer, [[PAD, LE, 1, 3, 9, 9], [9, 4, 2, 3]], ["", ""]) == ["le chat", "un chien"]
    assert have_same_tokens(tokenizer, MarianTokenizer.from_pretrained(tokenizer_path))


@pytest.mark.slow
def test_translator_decodes_the_target_token_of_the_padding_id(model_path):
    with Translator(str(model_path), num_beams=2, n_best=2) as translator:
        sources, targets = map(list, zip(*PAIRS, strict=True))
        assert translator(sources) == targets
        found = translator.translate(sources)
        assert [len(candidates) for candidates in found] == [2] * len(PAIRS)
        assert not any(candidates[0].is_cut for candidates in found)
    with Translator(str(model_path), num_beams=1) as translator:
        assert translator(sources) == targets


@pytest.mark.slow
def test_evaluate_and_export_agree_on_two_vocabularies(model_path, rows_path, tmp_path, fresh_accelerate, capsys):
    rows = ["--test_set", f"t={rows_path}", "--source_lang", "en", "--target_lang", "fr", "--num_beams", "2"]
    assert command("evaluate")(["--model", model_path, *rows, "-o", tmp_path / "scores"]) == 0
    assert "100.00" in capsys.readouterr().out
    assert command("export")(["--model", model_path, "--format", "ctranslate2", "-o", tmp_path / "ct2", *rows]) == 0
    assert "12 of 12 outputs identical" in capsys.readouterr().out
    with Translator(str(tmp_path / "ct2")) as translator:
        assert translator([source for source, _ in PAIRS]) == [target for _, target in PAIRS]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ["--max_train_steps", "1"],
        pytest.param(["--max_train_steps", "1", "--lora_rank", "2"], marks=pytest.mark.full),
        pytest.param([*SCRATCH, "--max_train_steps", "40", "--lr_scheduler_type", "constant"], marks=pytest.mark.full),
    ],
)  # fmt: skip
def test_train_on_two_vocabularies(model_path, rows_path, tmp_path, fresh_accelerate, capsys, model):
    lengths = ["--max_source_length", "16", "--max_target_length", "16"]
    files = ["--train_file", rows_path, "--validation_file", rows_path, "--output_dir", tmp_path / "run"]
    start = ["--tokenizer_name" if "--model_size" in model else "--model_name_or_path", model_path]
    rest = ["--source_lang", "en", "--target_lang", "fr", "--num_beams", "2", "--cpu_threads", "1"]
    rest += ["--eval_steps", "100", "--mixed_precision", "no", "--per_device_train_batch_size", "12"]
    assert train([str(word) for word in (*files, *start, *rest, *lengths, *model)]) == 0
    assert "hypothesis  un chien voit le chat" in capsys.readouterr().out
    with Translator(str(tmp_path / "run")) as translator:
        assert translator([source for source, _ in PAIRS]) == [target for _, target in PAIRS]


def test_build_model_gives_each_side_its_vocabulary(tokenizer_path):
    tokenizer = load_tokenizer(str(tokenizer_path), source_lang=None, target_lang=None)
    model = build_model(ModelConfig(tokenizer_name="two", model_size="tiny"), tokenizer, max_length=16)
    config = model.config
    assert (config.vocab_size, config.decoder_vocab_size, config.share_encoder_decoder_embeddings) == (8, 10, False)
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (PAD, 3, 9)
    # The row of "le" learns as an input of the decoder, although the source's <pad> has its id.
    table = model.get_decoder().embed_tokens
    table(torch.tensor([LE])).sum().backward()
    assert table.weight.grad[LE].eq(1).all()


def test_configure_generation_takes_the_targets_special_tokens(tokenizer_path):
    tokenizer = load_tokenizer(str(tokenizer_path), source_lang=None, target_lang=None)
    model = build_model(ModelConfig(tokenizer_name="two", model_size="tiny"), tokenizer, max_length=16)
    generation = model.generation_config
    options = {"num_beams": 1, "max_length": 16, "forced_bos_token_id": None}
    generation.bad_words_ids = [[PAD]]
    configure_generation(model, tokenizer, **options)
    assert (generation.pad_token_id, generation.eos_token_id, generation.bad_words_ids) == (9, 3, [[9]])
    generation.eos_token_id = 0
    with pytest.raises(UserError, match=r"^--model_name_or_path: translations end with .*, 3 \(got eos_token_id 0\)\."):
        configure_generation(model, tokenizer, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", {"eos_token_id": 0}, r"the vocabularies disagree \(got eos token 3, model .* has 0\)\."),
        (
            "target_vocab.json",
            {f"t{n}": 10 + n for n in range(9)},
            r"\(got 19 target tokens, model .* has 10 rows for them",
        ),
        ("target_vocab.json", {"<unk>": None}, r"the target vocabulary has no <unk> \(got 9 tokens\)\."),
    ],
)
def test_load_refuses_vocabularies_that_do_not_fit(model_path, tmp_path, file, change, reason):
    folder = tmp_path / "two"
    shutil.copytree(model_path, folder)
    content = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    with pytest.raises(UserError, match=reason):
        load_model(str(folder), load_tokenizer(str(folder), source_lang=None, target_lang=None), dropout=None)


class Moses:
    """Stands in for sacremoses, which is not installed: words are what spaces separate."""

    def __init__(self, lang):
        self.lang = lang

    def normalize(self, text):
        return text

    def tokenize(self, text, **options):
        return text.split()

    def detokenize(self, tokens):
        return " ".join(tokens)


def test_target_side_of_fsmt(tmp_path, monkeypatch):
    moses = types.ModuleType("sacremoses")
    moses.__spec__ = importlib.machinery.ModuleSpec("sacremoses", None)
    moses.MosesPunctNormalizer = moses.MosesTokenizer = moses.MosesDetokenizer = Moses
    monkeypatch.setitem(sys.modules, "sacremoses", moses)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    for name, words in (("s.json", ["a</w>", "x</w>"]), ("t.json", ["y</w>", "b</w>", "a</w>"])):
        (tmp_path / name).write_text(json.dumps({token: i for i, token in enumerate(special + words)}))
    (tmp_path / "m.txt").write_text("a a\n")
    files = {name: str(tmp_path / file) for name, file in (("src_vocab_file", "s.json"), ("tgt_vocab_file", "t.json"))}
    tokenizer = FSMTTokenizer(langs=["en", "fr"], merges_file=str(tmp_path / "m.txt"), **files)
    assert tokenizer("a x")["input_ids"] == [4, 5, 2]
    assert target_side(tokenizer)(text_target="a b")["input_ids"] == [6, 5, 2]  # transformers alone: [4, 3, 2]
    assert decode(tokenizer, [[2, 6, 5, 2, 1]], [""]) == ["a b"]
