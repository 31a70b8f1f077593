"""MkDocs hooks: adapt the pages, which are written for the repository, to the site."""

import html
import re

from latex2mathml.converter import convert

SOURCE_LINK = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replaces links to files outside docs/, which the site does not have, by their text."""
    return SOURCE_LINK.sub(r"\1", markdown)


def on_page_content(content: str, **_: object) -> str:
    """Converts equations to MathML, which browsers render without a script."""
    content = INLINE.sub(lambda found: convert(html.unescape(found[1])), content)
    return BLOCK.sub(lambda found: convert(html.unescape(found[1]), display="block"), content)
