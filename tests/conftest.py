"""What all tests share: an offline Hub, a cache of their own, a small real tokenizer and corpus."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Before datasets, huggingface_hub or tests.support.launch is imported: they read these once.
_CACHE = Path(tempfile.mkdtemp(prefix="mtloop-tests-"))
os.environ.update(
    HF_HOME=str(_CACHE),
    HF_DATASETS_CACHE=str(_CACHE / "datasets"),
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    # OpenMP's threads wait for one another by spinning: beside other work on the cores a run takes ten times as long.
    GOMP_SPINCOUNT="1000",
    PYTORCH_NVML_BASED_CUDA_CHECK="1",  # otherwise looking for a GPU leaves a state that no fork can use
)
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables are as wide as it says
os.environ.setdefault("MTLOOP_TESTS_PYTHON", str(_CACHE / "fork" / "python"))

import pytest  # noqa: E402

from tests.support import fork_server  # noqa: E402

PROJECT = Path(__file__).parents[1]
# What needs an environment, a network or a device of its own runs where it is asked for: by its marker or its folder.
ASKED_FOR = ("xla", "network", "gpu")
NEVER_FAST = ("e2e", "distributed")


def pytest_addoption(parser):
    """Add --full."""
    parser.addoption("--full", action="store_true", help="every repetition and combination of the long tests")


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_cmdline_main(config):
    """Run the default and the full tier in two processes: many tests wait, for a launcher, a server or a signal."""
    is_whole = [Path(one).resolve() for one in config.args] == [PROJECT / "tests"]
    is_alone = hasattr(config, "workerinput") or config.option.usepdb or config.option.collectonly
    if is_whole and config.option.markexpr != "not slow" and config.option.numprocesses is None and not is_alone:
        config.option.numprocesses = 2
        config.option.loadscopereorder = False  # the short files come last, and fill what the long ones leave


def pytest_xdist_make_scheduler(config, log):
    """Keep tests that share a run in one process: those of a file, and those of all files that use demo_run."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRun(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group_of(nodeid.split("::")[0])

    return ByRun(config, log)


@functools.cache
def _group_of(path):
    """Return "demo" for a test file that uses demo_run, the file itself for any other."""
    return "demo" if "demo_run" in (PROJECT / path).read_text(encoding="utf-8") else path


def pytest_configure(config):
    """Undo what a shell ignores for whatever runs in its background: the programs under test would inherit it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # a handler here, the default in whatever is started
    fork_server.install(_CACHE / "fork")


def pytest_unconfigure(config):
    """Remove the cache, and with it the servers that programs are forked from."""
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def is_full(request) -> bool:
    """Return whether the long tests run whole."""
    return request.config.getoption("--full")


def pytest_ignore_collect(collection_path, config):
    """Spare the fast tier the import of folders that have nothing for it."""
    folder = PROJECT / "tests" / "unit"
    if config.getoption("markexpr") == "not slow" and [Path(one).resolve() for one in config.args] == [
        PROJECT / "tests"
    ]:
        return collection_path.is_relative_to(PROJECT / "tests") and not (
            collection_path.is_relative_to(folder) or folder.is_relative_to(collection_path)
        )
    return None


def pytest_collection_modifyitems(config, items):
    """Put each test into its tier: fast is what is not slow; --full has all but what must be asked for."""
    expression = config.getoption("markexpr")
    folders = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    kept, left_out = [], []
    for item in items:
        if any(item.get_closest_marker(name) for name in NEVER_FAST):
            item.add_marker("slow")
        wanted = [name for name in ASKED_FOR if item.get_closest_marker(name)]
        is_asked_for = all(
            re.search(rf"\b{name}\b", expression)
            or any(folder.is_relative_to(PROJECT / "tests" / name) for folder in folders)
            for name in wanted
        )
        is_whole = config.getoption("--full") or not item.get_closest_marker("full")
        (kept if is_asked_for and is_whole else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


SHARED_DATA = PROJECT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's top folder."""
    return PROJECT


@pytest.fixture(scope="session")
def kde_path() -> Path:
    """Real KDE English-French pairs; skips where they are absent."""
    path = SHARED_DATA / "kde_en_fr.jsonl.gz"
    if not path.exists():
        pytest.skip("../shared/data/kde_en_fr.jsonl.gz is not here")
    return path


