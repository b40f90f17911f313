"""Upload an export to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from distill.errors import UserError, first_line
from distill.models.path import is_hub_id


def check_push(repository: Any) -> None:
    """Check before anything is computed that an upload could begin.

    Raises:
        UserError: the name is no `owner/name`, or this machine has no token of the hub.
    """
    if repository is None:
        return
    if not is_hub_id(str(repository)) or "/" not in str(repository):
        raise UserError(f"push_to_hub={repository} is no hub id: write owner/name")
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(
            f"push_to_hub={repository}: this machine has no token of the Hugging Face hub: run "
            f"`hf auth login`, or set HF_TOKEN"
        )


def push(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Upload a folder to a model repository, which is created if it does not exist.

    Args:
        folder: with the model and its card.
        repository: `owner/name`.
        private: whether a new repository is private; one that is there stays as it is.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        UserError: the hub refuses it or is not reachable; the export is kept.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, ignore_patterns=["checksums.json"]
        )
    except Exception as error:  # errors of the hub client's HTTP libraries share no base class
        raise UserError(
            f"push_to_hub={repository}: the upload failed ({first_line(error)}); the export in {folder} is "
            f"complete: run the same command again"
        ) from error
    return str(address)
