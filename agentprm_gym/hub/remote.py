"""The hub itself: one file down, one folder up. Both go through ``huggingface_hub``, which also knows the user's token.

A repository is named ``hub:USER/NAME`` or ``hub:USER/NAME@REVISION`` where a file's path could stand, too. What is fetched has
a fixed name, so that a repository does not choose what is read; it is checked where it is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

#: What a name begins with that is a repository's and not a file's.
PREFIX = "hub:"
#: The files that a repository of a policy or process reward model, and of a panel, has for this package.
MODEL, PANEL = "model.zip", "panel.jsonl.gz"
_LIBRARY = "agentprm-gym"


class Repository(NamedTuple):
    """A repository on the hub.

    Attributes:
        repo_id: ``"USER/NAME"``.
        revision: branch, tag or commit; ``None``: the main branch.
    """

    repo_id: str
    revision: str | None


def is_hub(name: Any) -> bool:
    """Whether a name says that it is a repository's.

    Args:
        name: any name, path or file.
    """
    return isinstance(name, str) and name.startswith(PREFIX)


def parse(name: str) -> Repository:
    """Read the name of a repository.

    Args:
        name: ``"USER/NAME"`` or ``"USER/NAME@REVISION"``, with or without :data:`PREFIX`.

    Raises:
        ValueError: it is not such a name.

    Example:
        >>> parse("hub:me/agentprm-tiny@v1")
        Repository(repo_id='me/agentprm-tiny', revision='v1')
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not listed

    repo_id, at, revision = name.removeprefix(PREFIX).partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"expected a repository of the hub such as 'hub:USER/NAME', got {name!r} ({error})") from error
    if repo_id.count("/") != 1 or (at and not revision):
        raise ValueError(
            f"expected a repository of the hub such as 'hub:USER/NAME' or 'hub:USER/NAME@v1', got {name!r}"
        )
    return Repository(repo_id, revision or None)


def fetch(name: str | os.PathLike[str], file: str = MODEL, *, kind: str = "model", revision: str | None = None) -> Path:
    """One file of a repository, in the hub's cache of this machine; or of a folder, where there is one of that name.

    Args:
        name: ``"USER/NAME"``, ``"USER/NAME@REVISION"``, either with ``"hub:"`` before it, or a folder.
        file: the file's name in the repository.
        kind: ``"model"`` or ``"dataset"``.
        revision: branch, tag or commit, in place of that in the name.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: the folder or the repository does not have the file, or this machine is offline and has no copy.
        ValueError: the name is not one of a repository.
        OSError: the hub refused, or could not be reached.
    """
    name = os.fspath(name)
    if not is_hub(name) and os.path.isdir(name):
        path = Path(name) / file
        if not path.is_file():
            raise FileNotFoundError(f"the folder {name!r} has no {file}: expected one that save_pretrained wrote")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo_id, named = parse(name)
    at = revision or named
    what = f"{repo_id}@{at}" if at else repo_id
    try:
        return Path(hf_hub_download(repo_id, file, repo_type=kind, revision=at, library_name=_LIBRARY))
    except GatedRepoError as error:
        raise OSError(
            f"the repository {what} of the hub is gated: ask for access on its page, and log in with 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"the hub has no {kind} repository {what}, or it is private: check the name, or log in with 'hf auth login'"
        ) from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{file} of {what} is not in the hub's cache of this machine, and the hub cannot be reached: connect to a network "
            "once, or name a file"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404:
            raise FileNotFoundError(
                f"the repository {what} has no {file}, or no such revision: expected one that push_to_hub made"
            ) from error
        raise OSError(f"the hub answered {status} when asked for {file} of {what}: try again later") from error


def upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    kind: str = "model",
    private: bool | None = None,
    message: str = "Upload with agentprm-gym",
    token: str | None = None,
) -> str:
    """Make a repository where it is missing, and upload a folder into it as one commit; files of the same names are replaced.

    Args:
        folder: what to upload.
        repo_id: ``"USER/NAME"``.
        kind: ``"model"`` or ``"dataset"``.
        private: whether a new repository is private; ``None``: as the account has it by default, which is public for most.
        message: of the commit.
        token: of the account; ``None``: the one that ``hf auth login`` or ``HF_TOKEN`` set.

    Returns:
        Address of the commit.

    Raises:
        ValueError: the name is not one of a repository.
        PermissionError: there is no token, or it must not write there.
        OSError: the hub could not be reached, or answered with another error.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    repo_id, revision = parse(repo_id)
    if revision is not None:
        raise ValueError(f"a folder is uploaded to the main branch: leave out {'@' + revision!r}")
    # What the client of the web raises, whichever of its packages this version of huggingface_hub uses.
    web_error: Any = HfHubHTTPError.__bases__[0]
    api = HfApi(library_name=_LIBRARY, token=token)
    try:
        made = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id, folder_path=os.fspath(folder), repo_type=kind, commit_message=message
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"the hub does not let this account write to {repo_id} ({status}): log in with 'hf auth login' as somebody who "
                "may, or set HF_TOKEN to a token with write access"
            ) from error
        raise OSError(f"the hub answered {status} when {repo_id} was to be written: {error}") from error
    except (web_error, RuntimeError) as error:  # an upload that broke is a RuntimeError
        raise OSError(
            f"the hub could not be reached when {repo_id} was to be written: {error.__cause__ or error}"
        ) from error
    return str(commit.commit_url)


class Pushed:
    """What can be written as the folder of a repository, and so be uploaded."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Path:
        """Write the folder of a repository, the first argument; a subclass says what is in it."""
        raise NotImplementedError(f"{type(self).__name__} must implement save_pretrained(folder, **kwargs)")

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **kwargs: Any) -> str:
        """Upload this model to the hub; :meth:`save_pretrained` says what is in it.

        Args:
            repo_id: ``"USER/NAME"``.
            private: whether a new repository is private; ``None``: as the account has it.
            token: of the account; ``None``: the one that ``hf auth login`` or ``HF_TOKEN`` set.
            kwargs: of :meth:`save_pretrained`.

        Returns:
            Address of the commit.

        Raises:
            ValueError: as :meth:`save_pretrained`.
            OSError: the hub refused (``PermissionError``), or could not be reached.

        Example:
            >>> model.push_to_hub("me/agentprm-tiny", results=["runs/eval/agentprm-valid_seen"])  # doctest: +SKIP
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repo_id, **kwargs)
            return upload(folder, repo_id, private=private, token=token)
