"""Check before training that the user can push: the token, the repository, the tags in it, and the license.

Errors are raised before data and model are loaded.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import get_session, validate_repo_id

from mtloop.config.model import split_revision
from mtloop.config.settings import Config
from mtloop.errors import UserError
from mtloop.hub.card import expected_metadata
from mtloop.hub.client import RETRY, configure_client, reason_of, status_of, verdict_of, without_token
from mtloop.hub.parts import MAIN_BRANCH, Target, commits_of
from mtloop.hub.upload import Commits, keys_of
from mtloop.run_folder import RunFolder

FLAG = "--push_to_hub"
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the first one that is not empty counts

# As in the first commit that the Hub makes itself.
GIT_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class HubUnreachable(UserError):
    """Raised if the Hub cannot be reached now, but may be later."""


def check_hub(config: Config, *, output_dir: str, run_id: str = "") -> Target:
    """Check that the user can push, as ask_hub, and return the repository and branch."""
    return ask_hub(config, output_dir=output_dir, run_id=run_id)[0]


def ask_hub(config: Config, *, output_dir: str, run_id: str = "", place: str = FLAG) -> tuple[Target, Commits]:
    """Check that the user can push, and create the repository and the branch if they do not exist.

    Args:
        config: The flags of the Hub, and what the model card names; the license of the model that
            --model_name_or_path names is the default of --hub_license.
        output_dir: The run folder; its name is the default of --hub_model_id.
        run_id: Of the run, if it has one: the repository may hold its epochs already.
        place: What errors begin with: the flag or the command that was given.

    Returns:
        The repository and branch, and the commits of the branch.

    Raises:
        HubUnreachable: if the Hub cannot be reached.
        UserError: for a missing or read-only token, an invalid name, or a repository with another run's epochs.
    """
    if constants.is_offline_mode():
        raise HubUnreachable(_describe_offline(place))
    configure_client()
    hub = config.hub
    name = hub.hub_model_id or Path(output_dir).resolve().name
    try:
        validate_repo_id(name)
        api = HfApi(token=True)
        if "/" not in name:
            name = f"{api.whoami()['name']}/{name}"
        api.create_repo(name, exist_ok=True, private=hub.hub_private_repo or None)
        api.auth_check(name, write=True)  # create_repo accepts a read-only token if the repository exists
        if hub.hub_private_repo and api.model_info(name).private is False:
            raise UserError(
                f"{place}: {name} is public, and a private repository is asked for (got --hub_private_repo, of this "
                "command or of the run). Make it private on the Hub first."
            )
        refs = api.list_repo_refs(name)
        if not refs.branches:
            _make_first_commit(api, name, place=place)
        if hub.hub_revision != MAIN_BRANCH:
            api.create_branch(name, branch=hub.hub_revision, exist_ok=True)
        license = hub.hub_license or license_of(api, config.model.model_name_or_path)
        target = Target(repo_id=name, revision=hub.hub_revision, license=license)
        commits = keys_of(api.list_repo_commits(name, revision=target.revision))
        if not hub.hub_overwrite:
            own = {commit_id for commit_id, key in commits.items() if run_id and key[:1] == (run_id,)}
            # The tags of commits that the branch has lost are still there.
            own |= commits_of(RunFolder(Path(output_dir)), run_id)
            tags = [tag.name for tag in refs.tags if target.owns_tag(tag.name) and tag.target_commit not in own]
            _check_tags(target, tags, place=place)
        _check_card(config, target, place=place)
    except UserError:
        raise
    except Exception as error:  # the HTTP library's classes differ between huggingface_hub 1 and 2
        kind = HubUnreachable if verdict_of(error)[0] == RETRY else UserError
        raise kind(f"{place}: {_describe(error, name, place=place)}") from error
    return target, commits


def _describe_offline(place: str) -> str:
    variable = next((name for name in OFFLINE_VARIABLES if os.environ.get(name)), OFFLINE_VARIABLES[0])
    got = f"(got {os.environ.get(variable)})"
    if place == FLAG:
        return f"{FLAG}: {variable} is set {got}. Unset it, or remove {FLAG}."
    return f"{variable}: {place} needs the Hub {got}. Unset it."


def _check_tags(target: Target, foreign: list[str], *, place: str) -> None:
    """Refuse a repository with another run's epochs: their tags have the same names."""
    if foreign:
        shown = ", ".join(sorted(foreign)[:3]) + (" ..." if len(foreign) > 3 else "")
        raise UserError(
            f"{place}: {target.repo_id} holds the epochs of another run (got tags {shown}). Give another "
            "--hub_model_id, another branch with --hub_revision BRANCH, or --hub_overwrite to replace them."
        )


