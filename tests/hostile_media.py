"""Images and videos that cost much more than they are long."""

import io

from PIL import Image


def slow_jpeg(side: int = 4000, scans: int = 5000) -> bytes:
    """A progressive JPEG with its last scan thousands of times: hours of decoding in a few hundred kilobytes."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 120).save(buffer, "JPEG", progressive=True, quality=30)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]
