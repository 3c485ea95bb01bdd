"""Interpolate between a fine-tuned model and its base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtloop.atomic import write_json
from mtloop.checkpoint.averaging import check_alike, interpolate_into
from mtloop.checkpoint.restore import AVERAGED_NAME
from mtloop.errors import UserError
from mtloop.tokenization.encoding import have_same_tokens


class Line:
    """The line between two models, which both stay in memory: on the host, in fp32.

    Attributes:
        tokenizer: The fine-tuned one's.
        base: The network before fine-tuning.
        fine_tuned: The network after it.
    """

    def __init__(self, fine_tuned: str, base: str, load: Callable[[str, str], tuple[Any, Any]]) -> None:
        """Load both. Collective.

        Args:
            fine_tuned: A name or folder.
            base: A name or folder.
            load: Takes the flag that names a model, and the name; returns its tokenizer and network.

        Raises:
            UserError: The models differ in more than their weights.
        """
        self._names = {"base": base, "fine_tuned": fine_tuned}
        self.tokenizer, self.fine_tuned = load("RUN", fine_tuned)
        base_tokenizer, self.base = load("--base", base)
        if type(self.base) is not type(self.fine_tuned):
            kinds = f"a {type(self.base).__name__}, the fine-tuned model a {type(self.fine_tuned).__name__}"
            raise UserError(
                f"--base: the base is {kinds} (got {base}). Give the model that {fine_tuned} was fine-tuned from."
            )
        if problem := check_alike(self.base, self.fine_tuned):
            raise UserError(
                f"--base: {problem} (got {base}). Give the model that {fine_tuned} was fine-tuned from, with the same "
                "vocabulary."
            )
        if not have_same_tokens(base_tokenizer, self.tokenizer):
            raise UserError(
                f"--base: its tokens differ from those of {fine_tuned} (got {base}). Give the model that it was "
                "fine-tuned from."
            )

    def put(self, network: Any, weight: float) -> None:
        """Put the weights at a point of the line into a network."""
        interpolate_into(network, self.base, self.fine_tuned, weight)

    def write(self, folder: Path, weight: float) -> None:
        """Write a model folder; the fine-tuned network holds the interpolated weights afterwards. Main only."""
        self.put(self.fine_tuned, weight)
        self.fine_tuned.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        # Paths of this machine are private.
        names = {end: Path(name).name if Path(name).exists() else name for end, name in self._names.items()}
        write_json(folder / AVERAGED_NAME, {"interpolation": {**names, "weight": weight}})
