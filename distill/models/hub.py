"""Look models up on the Hugging Face hub, without importing torch."""

import functools
from pathlib import Path

from distill.errors import UserError, first_line


@functools.cache  # a sweep asks for each of its values
def check_hub(spec: str, key: str, revision: str | None) -> None:
    """Check that a hub id can be had: it is in the local hub cache, or the hub has it.

    Raises:
        UserError: it is in neither.
    """
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(spec, "config.json", revision=revision), str):
        hub_commit(spec, key, revision)


def hub_commit(spec: str, key: str, revision: str | None) -> str:
    """The hub's current commit of this model or, without network, the one in the local hub cache.

    Raises:
        UserError: neither has it.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    reason = "the hub has no such model, or it is private or gated"
    try:
        # Call the API directly: without network, from_pretrained retries for half a minute.
        return str(HfApi().model_info(spec, revision=revision, timeout=10).sha)
    except RevisionNotFoundError:
        reason = f"the hub's model has no revision {revision!r}"
    except RepositoryNotFoundError:
        pass
    except Exception as error:  # errors of the hub client's HTTP libraries share no base class
        cached = try_to_load_from_cache(spec, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        reason = f"the hub is not reachable and the model is not in its local cache: {first_line(error)}"
    raise UserError(
        f"{key}={spec} is neither a local folder nor to be had from the hub ({reason}); "
        f"give a local folder or GGUF file: {key}=/path/to/model"
    )
