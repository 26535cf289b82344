"""Building blocks of a self-contained HTML page: everything is inline, nothing is fetched.

Pure functions from values to HTML.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from pipelines.generation.pictures import ObjectPictures, color_depth, encode_png

PAD = 2  # pixels around each view of a strip, so that scaling the strip does not mix neighbours
LARGEST_PNG_SIDE = 128  # small pictures stay lossless
SMALLEST_DEPTH_SIDE = 128  # pixels; latents have few
JPEG_QUALITY = 90
DIAL_RADIUS = 30


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectCard:
    """One object as the page shows it."""

    title: str
    pictures: ObjectPictures
    subtitle: str = ""
    scores: str = ""
    """HTML at the other end of the title's line."""
    view_facts: Sequence[str] = ()
    """One text per generated view, shown when it is."""


def page(*, title: str, eyebrow: str, lead: str, content: Iterable[str], footer: str) -> str:
    """The whole page. `lead`, `content` and `footer` are HTML, the others text."""
    assets = {
        suffix: Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".html", ".css", ".js")
    }
    return Template(assets[".html"]).substitute(
        title=escape(title),
        eyebrow=escape(eyebrow),
        lead=lead,
        content="\n".join(content),
        footer=footer,
        style=assets[".css"],
        script=assets[".js"],
    )


def section(heading: str, *parts: str, note: str = "") -> str:
    """A headed part of the page. `note` and `parts` are HTML."""
    intro = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(heading)}</h2>{intro}{''.join(parts)}</section>"


def facts(values: Mapping[str, str]) -> str:
    """A row of large numbers. Keys are text, values HTML."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in values.items())
    return f'<dl class="facts">{items}</dl>'


def objects(cards: Sequence[ObjectCard]) -> str:
    """Objects below each other, or side by side when they have few panes."""
    few = all(card.pictures.known is None and card.pictures.truth is None for card in cards)
    return f'<div class="objects{" pairs" if few else ""}">{"".join(_object(card) for card in cards)}</div>'


def table(head: str, rows: Iterable[str], *, label: str) -> str:
    """A table that scrolls by itself where it is too wide. `head` and `rows` are HTML of <tr> elements."""
    body = "".join(rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><caption>{escape(label)}</caption><thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, value: object, *, remark: str = "") -> str:
    """JSON that opens on demand."""
    text = escape(json.dumps(value, indent=2, ensure_ascii=False))
    return unfolding(summary, f"<pre>{text}</pre>", remark=remark)


def unfolding(summary: str, content: str, *, remark: str = "") -> str:
    """HTML that opens on demand."""
    return f"<details><summary>{escape(summary)}<small>{escape(remark)}</small></summary>{content}</details>"


def _object(card: ObjectCard) -> str:
    pictures = card.pictures
    order = np.argsort(pictures.azimuth % (2 * math.pi), kind="stable")
    strips = {"Generated": pictures.generated}
    if pictures.truth is not None:
        strips["Truth"] = pictures.truth
    if pictures.depth is not None:
        strips["Rendered depth"] = _enlarge(color_depth(pictures.depth))
    panes = [_strip_pane(name, images[order], card.title) for name, images in strips.items()]
    if pictures.known is not None:
        panes.insert(0, _picture_pane("Given view", pictures.known, card.title))
    places = [_place(pictures, int(view), card.view_facts) for view in order]
    height, width = pictures.generated.shape[1:3]
    style = f"--panes:{len(panes)};--aspect:{width}/{height};--view:0"
    return (
        f'<figure class="object turn" style="{style}" data-places="{escape(json.dumps(places, ensure_ascii=False))}">'
        f'<header><div><h3>{escape(card.title)}</h3><p class="caption">{escape(card.subtitle)}</p></div>'
        f'<p class="scores">{card.scores}</p></header><div class="panes">{"".join(panes)}</div>'
        f'<div class="controls">{_dial(pictures, order)}<div>'
        f'<input type="range" min="0" max="{len(order) - 1}" step="1" value="0" '
        f'aria-label="View of {escape(card.title)}" aria-valuetext="{escape(places[0])}">'
        f'<p class="where">{escape(places[0])}</p></div></div></figure>'
    )


def _place(pictures: ObjectPictures, view: int, view_facts: Sequence[str]) -> str:
    azimuth, elevation = (math.degrees(values[view]) for values in (pictures.azimuth, pictures.elevation))
    texts = [f"azimuth {azimuth % 360:.0f}°", f"elevation {elevation:.0f}°", *view_facts[view : view + 1]]
    return " · ".join(texts)


def _picture_pane(name: str, image: np.ndarray, title: str) -> str:
    source, alt = data_url(image), f"{name} of {title}"
    return (
        f'<figure class="pane"><div class="window"><img class="one" src="{source}" alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _strip_pane(name: str, images: np.ndarray, title: str) -> str:
    """Views [V, H, W, 3] side by side in one picture, of which a window shows one."""
    width = images.shape[2]
    padded = np.pad(images, ((0, 0), (0, 0), (PAD, PAD), (0, 0)), mode="edge")
    sizes = {"--strip": len(images) * (width + 2 * PAD) / width, "--step": 1 + 2 * PAD / width, "--pad": PAD / width}
    style = ";".join(f"{key}:{value:.6f}" for key, value in sizes.items())
    alt = f"{name}: the chosen view of {title}"
    return (
        f'<figure class="pane"><div class="window drag"><img class="strip" style="{style}" draggable="false" '
        f'src="{data_url(np.concatenate(padded, axis=1))}" alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _dial(pictures: ObjectPictures, order: np.ndarray) -> str:
    """The cameras from above: one dot per generated view, a ring for the given one."""
    marks = []
    for number, view in enumerate(order):
        x, y = _on_dial(pictures.azimuth[view])
        marks.append(f'<line class="ray" data-view="{number}" x1="0" y1="0" x2="{x:.2f}" y2="{y:.2f}"/>')
        marks.append(f'<circle class="camera" data-view="{number}" cx="{x:.2f}" cy="{y:.2f}" r="3.2"/>')
    if pictures.known_angles is not None:
        x, y = _on_dial(pictures.known_angles[0])
        marks.append(f'<circle class="given" cx="{x:.2f}" cy="{y:.2f}" r="4.5"/>')
    return (
        '<svg class="dial" viewBox="-38 -38 76 76" role="img" aria-label="Cameras around the object, seen from above">'
        f'<circle class="ring" r="{DIAL_RADIUS}"/><circle class="center" r="2.5"/>{"".join(marks)}</svg>'
    )


def _on_dial(azimuth: float) -> tuple[float, float]:
    return DIAL_RADIUS * math.cos(azimuth), -DIAL_RADIUS * math.sin(azimuth)


def _enlarge(images: np.ndarray) -> np.ndarray:
    """Small pictures [V, h, w, 3] smoothly enlarged."""
    height, width = images.shape[1:3]
    factor = math.ceil(SMALLEST_DEPTH_SIDE / min(height, width))
    size = (width * factor, height * factor)
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in images])


def data_url(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data: URL, lossless when it is small."""
    if image.shape[0] <= LARGEST_PNG_SIDE:
        kind, data = "png", encode_png(image)
    else:
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        kind, data = "jpeg", cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
