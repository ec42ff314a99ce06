"""Say what stands in place of a checkpoint's folder."""

import re
from pathlib import Path

from ernie_export.common.errors import InvalidFile

# A hub's name of a model, alone or in an address; `Path` has made one of the two slashes after the scheme.
HUB_ID = re.compile(r"(?:(?:https?:/+[^/]+|hf:)/+)?([\w.-]+)/([\w.-]+)(?:/(?:tree|blob)/.*)?")


def require_folder(folder: Path) -> None:
    """Raise InvalidFile unless `folder` is one; for a model of a hub, the error says how to download it."""
    if folder.is_dir():
        return
    model = HUB_ID.fullmatch(str(folder))
    hint = ""
    if model is not None and not folder.parent.exists():
        hint = f"download it first: hf download {model[1]}/{model[2]} --local-dir {model[2]}"
    raise InvalidFile(folder, "a checkpoint folder", "a file" if folder.exists() else "none", hint=hint)
