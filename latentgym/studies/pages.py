"""Self-contained HTML pages: templates filled in, with scripts, pictures and videos inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latentgym.studies import summary
from latentgym.studies.wording import (
    format_compact,
    format_duration,
    format_interval,
    format_number,
    label_env,
    label_metric,
    label_name,
    label_scope,
    label_statistic,
)

MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png", ".webm": "video/webm", ".jpg": "image/jpeg"}


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """The page of a template in ``templates/``.

    Args:
        template: its file name.
        context: everything that it shows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("latentgym.studies", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "interval": format_interval,
        "env": label_env,
        "plain": label_name,
        "compact": format_compact,
        "duration": format_duration,
        "metric": label_metric,
        "statistic": label_statistic,
        "scope": label_scope,
        "inconclusive": summary.inconclusive,
    }
    return environment.get_template(template).render(**context, plotly_js=get_plotlyjs())


def embedded(folder: Path, entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries whose file (``"path"``, relative to ``folder``) is there, each with its content as a data URI."""
    found = []
    for entry in entries:
        uri = data_uri(folder / entry["path"])
        if uri is not None:
            found.append({**entry, "uri": uri})
    return found


def data_uri(path: Path) -> str | None:
    """A picture or video as a data URI; ``None`` where there is none."""
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None or not path.is_file():
        return None
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
