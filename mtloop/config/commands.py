"""Bounds of the numbers that only commands have."""

import dataclasses
from dataclasses import dataclass

from mtloop.config.fields import MAX_BATCH_TOKENS, MAX_COUNT, Field, Group, setting
from mtloop.config.settings import FIELDS


@dataclass(frozen=True, kw_only=True)
class CommandNumbers(Group):
    """Numbers that only commands have; the others have the bounds of the settings."""

    n_best: int | None = setting(None, "", minimum=1, maximum=FIELDS["num_beams"].metadata["maximum"])
    max_tokens_per_batch: int | None = setting(None, "", minimum=1, maximum=MAX_BATCH_TOKENS)
    max_samples: int | None = setting(None, "", minimum=1, maximum=MAX_COUNT)
    num_resamples: int | None = setting(None, "", minimum=1, maximum=1_000_000)
    max_shown: int | None = setting(None, "", minimum=1, maximum=1_000_000)
    last: int | None = setting(None, "", minimum=2, maximum=FIELDS["average_last"].metadata["maximum"])
    best: int | None = setting(None, "", minimum=2, maximum=FIELDS["average_last"].metadata["maximum"])
    weight: float | None = setting(None, "", minimum=0, maximum=1)
    epoch: int | None = setting(None, "", minimum=1, maximum=MAX_COUNT)
    num_processes: int | None = setting(None, "", minimum=1, maximum=FIELDS["expect_processes"].metadata["maximum"])


NUMBERS: dict[str, Field] = {one.name: one for one in dataclasses.fields(CommandNumbers)}
