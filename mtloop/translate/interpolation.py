"""Between a fine-tuned model and its base: what of the new is worth how much of the old."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mtloop.atomic import write_json
from mtloop.checkpoint.averaging import check_alike, interpolate_into
from mtloop.checkpoint.listing import model_folder
from mtloop.checkpoint.restore import AVERAGED_NAME
from mtloop.config.settings import Config, is_from_scratch
from mtloop.errors import UserError, renamed
from mtloop.generation.engine import load_pair
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.encoding import have_same_tokens


def base_of(given: argparse.Namespace, trained: Config | None) -> str:
    """Name the base: --base, else what the run was fine-tuned from.

    Raises:
        UserError: where the run says none.
    """
    if given.base is not None:
        return str(given.base)
    if trained is None:
        raise UserError(f"{given.model}: no run folder, so --base says what it was fine-tuned from")
    if is_from_scratch(trained):
        raise UserError(f"{given.model}: was trained from scratch; --base says what to interpolate with")
    return str(trained.model.model_name_or_path)


class Line:
    """The line between two models, which both stay in memory: on the host, in fp32.

    Attributes:
        tokenizer: The fine-tuned one's.
        base: The network that was.
        fine_tuned: The network that became of it.
    """

    def __init__(self, given: argparse.Namespace, base: str, runtime: Runtime) -> None:
        """Load both. Collective.

        Raises:
            UserError: for models between which there is no line.
        """
        self._names = {"base": base, "fine_tuned": str(given.model)}
        self.tokenizer, self.fine_tuned = _load("RUN", given.model, given, runtime)
        base_tokenizer, self.base = _load("--base", base, given, runtime)
        if type(self.base) is not type(self.fine_tuned):
            kinds = f"a {type(self.base).__name__}, the fine-tuned model a {type(self.fine_tuned).__name__}"
            raise UserError(f"--base {base}: it is {kinds}; give what {given.model} was fine-tuned from")
        if problem := check_alike(self.base, self.fine_tuned):
            raise UserError(
                f"--base {base}: {problem}: no line leads from one to the other; give what {given.model} was "
                "fine-tuned from, with the same vocabulary"
            )
        if not have_same_tokens(base_tokenizer, self.tokenizer):
            raise UserError(
                f"--base {base}: its tokenizer has other pieces than that of {given.model}; give what it was "
                "fine-tuned from"
            )

    def put(self, network: Any, weight: float) -> None:
        """Give a network the weights at a point of the line."""
        interpolate_into(network, self.base, self.fine_tuned, weight)

    def write(self, folder: Path, weight: float) -> None:
        """Write a folder that loads; the fine-tuned network is the interpolated one from then on. Main only."""
        self.put(self.fine_tuned, weight)
        self.fine_tuned.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        # Where a model lies on this machine is nobody's business.
        names = {end: Path(name).name if Path(name).exists() else name for end, name in self._names.items()}
        write_json(folder / AVERAGED_NAME, {"interpolation": {**names, "weight": weight}})


def _load(flag: str, name: str, given: argparse.Namespace, runtime: Runtime) -> tuple[Any, Any]:
    try:
        return load_pair(
            model_folder(name),
            runtime,
            source_lang=given.source_lang,
            target_lang=given.target_lang,
            trust_remote_code=given.trust_remote_code,
        )
    except UserError as error:
        raise renamed(error, flag) from error