def _make_first_commit(api: HfApi, name: str, *, place: str) -> None:
    """Make the first commit of a repository that has none: pushes and branches need one to begin with."""
    try:
        file = CommitOperationAdd(".gitattributes", GIT_ATTRIBUTES.encode())
        api.create_commit(name, [file], commit_message="initial commit")
    except Exception as error:
        kind = HubUnreachable if verdict_of(error)[0] == RETRY else UserError
        raise kind(
            f"{place}: {name} has no commits, and none can be made ({reason_of(error)}). Add a file to it on the "
            "Hub, or give another --hub_model_id."
        ) from error


def _check_card(config: Config, target: Target, *, place: str) -> None:
    """Validate the card's metadata on the Hub now: it would reject the first epoch's card."""
    card = f"---\n{expected_metadata(config, target).to_yaml()}\n---\n"
    # Not ModelCard.validate, which ignores HF_ENDPOINT (huggingface_hub 1.33).
    answer = get_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json={"repoType": "model", "content": card})
    if answer.status_code == 400:
        reasons = "; ".join(error["message"] for error in answer.json().get("errors", []))
        if "license" in reasons:
            got = f"{target.license}, --hub_license of this command or of the run"
            if not config.hub.hub_license:
                got = f"{target.license} of the base model"
            raise UserError(
                f"{place}: invalid license, {reasons} (got {got}). Give --hub_license, for example apache-2.0."
            )
        raise UserError(
            f"{place}: the Hub refuses the model card of this run ({reasons}). Change the setting that it names."
        )


def license_of(api: HfApi, base_model: str | None) -> str | None:
    """Return the license of a base model's card; None if it has none or cannot be read."""
    if base_model is None:
        return None
    name, revision = split_revision(base_model)
    with contextlib.suppress(Exception):  # no such file, no such model or no card
        if Path(name).is_dir():
            return _text(ModelCard.load(Path(name) / "README.md", ignore_metadata_errors=True).data.license)
        return _text(getattr(api.model_info(name, revision=revision).card_data, "license", None))
    return None


def _text(license: object) -> str | None:
    return license if isinstance(license, str) and license else None


def _describe(error: Exception, name: str, *, place: str) -> str:
    status = status_of(error)
    if isinstance(error, LocalTokenNotFoundError):
        return "no token for the Hub. Set HF_TOKEN or run `hf auth login`."
    if status == 401:
        return f"the Hub refuses the token for {name!r} (status 401). Log in with `hf auth login`, or set HF_TOKEN."
    if status in (403, 404):
        remedy = "Give one that can, in HF_TOKEN or with `hf auth login`, or another --hub_model_id."
        return f"the token cannot write to {name!r} (status {status}). {remedy}"
    if isinstance(error, HFValidationError) or status in (400, 422):
        return (
            f"invalid repository name (got {name!r}): {reason_of(error).rstrip('.')}. Give --hub_model_id OWNER/NAME."
        )
    reason = f"{type(error).__name__}: {reason_of(error)}"
    remedy = f"Without a network, remove {FLAG}." if place == FLAG else "Try again when it can be reached."
    return f"cannot reach {name!r} at {without_token(constants.ENDPOINT)} ({reason}). {remedy}"
