"""What the site needs beyond the pages as they are read in the repository."""

import html
import re

from latex2mathml.converter import convert

SOURCE_LINK = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Names of source files, which the site has not, instead of links to them."""
    return SOURCE_LINK.sub(r"\1", markdown)


def on_page_content(content: str, **_: object) -> str:
    """Equations as MathML, which browsers draw without a script."""
    content = INLINE.sub(lambda found: convert(html.unescape(found[1])), content)
    return BLOCK.sub(lambda found: convert(html.unescape(found[1]), display="block"), content)
