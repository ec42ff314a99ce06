"""The fields of a request that choose how its images and videos are processed, as vLLM has them."""

from pydantic import BaseModel, ConfigDict, Field

from ernie_export.runtime.serving.media_options import MediaOptions

MAX_PIXELS = 2**40


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PixelSize(_Part):
    """The bounds under the names of the processor's files, which are historical: both count pixels."""

    shortest_edge: int | None = Field(default=None, ge=1, le=MAX_PIXELS)
    longest_edge: int | None = Field(default=None, ge=1, le=MAX_PIXELS)


class ProcessorOptions(_Part):
    """vLLM's `mm_processor_kwargs`: pixels of an image, or of a video's frame, after resizing."""

    min_pixels: int | None = Field(default=None, ge=1, le=MAX_PIXELS)
    max_pixels: int | None = Field(default=None, ge=1, le=MAX_PIXELS)
    size: PixelSize | None = None
    fps: float | None = Field(default=None, gt=0, le=1000)
    num_frames: int | None = Field(default=None, ge=1, le=2**31)


class VideoOptions(_Part):
    """Which frames of a video are sampled."""

    fps: float | None = Field(default=None, gt=0, le=1000)
    num_frames: int | None = Field(default=None, ge=1, le=2**31)


class ImageOptions(_Part):
    """Options of images, of which there are none."""


class LoaderOptions(_Part):
    """vLLM's `media_io_kwargs`, by kind."""

    video: VideoOptions | None = None
    image: ImageOptions | None = None


def media_options(
    processor: ProcessorOptions | None, loader: LoaderOptions | None, low_detail: frozenset[str]
) -> MediaOptions:
    """Return the options that a request asks for. Raises InvalidValue where bounds contradict each other.

    Args:
        processor: `mm_processor_kwargs`.
        loader: `media_io_kwargs`, which counts before the former.
        low_detail: Names of the images with `detail: low`.
    """
    options = processor or ProcessorOptions()
    size = options.size or PixelSize()
    video = (loader and loader.video) or VideoOptions()
    return MediaOptions(
        min_pixels=size.shortest_edge if options.min_pixels is None else options.min_pixels,
        max_pixels=size.longest_edge if options.max_pixels is None else options.max_pixels,
        fps=options.fps if video.fps is None else video.fps,
        num_frames=options.num_frames if video.num_frames is None else video.num_frames,
        low_detail=low_detail,
    )
