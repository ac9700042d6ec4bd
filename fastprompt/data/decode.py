"""Decoding of pictures to 8-bit RGB."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

_PICTURE = re.compile(
    r"\.(jpe?g|jpe|jfif|a?png|gif|bmp|dib|tiff?|webp|avif|p[bgpn]m|jp2|j2k|jpx|tga|mpo)"
)
# pictures that Pillow reads only with a plugin, if at all: reported instead of passed over
_FOREIGN = re.compile(
    r"\.(hei[cf]|hif|jxl|svgz?|dng|cr[23]|nef|arw|orf|rw2|raf|pef|srw|psd|eps|ai|xcf|exr|hdr|dcm)"
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and TIFF


def is_picture(name: str) -> bool:
    """Return whether a file of this name is a picture, readable or not; hidden files are none."""
    kind = Path(name).suffix.lower()
    known = _PICTURE.fullmatch(kind) or _FOREIGN.fullmatch(kind)
    return known is not None and not name.startswith(".")


def decode(path: Path, content: bytes | None = None, *, as_stored: bool = False) -> Image.Image:
    """Decode a picture to 8-bit RGB.

    The picture is turned as its EXIF orientation says. 16-bit gray values are scaled to 8 bits,
    transparent areas become white, and of several frames or pages the first is read.

    Args:
        path: the picture's file, or, with ``content``, a name for it.
        content: the bytes of the encoded picture. Default: those of the file.
        as_stored: convert to RGB as Pillow does, as Dassl's ``read_image``: the picture is not
            turned, and transparency is dropped.

    Raises:
        ValueError: the file is damaged, no picture, in a format that Pillow does not read, too
            large, or has 32-bit values, whose range is unknown; the message names it.
    """
    remedy = "fix or remove it"
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.format == "EPS":  # a program that Ghostscript would run, whatever its name
                raise UnidentifiedImageError
            image.load()
            orientation = None
            with contextlib.suppress(Exception):  # a damaged EXIF block has no orientation
                orientation = image.getexif().get(_ORIENTATION)
            if as_stored:
                return _eight_bits(image).convert("RGB")
            plain = _rgb(_eight_bits(image))
        return plain.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else plain
    except UnidentifiedImageError:
        kind = path.suffix.lower()
        foreign = _FOREIGN.fullmatch(kind)
        why = f"the format {kind} is not supported" if foreign else "not a picture"
        remedy = "convert it to PNG or JPEG, or remove it"
    except Image.DecompressionBombError as error:
        why = str(error)
        remedy = "reduce or remove it, or raise PIL.Image.MAX_IMAGE_PIXELS"
    except MemoryError:  # of the machine
        raise
    except Exception as error:  # Pillow's plugins raise any error on a damaged file
        why = str(error) or type(error).__name__
    raise ValueError(f"data: {path} is unreadable ({why}); {remedy}")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale gray values of 12 or 16 bits to 8; other modes have 8 bits already."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            f"image has 32-bit values (mode {image.mode}) of an unknown range; save it with 8 or "
            "16 bits"
        )
    if not image.mode.startswith("I"):
        return image
    bits = getattr(image, "tag_v2", {}).get(_BITS, 16)
    top = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values * (255 / top)).clip(0, 255).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, transparent areas to white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
