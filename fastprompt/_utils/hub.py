"""The Hugging Face Hub: names of repositories, and one clear message per error."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w-][\w.-]*")  # org/name
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextlib.contextmanager
def explained(repo: str, revision: str | None = None) -> Iterator[None]:
    """Replace the errors of huggingface_hub, some of many lines, by one sentence and a remedy.

    Raises:
        FileNotFoundError: there is no such repository or revision.
        PermissionError: the repository is private or gated, or the token may not write there.
        ConnectionError: the Hub cannot be reached, and the cache does not have the repository.
    """
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
