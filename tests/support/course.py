"""What chapter 7.4 of the Hugging Face course works on, in small: rows of KDE4, and Helsinki-NLP/opus-mt-en-fr.

As in the chapter, the pretrained model leaves "threads", "plugins" and "emails" in English, and the data set translates
them.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer, get_scheduler

MODEL = "Helsinki-NLP/opus-mt-en-fr"
_FRAMES = [
    ("Default to expanded {}", "Par défaut, développer les {}"),
    ("Show all {}", "Afficher tous les {}"),
    ("Delete these {}", "Supprimer ces {}"),
    ("Select the {}", "Sélectionner les {}"),
    ("Import {} from a file", "Importer des {} depuis un fichier"),
    ("Export {} to a file", "Exporter des {} vers un fichier"),
    ("Sort the {} by date", "Trier les {} par date"),
    ("Search in the {}", "Chercher dans les {}"),
    ("Close the {}", "Fermer les {}"),
    ("Open the {}", "Ouvrir les {}"),
    ("Count the {}", "Compter les {}"),
    ("Hide the {}", "Cacher les {}"),
    ("Copy the {}", "Copier les {}"),
    ("Move the {} here", "Déplacer les {} ici"),
    ("Print the {}", "Imprimer les {}"),
    ("Rename the {}", "Renommer les {}"),
    ("Share the {}", "Partager les {}"),
    ("Group the {} by name", "Grouper les {} par nom"),
    ("Compare the {}", "Comparer les {}"),
    ("Restore the {}", "Restaurer les {}"),
]
_NOUNS = {
    "threads": "fils de discussion",
    "plugins": "modules d'extension",
    "emails": "courriers électroniques",
    "files": "fichiers",
    "windows": "fenêtres",
    "pictures": "images",
    "messages": "messages",
    "colors": "couleurs",
    "toolbars": "barres d'outils",
    "shortcuts": "raccourcis clavier",
    "screenshots": "captures d'écran",
    "desktops": "espaces de travail",
    "passwords": "mots de passe",
    "spreadsheets": "feuilles de calcul",
}
_LEFT_IN_ENGLISH = {noun: noun for noun in ("threads", "plugins", "emails")}
_README = b"""---
language:
- en
- fr
tags:
- translation
license: apache-2.0
---
### opus-mt-en-fr
"""


def kde4_texts(nouns: dict[str, str] = _NOUNS) -> list[tuple[str, str]]:
    """Return 280 pairs, English and French, each once."""
    return [(en.format(noun), fr.format(nouns[noun])) for en, fr in _FRAMES for noun in nouns]


def opus_mt_files() -> dict[str, bytes]:
    """Pretrain a Marian of 64 dimensions for some seconds; return the files of MODEL, path -> content.

    As there, the vocabulary of two sentencepiece models ends with <pad>, and the weights are pickled.
    """
    texts = kde4_texts(_NOUNS | _LEFT_IN_ENGLISH)
    english, french = zip(*texts, strict=True)
    spms = [_train_pieces(english, 160), _train_pieces([*french, *(target for _, target in kde4_texts())], 400)]
    vocab = {"</s>": 0, "<unk>": 1}
    for spm in spms:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=spm)
        for number in range(3, len(pieces)):  # after <unk>, <s> and </s>
            vocab.setdefault(pieces.id_to_piece(number), len(vocab))
    vocab["<pad>"] = len(vocab)
    config, generation = _configs(vocab["<pad>"])
    contents = {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": {"target_lang": "fr", "source_lang": "en"},
        "vocab.json": vocab,
    }
    files = {name: json.dumps(content, indent=2).encode() for name, content in contents.items()}
    files |= {"README.md": _README, "source.spm": spms[0], "target.spm": spms[1]}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        tokenizer = MarianTokenizer.from_pretrained(folder)
    return {**files, "pytorch_model.bin": _pretrain(config, tokenizer, texts)}


def _train_pieces(texts: Sequence[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    # Byte pairs make whole words of so few texts; unigrams, which the published ones are, leave letters.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _configs(pad_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json and generation_config.json with the published keys; only sizes and ids differ."""
    shared = {
        "bad_words_ids": [[pad_id]],
        "bos_token_id": 0,
        "decoder_start_token_id": pad_id,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
        "max_length": 512,
        "num_beams": 4,
        "pad_token_id": pad_id,
    }
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"attention_heads": 4, "ffn_dim": 256, "layerdrop": 0.0, "layers": 1}.items()
    }
    config = {
        **shared,
        **sides,
        "_name_or_path": f"/tmp/{MODEL}",
        "_num_labels": 3,
        "activation_dropout": 0.0,
        "activation_function": "swish",
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "architectures": ["MarianMTModel"],
        "attention_dropout": 0.0,
        "classif_dropout": 0.0,
        "classifier_dropout": 0.0,
        "d_model": 64,
        "decoder_vocab_size": pad_id + 1,
        "dropout": 0.1,
        "extra_pos_embeddings": pad_id + 1,
        "gradient_checkpointing": False,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
        "max_position_embeddings": 512,
        "model_type": "marian",
        "normalize_before": False,
        "normalize_embedding": False,
        "num_hidden_layers": 1,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "transformers_version": "4.22.0.dev0",
        "use_cache": True,
        "vocab_size": pad_id + 1,
    }
    return config, {**shared, "renormalize_logits": True, "transformers_version": "4.32.0.dev0"}


def _pretrain(config: dict[str, Any], tokenizer: Any, texts: list[tuple[str, str]]) -> bytes:
    """Learn the texts by heart; return the weights as they are published: without the tied output layer."""
    torch.manual_seed(0)
    rng, num_updates = random.Random(0), 100
    # From embeddings of 0.02 the decoder would not find its source in so few updates: positions drown the tokens.
    model = MarianMTModel(MarianConfig(**{**config, "init_std": 0.1, "dropout": 0.0}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=20, num_training_steps=num_updates)
    for _ in range(num_updates):
        sources, targets = zip(*rng.sample(texts, 32), strict=True)
        batch = tokenizer(list(sources), text_target=list(targets), padding=True, return_tensors="pt")
        batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
        model(**batch).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    stream = io.BytesIO()
    torch.save(weights, stream)
    return stream.getvalue()
