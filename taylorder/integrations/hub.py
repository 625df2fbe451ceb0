"""A config to and from a repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of the library that it calls
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)

from taylorder.adapt.config import OrderConfig
from taylorder.errors import TaylorderError, UsageError, first_line
from taylorder.models.quiet import quiet_transformers
from taylorder.runs.run_files import CARD_FILE, FILES
from taylorder.storage.files import replacing_together

_PULLED = (CARD_FILE, "orders.safetensors", FILES["orders"])
"""What is fetched; the last one says that the others are there."""


def push(config: OrderConfig, card: str, repository: str, *, private: bool) -> str:
    """Write a config and its card into a repository, which is created if need be.

    Returns:
        the address of the repository.

    Raises:
        UsageError: the name cannot be one, or nobody is logged in.
        TaylorderError: the Hub refused, or cannot be reached.

    """
    api = HfApi()
    with _explained(repository), TemporaryDirectory() as folder:
        made = Path(folder)
        config.save(made / FILES["orders"])
        (made / CARD_FILE).write_text(card, encoding="utf-8")
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=made, commit_message="Config of taylorder")
    return str(address)


def pull(repository: str, folder: Path, revision: str | None = None) -> OrderConfig:
    """Fetch a config, look whether it is one, and put it into a folder.

    Raises:
        UsageError: there is no such repository, or it has no config.
        ConfigError: the config is malformed.
        TaylorderError: the Hub refused, or cannot be reached; the folder cannot be written.

    """
    with _explained(repository):
        there = Path(snapshot_download(repository, revision=revision, allow_patterns=list(_PULLED)))
    if not (there / FILES["orders"]).is_file():
        raise UsageError(f"{repository} has no {FILES['orders']}; name a repository that `taylorder push` wrote")
    config = OrderConfig.load(there / FILES["orders"])
    try:
        with replacing_together(folder, _PULLED) as made:
            config.save(made / FILES["orders"])
            if (there / CARD_FILE).is_file():
                (made / CARD_FILE).write_bytes((there / CARD_FILE).read_bytes())
    except OSError as error:
        raise TaylorderError(f"--out {folder} cannot be written ({error.strerror or error}); name another") from error
    return config


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn what the Hub's library raises into one named error, and keep it quiet."""
    try:
        with quiet_transformers():
            yield
    except HFValidationError as error:
        raise UsageError(
            f"{repository} cannot be a repository ({first_line(error)}); expected OWNER/NAME, as on the Hub"
        ) from error
    except LocalTokenNotFoundError as error:
        raise UsageError("nobody is logged in to the Hub here; `hf auth login` does that, or set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"{repository} is not on the Hub, or not for the one who is logged in; check the name, or `hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in {401, 403}
        way_out = "; `hf auth login` with a token that may write there" if refused else ""
        raise TaylorderError(f"the Hub refused {repository} ({first_line(error)}){way_out}") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise TaylorderError(f"the Hub cannot be reached for {repository} ({first_line(error)}); try again") from error
