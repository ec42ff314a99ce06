"""What a request may choose of the processing of its images and videos, within what the bundle's processors allow."""

from dataclasses import dataclass, replace
from typing import TypeVar

from ernie_export.common.errors import InvalidValue
from ernie_export.common.processor_settings import PixelBounds
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.image import ImageProcessor
from ernie_export.runtime.preprocess.video import VideoProcessor

LOW_DETAIL_PIXELS = 512 * 512  # of an image with `detail: low`, as OpenAI's models scale it

Processor = TypeVar("Processor", ImageProcessor, VideoProcessor)


@dataclass(frozen=True)
class MediaOptions:
    """The choices of one request; None leaves each to the bundle.

    Pixels are counted after resizing, and brought within the bundle's own bounds of the kind: larger images may not fit
    its engines.

    Attributes:
        min_pixels: Fewest pixels of an image or frame.
        max_pixels: Most pixels.
        fps: Frames a second that are sampled of a video.
        num_frames: Most frames that are sampled of a video.
        low_detail: Names of the images with `detail: low`, such as "messages[0].content[1]".
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    low_detail: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            expected = f"at most max_pixels ({self.max_pixels})"
            raise InvalidValue("mm_processor_kwargs.min_pixels", expected, self.min_pixels)

    def apply(self, preprocessor: Preprocessor) -> Preprocessor:
        """Return a preprocessor that processes media so. Raises InvalidValue for more frames than the bundle takes."""
        videos = self._with_bounds(preprocessor.videos)
        if self.num_frames is not None and self.num_frames > videos.max_frames:
            expected = f"at most {videos.max_frames}, as the bundle samples"
            raise InvalidValue("media_io_kwargs.video.num_frames", expected, self.num_frames)
        if self.fps is not None or self.num_frames is not None:
            most = videos.max_frames if self.num_frames is None else self.num_frames
            videos = replace(videos, sample=True, fps=self.fps, num_frames=None, min_frames=1, max_frames=most)
        return replace(preprocessor, images=self._with_bounds(preprocessor.images), videos=videos)

    def of_image(self, name: str, images: ImageProcessor) -> PixelBounds:
        """Return the bounds of one image, which has this name, by a processor that `apply` has returned."""
        bounds = images.settings.bounds
        return _within(bounds, None, LOW_DETAIL_PIXELS) if name in self.low_detail else bounds

    def _with_bounds(self, processor: Processor) -> Processor:
        bounds = _within(processor.settings.bounds, self.min_pixels, self.max_pixels)
        return replace(processor, settings=replace(processor.settings, bounds=bounds))


AS_THE_BUNDLE = MediaOptions()


def _within(bounds: PixelBounds, minimum: int | None, maximum: int | None) -> PixelBounds:
    """Return other bounds, brought within `bounds`; None keeps one of these."""
    most = bounds.maximum if maximum is None else min(max(maximum, bounds.minimum), bounds.maximum)
    least = bounds.minimum if minimum is None else max(minimum, bounds.minimum)
    return PixelBounds(min(least, most), most)
