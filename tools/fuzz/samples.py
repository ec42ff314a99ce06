"""Small pictures and clips of every form, which the kinds of bad files damage."""

import io
from typing import Any

import av
import numpy as np
from PIL import Image


def picture(form: str, number: int = 0) -> bytes:
    """A small picture; the second of a form has a palette, transparency or metadata, as far as the form has them."""
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    options: dict[str, Any] = {}
    if number:
        image = image.convert("RGB" if form in ("JPEG", "BMP") else "P" if form != "WEBP" else "RGBA")
        options = {"PNG": {"transparency": 3, "exif": exif}, "JPEG": {"progressive": True, "exif": exif}}.get(form, {})
        if form == "GIF":
            options = {"save_all": True, "append_images": [image.rotate(90)], "transparency": 1}
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def clip(form: str, codec: str) -> bytes:
    """Six frames of 48×32 at five a second."""
    stream = io.BytesIO()
    formats_of = {"gif": "rgb8", "mjpeg": "yuvj420p"}
    with av.open(stream, "w", format=form) as container:
        track = container.add_stream(codec, rate=5, options={"threads": "1"})
        track.width = 48
        track.height = 32
        track.pix_fmt = formats_of.get(codec, "yuv420p")
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 256, (32, 48, 3), dtype=np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()
