"""A hook of mkdocs. Pages link to files of the repository that are none of the site's, such as measurements: there the
link is left out and the file's name said.
"""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)
