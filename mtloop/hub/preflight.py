"""Before a run that pushes begins: may this user write there, is the place free, and what does the base model's
license say? One clear line where not, before data and model are loaded.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import get_session, validate_repo_id

from mtloop.config.inputs import split_revision
from mtloop.config.training import HubConfig
from mtloop.errors import UserError
from mtloop.hub.client import RETRY, reason_of, settle_client, status_of, verdict_of
from mtloop.hub.parts import MAIN_BRANCH, Target
from mtloop.hub.upload import read_key


class OutOfReach(UserError):
    """The Hub cannot be asked now; later it may."""


def check_hub(hub: HubConfig, *, output_dir: str, run_id: str = "", base_model: str | None = None) -> Target:
    """Make sure that this user can push, and create the repository and the branch where they are missing.

    Args:
        hub: The flags.
        output_dir: The run folder; its name is the repository's where --hub_model_id is not given.
        run_id: Of the run, where it has one: epochs of it may be there already.
        base_model: As --model_name_or_path names it; its license is the card's where --hub_license is not given.

    Raises:
        OutOfReach: where there is no way to the Hub.
        UserError: for a missing or read-only token, a bad name, or another run's epochs there.
    """
    if constants.is_offline_mode():
        raise OutOfReach(
            "--push_to_hub: HF_HUB_OFFLINE is set (or TRANSFORMERS_OFFLINE); unset it, or leave --push_to_hub out"
        )
    settle_client()
    name = hub.hub_model_id or Path(output_dir).resolve().name
    try:
        validate_repo_id(name)
        api = HfApi(token=True)
        if "/" not in name:
            name = f"{api.whoami()['name']}/{name}"
        api.create_repo(name, exist_ok=True, private=hub.hub_private_repo or None)
        api.auth_check(name, write=True)  # create_repo lets a read-only token pass where the repository exists
        if hub.hub_private_repo and api.model_info(name).private is False:
            raise UserError(f"--hub_private_repo: {name} exists and is public; make it private on the Hub first")
        if hub.hub_revision != MAIN_BRANCH:
            api.create_branch(name, branch=hub.hub_revision, exist_ok=True)
        target = Target(repo_id=name, revision=hub.hub_revision, license=hub.hub_license or license_of(api, base_model))
        if not hub.hub_overwrite:
            _check_tags(api, target, run_id)
        _check_license(target, hub.hub_license)
    except UserError:
        raise
    except Exception as error:  # those of the HTTP client have other classes in hub 1 than in hub 2
        kind = OutOfReach if verdict_of(error)[0] == RETRY else UserError
        raise kind(f"--push_to_hub: {_refusal(error, name)}") from error
    return target


def _check_tags(api: HfApi, target: Target, run_id: str) -> None:
    """Refuse a place where another run's epochs are: this run's would be taken for them."""
    tags = {t.name: t.target_commit for t in api.list_repo_refs(target.repo_id).tags if target.owns_tag(t.name)}
    if not tags:
        return
    commits = api.list_repo_commits(target.repo_id, revision=target.revision)
    keys = {commit.commit_id: read_key(f"{commit.title}\n{commit.message}") for commit in commits}
    foreign = [tag for tag, commit in tags.items() if not run_id or keys.get(commit, ())[:1] != (run_id,)]
    if foreign:
        shown = ", ".join(sorted(foreign)[:3]) + (" ..." if len(foreign) > 3 else "")
        raise UserError(
            f"--push_to_hub: {target.repo_id} holds the epochs of another run (tags {shown}); give another "
            "--hub_model_id, a branch of its own with --hub_revision BRANCH, or --hub_overwrite to replace them"
        )


def _check_license(target: Target, asked: str | None) -> None:
    """Let the Hub judge the license's name now: it would refuse the first epoch's card."""
    if target.license is None:
        return
    card = f"---\n{ModelCardData(license=target.license).to_yaml()}\n---\n"
    # Not ModelCard.validate, which asks huggingface.co whatever HF_ENDPOINT says (huggingface_hub 1.33).
    answer = get_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json={"repoType": "model", "content": card})
    if answer.status_code == 400:
        reasons = "; ".join(error["message"] for error in answer.json().get("errors", []))
        flag = f"--hub_license {asked}" if asked else f"the base model's license {target.license!r}"
        raise UserError(f"{flag}: the Hub refuses it ({reasons}); give --hub_license, as apache-2.0")


def license_of(api: HfApi, base_model: str | None) -> str | None:
    """Read the license that a base model's own card states; None where there is none to be read: none is invented."""
    if base_model is None:
        return None
    name, revision = split_revision(base_model)
    with contextlib.suppress(Exception):  # no such file, no such model, no card: all of it means that none is stated
        if Path(name).is_dir():
            return _text(ModelCard.load(Path(name) / "README.md", ignore_metadata_errors=True).data.license)
        return _text(getattr(api.model_info(name, revision=revision).card_data, "license", None))
    return None


def _text(license: object) -> str | None:
    return license if isinstance(license, str) and license else None


def _refusal(error: Exception, name: str) -> str:
    status = status_of(error)
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token for the Hub; set HF_TOKEN or run `hf auth login`"
    if status in (401, 403, 404):
        remedy = "give one that may, in HF_TOKEN or with `hf auth login`, or another --hub_model_id"
        return f"the token may not write to {name!r} (status {status}); {remedy}"
    if isinstance(error, HFValidationError) or status in (400, 422):
        return f"{name!r} cannot be a repository's name ({reason_of(error)}); give --hub_model_id OWNER/NAME"
    reason = f"{type(error).__name__}: {reason_of(error)}"
    return f"{name!r} is out of reach at {constants.ENDPOINT} ({reason}); without network leave --push_to_hub out"
