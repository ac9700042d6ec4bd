"""The Hugging Face Hub: download and upload a saved folder, with one clear message per error."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._utils.checks import check_path, check_text
from .._utils.run_folder import SAVED_CONFIG

FILES = (SAVED_CONFIG, "prompts.safetensors", "README.md", "result.json", "calibration.json")
_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w-][\w.-]*")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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
    if not _ID.fullmatch(str(name)):
        raise FileNotFoundError(
            f"name: the folder {folder} does not exist; pass a folder, or the name of a "
            "repository on the Hub, such as org/run"
        )
    import huggingface_hub

    with _explained(str(name), revision):
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
    with _explained(repo, revision):
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
    if not _ID.fullmatch(check_text(repo, "repo")):
        raise ValueError(f"repo must be of the form org/run, got {repo!r}")
    return repo


@contextlib.contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Replace the errors of huggingface_hub, some of many lines, by one sentence and a remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repo} on the Hub is gated: ask for access on its page, then {_LOG_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        if _status(error) == 401:
            raise PermissionError(
                f"{repo} on the Hub does not exist or is private: check the name; if it is "
                f"private, {_LOG_IN}"
            ) from error
        raise FileNotFoundError(
            f"{repo} on the Hub does not exist, or your token has no access to it; check the name"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"revision: {repo} on the Hub has no {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(repo, error.__cause__ or error) from error
    except errors.OfflineModeIsEnabled as error:
        raise _unreachable(repo, error) from error
    except errors.HfHubHTTPError as error:
        status = _status(error)
        if status in (401, 403):
            raise PermissionError(
                f"{repo}: the Hub refuses access ({status}); {_LOG_IN}, with a token that may "
                "write there"
            ) from error
        raise ConnectionError(f"{repo}: the Hub failed ({_first(error)}); try later") from error
    except Exception as error:
        # the client of HTTP, and its errors, differ between versions of huggingface_hub
        if not re.search("connect|timeout|proxy", type(error).__name__, re.IGNORECASE):
            raise
        raise _unreachable(repo, error) from error


def _unreachable(repo: str, error: BaseException) -> ConnectionError:
    why = "HF_HUB_OFFLINE is set" if "Offline" in type(error).__name__ else _first(error)
    return ConnectionError(
        f"{repo}: the Hub cannot be reached ({why}), and the local cache does not have it; "
        "connect, or pass a folder"
    )


def _status(error: Any) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
