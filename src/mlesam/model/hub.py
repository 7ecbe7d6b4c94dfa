"""A model on the Hugging Face Hub as a folder on this machine: the cached one where it is whole, else a download."""

from __future__ import annotations

import sys
from pathlib import Path

from mlesam.errors import DataError

FILES = ("config.json", "*.safetensors")
"""What is downloaded of a repository: no pickles, no code."""


def is_hub_id(name: str) -> bool:
    """Whether a foundation's name is read as ``owner/name`` on the Hub."""
    is_path = name.endswith((".pt", ".pth")) or name.startswith((".", "/", "~")) or Path(name).is_dir()
    return name.count("/") == 1 and not is_path


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """Where the Hub's cache on this machine keeps a model's configuration and weights, without asking the network.

    The folder is named after the commit.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if any(folder.glob("*.safetensors")) else None  # a download that was interrupted has none


def fetch_folder(name: str, revision: str | None = None) -> Path:
    """The model's folder in the cache, downloaded first where it is not there yet.

    What is cached is taken as it is, so that a training without a network neither waits nor fails.

    Args:
        name: ``owner/name``. revision: branch, tag or commit; None: ``main``.

    Raises:
        DataError: the Hub cannot be reached or does not have it.
    """
    cached = cached_folder(name, revision)
    if cached is not None:
        return cached
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    at = "" if revision is None else f" --revision {revision}"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except HFValidationError as error:
        raise DataError(f"{name!r} can be no name on the Hub, which is owner/name; check model.foundation.") from error
    except GatedRepoError as error:
        raise DataError(f"the Hub gives {name} to approved users alone; ask there, then `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"there is no folder {name!r} here and no such model on the Hub, or it is private; check the name, or "
            "`hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"{name} has no revision {revision!r} on the Hub; give one of its branches, tags or commits."
        ) from error
    except LocalEntryNotFoundError as error:  # no network, or HF_HUB_OFFLINE
        raise DataError(
            f"{name}{at} is not in the Hub's cache on this machine and the Hub cannot be reached; name a local .pt file or "
            f"transformers folder as model.foundation, or run `hf download {name} config.json model.safetensors{at}` where "
            "there is a network and bring its cache (HF_HOME) here."
        ) from error
    except Exception as error:  # a download that breaks off raises what its HTTP library raises
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the download of {name} from the Hub failed ({reason}); try again.") from error
    finally:
        if quiet:
            enable_progress_bars()
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{name} came without config.json or without safetensors weights; name a SAM2 or Swin in the layout of "
            "transformers, such as facebook/sam2.1-hiera-tiny, and let the download end."
        )
    return folder
