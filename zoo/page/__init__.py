"""Pages that a browser opens from disk: one file each, with its own styles, script and data, and no network.

Whatever text a page shows comes from users and from files. It stands in the page as escaped text or as JSON, and the page's
script writes it as text only. The page's policy lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def document(title: str, body: str, data: Any) -> str:
    """A whole page.

    Args:
      title: plain text.
      body: HTML, in which every text from outside is escaped (``escape``). An element with ``data-attention`` becomes the
        panel of ``data["attention"]``, a figure with ``data-chart`` has a box for each of its series.
      data: what JSON can hold; the page's script reads it.
    """
    script = "\n" + resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return PAGE.format(
        policy=policy, title=escape(title), style=resource("page.css"), body=body, data=script_json(data), script=script
    )


def escape(text: Any) -> str:
    """Text as it may stand between tags and in quoted attributes.

    >>> escape("<b>'\\"&")
    '&lt;b&gt;&#x27;&quot;&amp;'
    """
    return html.escape(str(text), quote=True)


def script_json(data: Any) -> str:
    """JSON that no HTML parser takes for the end of its script, or for anything else.

    >>> script_json("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def resource(name: str) -> str:
    """A file that lies beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
