"""The limits on images and videos of one untrusted request, for every server."""

from dataclasses import dataclass

from ernie_export.common.errors import InvalidMedia, InvalidValue


@dataclass(frozen=True)
class MediaLimits:
    """The limits on the images and videos of one request.

    Attributes:
        max_items: Images and videos together.
        max_pixels: Pixels of all images and sampled frames together.
        max_frames: Frames of one video before sampling.
        max_seconds: Length of one video in seconds.
        max_image_pixels: Pixels of one image. The released model uses at most 4.8 million of them.
        max_file_bytes: Bytes of all images and videos, beyond which no file is read by its path.
        image_seconds: Seconds of decoding one image.
        video_seconds: Seconds of decoding one video.
        worker_memory: Bytes of address space of a process that decodes.
    """

    max_items: int = 16
    max_pixels: int = 256_000_000
    max_frames: int = 20_000
    max_seconds: float = 600.0
    max_image_pixels: int = 50_000_000
    max_file_bytes: int = 256 * 2**20
    image_seconds: float = 10.0
    video_seconds: float = 60.0
    worker_memory: int = 3 * 2**30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_positive(name, value)

    @classmethod
    def with_image_pixels(cls, max_image_pixels: int) -> "MediaLimits":
        """Return the default limits with another one on an image, which also raises that of a request below it."""
        return cls(max_image_pixels=max_image_pixels, max_pixels=max(cls.max_pixels, max_image_pixels))

    def check_count(self, count: int) -> None:
        """Raise InvalidMedia if a request has more images and videos than allowed."""
        if count > self.max_items:
            raise InvalidMedia("messages", f"at most {self.max_items} images and videos", count)


def check_positive(name: str, value: float) -> None:
    """Raise InvalidValue, naming `name`, unless a limit is a finite number above 0."""
    if not 0 < value < float("inf"):
        raise InvalidValue(name, "a finite number above 0", value)
