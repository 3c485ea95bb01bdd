"""The one rule of how a flag names a model, tokenizer or data set: a path, NAME or NAME@REVISION."""

from pathlib import Path


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `name@revision`; revision is None where none is given, and for a path that exists."""
    if Path(name).exists():
        return name, None
    base, _, revision = name.partition("@")
    return base, revision or None
