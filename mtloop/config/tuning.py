"""Which weights of the model are trained: all, all but frozen parts, or a LoRA adapter. Fields and contradictions."""

from dataclasses import dataclass
from typing import Any

from mtloop.config.checks import Group, at_least, below_one, setting
from mtloop.errors import FieldError

PARTS = ("encoder", "decoder", "embeddings")
ALL_LINEAR = "all-linear"


def names(value: Any) -> str:
    """Accept a list of at least one name; an item may be several with commas between."""
    is_list = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return "" if is_list and _separate(value) else "give one name or more, with commas or spaces between"


def _separate(items: list[str]) -> list[str]:
    return [name.strip() for item in items for name in item.split(",") if name.strip()]


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Group):
    """What of the model is trained."""

    _argument_group_name = "what is trained"

    freeze: list[str] | None = setting(
        None,
        f"parts that stay as they are, of {', '.join(PARTS)}: an encoder or decoder without its table of pieces, which "
        "both may share; embeddings are the tables of pieces and positions, and an output layer tied to them (none: "
        "all is trained)",
        same_run=True,
        check=names,
    )
    lora_rank: int | None = setting(
        None,
        "train a LoRA adapter of this rank beside the frozen model (none: no adapter)",
        same_run=True,
        check=at_least(1),
    )
    lora_alpha: int | None = setting(
        None, "the adapter counts alpha / rank times (none: twice the rank)", same_run=True, check=at_least(1)
    )
    lora_dropout: float = setting(0.0, "dropout probability of the adapter's input", same_run=True, check=below_one)
    lora_target_modules: list[str] | None = setting(
        None,
        f"linear layers that get an adapter, or {ALL_LINEAR} (none: query and value projections of the attentions)",
        same_run=True,
        check=names,
    )

    def __post_init__(self) -> None:
        """Refuse values and pairs of values that contradict each other."""
        super().__post_init__()
        for name in ("freeze", "lora_target_modules"):
            if value := getattr(self, name):
                object.__setattr__(self, name, list(dict.fromkeys(_separate(value))))
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if getattr(self, name) and not self.lora_rank:
                raise FieldError(name, f"{_shown(getattr(self, name))}: only with --lora_rank N")
        if self.freeze:
            self._check_freeze(self.freeze)

    def _check_freeze(self, parts: list[str]) -> None:
        if unknown := [part for part in parts if part not in PARTS]:
            raise FieldError("freeze", f"{unknown[0]}: no such part; give one or more of {', '.join(PARTS)}")
        if self.lora_rank:
            raise FieldError(
                "freeze",
                f"{_shown(parts)}: with --lora_rank all of the model is frozen and the adapter alone is trained: leave "
                "one out",
            )
        object.__setattr__(self, "freeze", [part for part in PARTS if part in parts])


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
