"""The Hugging Face Hub: download and upload a saved folder."""

from pathlib import Path

from .._utils.checks import check_path, check_text
from .._utils.hub import REPOSITORY, explained
from .._utils.run_folder import SAVED_CONFIG

FILES = (SAVED_CONFIG, "prompts.safetensors", "README.md", "result.json", "calibration.json")


def fetch(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder ``name``, or that of the repository ``org/run`` in the Hub's local cache.

    Only the files of a saved folder are downloaded, and none that the cache has.

    Raises:
        FileNotFoundError: there is no such folder, repository, or revision; or the repository
            holds no saved prompts.
        PermissionError: the repository is private or gated, and the token does not open it.
        ConnectionError: the Hub cannot be reached, and the cache does not have the repository.
        ValueError: ``revision`` is given with a folder.
    """
    folder = check_path(name, "name")
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision is for repositories of the Hub, but {folder} is a folder; omit it"
            )
        return folder
    if not REPOSITORY.fullmatch(str(name)):
        raise FileNotFoundError(
            f"name: the folder {folder} does not exist; pass a folder, or the name of a "
            "repository on the Hub, such as org/run"
        )
    import huggingface_hub

    with explained(str(name), revision):
        found = Path(
            huggingface_hub.snapshot_download(
                str(name),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )
        )
    if not (found / SAVED_CONFIG).exists():
        raise FileNotFoundError(
            f"name: {name} on the Hub has no {SAVED_CONFIG}: it holds no prompts of fastprompt"
        )
    return found


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Tuned prompts",
) -> str:
    """Upload a saved folder in one commit, and return the repository's address.

    Raises:
        ValueError: ``repo`` is not of the form ``org/run``.
        PermissionError: no token, or one that may not write there.
        FileNotFoundError: the repository has no branch ``revision``.
        ConnectionError: the Hub cannot be reached.
    """
    check_repo(repo)
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token, library_name="fastprompt")
    with explained(repo, revision):
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(FILES),
            delete_patterns=list(FILES),  # such as the result of other prompts
            revision=revision,
            commit_message=message,
        )
    return str(address)


def check_repo(repo: str) -> str:
    """Return the name of a repository; raise ValueError unless it is of the form ``org/run``."""
    if not REPOSITORY.fullmatch(check_text(repo, "repo")):
        raise ValueError(f"repo must be of the form org/run, got {repo!r}")
    return repo