@dataclass(frozen=True)
class DemoRun:
    """The default run, as a user starts it: its folder and what it printed."""

    folder: Path
    done: subprocess.CompletedProcess


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory) -> DemoRun:
    """`accelerate launch train.py`, once for all tests that want a trained model: some two minutes.

    On one thread: two that wait for each other lose most where other work takes a core from one of them. In fp32, which
    is not what every processor is faster in: what others make of the model is compared with what the run made of it.
    """
    from tests.support.launch import run

    folder = tmp_path_factory.mktemp("demo") / "run"
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    flags = ["--cpu_threads", "1", "--mixed_precision", "no", "--output_dir", str(folder)]
    return DemoRun(folder, run([*launcher, "train.py", *flags], timeout_s=600))


@pytest.fixture(scope="session")
def demo_sample() -> list[tuple[str, str]]:
    """1,500 English-French pairs of the embedded corpus."""
    from mtloop.data.demo.grammar import demo_pairs

    return demo_pairs("train")[:1_500]


@pytest.fixture(scope="session")
def marian_tokenizer(demo_sample, tmp_path_factory):
    """A real MarianTokenizer of 400 pieces, trained on the sample; its folder is `tokenizer.name_or_path`."""
    from mtloop.tokenization.loading import load_tokenizer
    from mtloop.tokenization.training import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "marian"
    texts = [text for pair in demo_sample for text in pair]
    train_tokenizer(texts, vocab_size=400, output_dir=folder, source_lang="en", target_lang="fr")
    return load_tokenizer(str(folder), source_lang="en", target_lang="fr")


@pytest.fixture(scope="session")
def sample_rows(demo_sample):
    """The sample as a data set of rows: index, source, target."""
    from datasets import Dataset

    sources, targets = zip(*demo_sample, strict=True)
    return Dataset.from_dict({"index": list(range(len(sources))), "source": list(sources), "target": list(targets)})


@pytest.fixture(scope="session")
def encoded_sample(sample_rows, marian_tokenizer):
    """The sample, encoded."""
    from mtloop.tokenization.encoding import encode_rows

    return encode_rows(
        sample_rows, marian_tokenizer, max_source_length=64, max_target_length=64, source_prefix=None, num_workers=1
    )


