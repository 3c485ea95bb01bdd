"""Check before training that the user can push: the token, the repository, the tags in it, and the license.

Errors are raised before data and model are loaded.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import get_session, validate_repo_id

from mtloop.config.model import split_revision
from mtloop.config.settings import Config
from mtloop.errors import UserError
from mtloop.hub.card import expected_metadata
from mtloop.hub.client import RETRY, configure_client, reason_of, status_of, verdict_of
from mtloop.hub.parts import MAIN_BRANCH, Target
from mtloop.hub.upload import keys_of

# As in the first commit that the Hub makes itself.
GIT_ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class HubUnreachable(UserError):
    """Raised if the Hub cannot be reached now, but may be later."""


def check_hub(config: Config, *, output_dir: str, run_id: str = "") -> Target:
    """Check that the user can push, and create the repository and the branch if they do not exist.

    Args:
        config: The flags of the Hub, and what the model card names; the license of the model that
            --model_name_or_path names is the default of --hub_license.
        output_dir: The run folder; its name is the default of --hub_model_id.
        run_id: Of the run, if it has one: the repository may hold its epochs already.

    Raises:
        HubUnreachable: if the Hub cannot be reached.
        UserError: for a missing or read-only token, an invalid name, or a repository with another run's epochs.
    """
    if constants.is_offline_mode():
        raise HubUnreachable(
            "--push_to_hub: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set. Unset it, or remove --push_to_hub."
        )
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
            raise UserError(f"--hub_private_repo: {name} is public. Make it private on the Hub first.")
        if not api.list_repo_refs(name).branches:
            _make_first_commit(api, name)
        if hub.hub_revision != MAIN_BRANCH:
            api.create_branch(name, branch=hub.hub_revision, exist_ok=True)
        license = hub.hub_license or license_of(api, config.model.model_name_or_path)
        target = Target(repo_id=name, revision=hub.hub_revision, license=license)
        if not hub.hub_overwrite:
            _check_tags(api, target, run_id)
        _check_card(config, target)
    except UserError:
        raise
    except Exception as error:  # the HTTP library's classes differ between huggingface_hub 1 and 2
        kind = HubUnreachable if verdict_of(error)[0] == RETRY else UserError
        raise kind(f"--push_to_hub: {_describe(error, name)}") from error
    return target


def _check_tags(api: HfApi, target: Target, run_id: str) -> None:
    """Refuse a repository with another run's epochs: their tags have the same names."""
    tags = {t.name: t.target_commit for t in api.list_repo_refs(target.repo_id).tags if target.owns_tag(t.name)}
    if not tags:
        return
    commits = api.list_repo_commits(target.repo_id, revision=target.revision)
    keys = keys_of(commits)
    foreign = [tag for tag, commit in tags.items() if not run_id or keys.get(commit, ())[:1] != (run_id,)]
    if foreign:
        shown = ", ".join(sorted(foreign)[:3]) + (" ..." if len(foreign) > 3 else "")
        raise UserError(
            f"--push_to_hub: {target.repo_id} holds the epochs of another run (got tags {shown}). Give another "
            "--hub_model_id, another branch with --hub_revision BRANCH, or --hub_overwrite to replace them."
        )


def _make_first_commit(api: HfApi, name: str) -> None:
    """Make the first commit of a repository that has none: pushes and branches need one to begin with."""
    try:
        file = CommitOperationAdd(".gitattributes", GIT_ATTRIBUTES.encode())
        api.create_commit(name, [file], commit_message="initial commit")
    except Exception as error:
        kind = HubUnreachable if verdict_of(error)[0] == RETRY else UserError
        raise kind(
            f"--push_to_hub: {name} has no commits, and none can be made ({reason_of(error)}). Add a file to it on the "
            "Hub, or give another --hub_model_id."
        ) from error


def _check_card(config: Config, target: Target) -> None:
    """Validate the card's metadata on the Hub now: it would reject the first epoch's card."""
    card = f"---\n{expected_metadata(config, target).to_yaml()}\n---\n"
    # Not ModelCard.validate, which ignores HF_ENDPOINT (huggingface_hub 1.33).
    answer = get_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json={"repoType": "model", "content": card})
    if answer.status_code == 400:
        reasons = "; ".join(error["message"] for error in answer.json().get("errors", []))
        if "license" in reasons:
            got = config.hub.hub_license or f"{target.license} of the base model"
            raise UserError(
                f"--hub_license: invalid license, {reasons} (got {got}). Give --hub_license, e.g. apache-2.0."
            )
        raise UserError(
            f"--push_to_hub: the Hub refuses the model card of this run ({reasons}). Change the setting that it names."
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


def _describe(error: Exception, name: str) -> str:
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
    return f"cannot reach {name!r} at {constants.ENDPOINT} ({reason}). Without a network, remove --push_to_hub."
