"""MkDocs hooks: formulas as MathML, and links to files that the site does not contain."""

import re
from typing import Any

from latex2mathml.converter import convert

_FENCED = re.compile(r"(```.*?```)", re.DOTALL)
_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.DOTALL)
_LINK = re.compile(
    r"\[(?P<text>[^\]]*)\]\((?P<up>(?:\.\./)+)(?P<path>(?!\.\./)[^)#]+)(?:#[^)]*)?\)"
)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Convert formulas, and replace links that leave docs/ by the repository's path."""
    depth = page.file.src_uri.count("/")

    def path(found: re.Match[str]) -> str:
        if found["up"].count("../") <= depth:
            return found[0]
        text = found["text"].strip("`")
        return f"`{found['path']}`" if text in found["path"] else f"{text} (`{found['path']}`)"

    # every second part is a fenced code block
    parts = _FENCED.split(markdown)
    parts[::2] = [_FORMULA.sub(_mathml, _LINK.sub(path, part)) for part in parts[::2]]
    return "".join(parts)


def _mathml(found: re.Match[str]) -> str:
    if found["block"]:
        return convert(found["block"], display="block")
    return f"<span>{convert(found['inline'])}</span>"  # at a line's start, <math> begins a block
