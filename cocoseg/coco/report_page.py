"""
The page of a report: values and pictures become one file of HTML.

All that the page needs is inside of it, and its own policy lets no browser fetch
anything else. Every text goes through the escapes of jinja2; only the style, the script
and drawings made of numbers here do not.
"""
from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from importlib import resources

from cocoseg.engine.texts import format_bytes
from cocoseg.errors import MissingDependencyError

_TEMPLATE = 'report.html.j2'
_PHOTO_QUALITY = 88  # of WebP, 0..100
_BAR_HEIGHT = 40  # units of a histogram
# Few colors and hard edges: these are kept exactly.
_EXACT = ('classes', 'mask', 'coverage')


@dataclass(frozen=True)
class EncodedImage:
    """
    An image whose pictures are ready for the page.

    Attributes:
        facts (ImageReport): what is said of it; without its pictures.
        layers (tuple[tuple[Picture, str], ...]): pictures without pixels, and
            their data URIs, '' where there is none.
    """

    facts: object
    layers: tuple


def check_jinja():
    """
    Raise unless pages can be made.

    Raises:
        MissingDependencyError: if jinja2 is not there.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as ex:
        raise MissingDependencyError(
            f'jinja2 is needed to make a report, and cannot be imported: {ex}. Install it by '
            '`pip install cocoseg[report]`') from ex


def encode_image(image):
    """
    Return an image with compressed pictures.

    Args:
        image (ImageReport): not modified.

    Returns:
        EncodedImage: holds no pixels.
    """
    from dataclasses import replace
    layers = tuple((replace(picture, pixels=None), encode_picture(picture))
                   for picture in image.pictures)
    return EncodedImage(replace(image, pictures=()), layers)


def encode_picture(picture):
    """
    Return a picture as a data URI, '' if it has no pixels.

    Args:
        picture (Picture): classes and masks become PNG, all else WebP, or JPEG
            where OpenCV has no WebP.

    Example:
        >>> import numpy as np
        >>> from cocoseg.coco.report_layers import Picture
        >>> pixels = np.zeros((4, 4, 3), np.uint8)
        >>> encode_picture(Picture('mask', 'a', pixels))[:22]
        'data:image/png;base64,'
        >>> encode_picture(Picture('photo', 'a'))
        ''
    """
    if picture.pixels is None:
        return ''
    import cv2
    bgr = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2BGR)
    if picture.kind in _EXACT:
        kind, ending, options = 'png', '.png', [cv2.IMWRITE_PNG_COMPRESSION, 9]
    elif cv2.haveImageWriter('.webp'):
        kind, ending, options = 'webp', '.webp', [cv2.IMWRITE_WEBP_QUALITY, _PHOTO_QUALITY]
    else:
        kind, ending, options = 'jpeg', '.jpg', [cv2.IMWRITE_JPEG_QUALITY, _PHOTO_QUALITY]
    content = cv2.imencode(ending, bgr, options)[1].tobytes()
    return f'data:image/{kind};base64,{base64.b64encode(content).decode("ascii")}'


def draw_histogram(histogram):
    """
    Return a histogram as SVG, of numbers only.

    Heights are square roots of counts, so that a rare value beside a common one is seen.

    Args:
        histogram (Histogram): what to draw.

    Example:
        >>> from cocoseg.coco.report_layers import Histogram
        >>> draw_histogram(Histogram(0.0, 1.0, 0.8, (1, 4), 0)).partition('>')[2]
        '<path d="M0 40V20H1V0H2V40Z"/></svg>'
    """
    top = max(histogram.counts)
    path = ''.join(f'V{_BAR_HEIGHT * (1 - (count / top) ** 0.5):.3g}H{place}'
                   for place, count in enumerate(histogram.counts, 1))
    return (f'<svg viewBox="0 0 {len(histogram.counts)} {_BAR_HEIGHT}" '
            f'preserveAspectRatio="none" aria-hidden="true">'
            f'<path d="M0 {_BAR_HEIGHT}{path}V{_BAR_HEIGHT}Z"/></svg>')


def format_number(value):
    """
    Return a number for people, with three digits.

    Example:
        >>> [format_number(value) for value in (0, 0.123456, 12345.67, 1e-9, 12)]
        ['0', '0.123', '12,346', '1e-09', '12']
    """
    return f'{value:,.0f}' if abs(value) >= 1e3 else f'{value:.3g}'


def render_page(report, images):
    """
    Return the page as a text.

    Args:
        report (Report): what it says.
        images (Sequence[EncodedImage]): what it shows.

    Raises:
        MissingDependencyError: without jinja2.
    """
    check_jinja()
    from jinja2 import BaseLoader, Environment, StrictUndefined
    from markupsafe import Markup
    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=format_number, basename=os.path.basename,
        nbytes=lambda nbytes: '' if nbytes is None else format_bytes(nbytes),
        histogram=lambda histogram: Markup(draw_histogram(histogram)),
        percent=lambda share: '< 0.1 %' if 0 < share < 0.001 else f'{share:.1%}')
    style, script = _read('report.css'), _read('report.js')
    digest = base64.b64encode(hashlib.sha256(script.encode('utf8')).digest()).decode('ascii')
    return environment.from_string(_read(_TEMPLATE)).render(
        report=report, images=images, style=Markup(style), script=Markup(script), digest=digest)


def _read(name):
    """Return a file of the templates, with the ends of lines that hashes need."""
    source = resources.files('cocoseg.coco') / 'templates' / name
    return source.read_text(encoding='utf8').replace('\r\n', '\n')


def write_page(dst, report, images):
    """
    Write the page; it is there as a whole, or not at all.

    Args:
        dst (str): new file, or one to be replaced.
        report (Report), images (Sequence[EncodedImage]): of :func:`render_page`.

    Returns:
        int: bytes of the page.

    Raises:
        AssetWriteError: if it cannot be written.
    """
    from cocoseg.io.commit import as_write_error, atomic_write
    # Names of files need not be text.
    content = render_page(report, images).encode('utf8', 'backslashreplace')
    try:
        with atomic_write(dst) as temp:
            temp.write_bytes(content)
    except OSError as ex:
        raise as_write_error(dst, ex) from ex
    return len(content)