@pytest.fixture
def rows_path(sample_rows, tmp_path) -> Path:
    """25 rows of the sample in a JSON lines file: a test set."""
    path = tmp_path / "news.jsonl"
    rows = [{"translation": {"en": row["source"], "fr": row["target"]}} for row in sample_rows.select(range(25))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def fresh_accelerate():
    """accelerate's process-wide state as at the start of a program, and none left behind."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    num_threads = torch.get_num_threads()
    reset()
    yield
    reset()
    torch.set_num_threads(num_threads)


@pytest.fixture
def runtime(fresh_accelerate, request):
    """One process on the CPU, in fp32 or in the precision that the test gives as parameter."""
    from mtloop.config.environment import HardwareConfig
    from mtloop.runtime.ranks import Runtime

    precision = getattr(request, "param", "no")
    started = Runtime(HardwareConfig(use_cpu=True, cpu_threads=1, mixed_precision=precision))
    yield started
    started.close()


@pytest.fixture(scope="session")
def pairs_path(demo_sample, tmp_path_factory) -> Path:
    """60 pairs in a JSON file: 54 to train on and 6 to validate, as the split of a tenth leaves them."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    path.write_text(json.dumps({"data": [{"en": en, "fr": fr} for en, fr in demo_sample[:60]]}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def marian_config():
    """Build a Marian's config as --model_size tiny has it, with one layer a side, of another size."""
    from transformers import PretrainedConfig

    from mtloop.config.model import ModelConfig
    from mtloop.model.loading import load_config

    def build(tokenizer, **size) -> PretrainedConfig:
        config = load_config(ModelConfig(model_size="tiny"), tokenizer)
        config.update({"encoder_layers": 1, "decoder_layers": 1, **size})
        return config

    return build


@pytest.fixture(scope="session")
def narrow_path(marian_config, marian_tokenizer, tmp_path_factory) -> Path:
    """Return a folder with the config of a Marian of one layer of width 32 a side."""
    folder = tmp_path_factory.mktemp("config")
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    marian_config(marian_tokenizer, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, **heads).save_pretrained(folder)
    return folder


@pytest.fixture
def new_run(pairs_path, marian_tokenizer, narrow_path, runtime, tmp_path):
    """Build a real Run from flags: new_run(name, flag=value, ...); a narrow Marian, 4 updates of 16 pairs an epoch."""
    from mtloop.config.parse import config_from
    from mtloop.config.settings import resolve
    from mtloop.trainer.resume import claim_folder
    from mtloop.trainer.setup import build_run, resolve_budget

    def build(name="run", **flags):
        given = {
            "train_file": pairs_path,
            "source_lang": "en",
            "target_lang": "fr",
            "tokenizer_name": marian_tokenizer.name_or_path,
            "dropout": 0.0,
            "sentences_per_update": 16,
            "num_beams": 1,
            "val_max_target_length": 12,
            "output_dir": tmp_path / name,
            "use_cpu": True,
        }
        if not any(flags.get(name) for name in ("model_size", "config_name", "model_name_or_path")):
            given["config_name"] = str(narrow_path)
        config = resolve(config_from({**given, **flags}))
        folder, stored = claim_folder(config, runtime)
        return build_run(resolve_budget(config, stored, num_ranks=1), stored, folder, runtime)

    return build


@pytest.fixture(scope="session")
def short_set(sample_rows, encoded_sample):
    """The 24 shortest rows of the sample, to evaluate on."""
    import numpy as np

    from mtloop.evaluation.evaluate import EvaluationSet

    shortest = np.argsort(encoded_sample.source_lengths + encoded_sample.target_lengths, kind="stable")[:24]
    return EvaluationSet(
        name="valid",
        rows=sample_rows.select(shortest),
        encoded=encoded_sample.rows.select(shortest),
        source_lengths=encoded_sample.source_lengths[shortest],
        target_lengths=encoded_sample.target_lengths[shortest],
    )


@pytest.fixture(scope="session")
def tiny_model(short_set, marian_config, marian_tokenizer, tmp_path_factory):
    """Return a Marian of one layer of width 128 a side that knows the first 16 rows of short_set by heart.

    It is in eval mode, and not to be changed.
    """
    import torch

    from mtloop.batching.loader import collate
    from mtloop.config.model import ModelConfig
    from mtloop.model.generation_config import configure_generation
    from mtloop.model.loading import build_model
    from mtloop.model.loss import batch_loss_sum

    torch.manual_seed(2)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("config")
    marian_config(marian_tokenizer).save_pretrained(folder)
    described = ModelConfig(config_name=str(folder), dropout=0.0)
    model = build_model(described, marian_tokenizer, max_length=64, attention="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    batch = collate(short_set.encoded, range(16), pad_id=marian_tokenizer.pad_token_id)
    for _ in range(40):
        (batch_loss_sum(model, batch) / len(batch["target_positions"])).backward()
        optimizer.step()
        optimizer.zero_grad()
    configure_generation(model, marian_tokenizer, num_beams=1, max_length=20, forced_bos_token_id=None)
    return model.eval()


@pytest.fixture(scope="session")
def model_path(tiny_model, marian_tokenizer, tmp_path_factory) -> Path:
    """A folder that loads: tiny_model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    marian_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_configs(marian_tokenizer):
    """A config of each seq2seq family by name, one layer of width 16 a side, for the vocabulary of marian_tokenizer."""
    from transformers import BartConfig, M2M100Config, MarianConfig, MBartConfig, PegasusConfig, T5Config

    pad, eos = marian_tokenizer.pad_token_id, marian_tokenizer.eos_token_id
    ids = {"vocab_size": len(marian_tokenizer), "pad_token_id": pad, "eos_token_id": eos}
    size = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
    size |= {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 512}
    return {
        "marian": MarianConfig(**ids, **size, decoder_start_token_id=pad, forced_eos_token_id=eos),
        "bart": BartConfig(**ids, **size, decoder_start_token_id=eos, forced_eos_token_id=eos),
        "mbart": MBartConfig(**ids, **size, forced_eos_token_id=eos),
        "m2m_100": M2M100Config(**ids, **size, decoder_start_token_id=eos),
        "pegasus": PegasusConfig(**ids, **size, decoder_start_token_id=pad, forced_eos_token_id=eos),
        "t5": T5Config(**ids, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=pad),
    }


@pytest.fixture(scope="session")
def plain_tokens(tiny_model, short_set):
    """What plain generate() makes of each row of short_set alone, without padding, by tiny_model."""
    import torch

    with torch.no_grad():
        return [
            tiny_model.generate(input_ids=torch.tensor([ids]))[0].tolist() for ids in short_set.encoded["input_ids"]
        ]
