"""The limits of a scheduler. They stand apart from it so that a command line can read them without NumPy."""

from dataclasses import dataclass

from ernie_export.common.errors import InvalidValue

_MINIMUM = {
    "max_num_seqs": 1,
    "max_queue": 1,
    "kv_cache_bytes": 1,
    "feature_cache_bytes": 0,
    "prefill_chunk": 1,
    "prefill_chunk_while_decoding": 1,
}
_OPTIONAL = ("prefill_chunk", "prefill_chunk_while_decoding")


@dataclass(frozen=True)
class SchedulerConfig:
    """The limits of a scheduler: concurrency and memory.

    Attributes:
        max_num_seqs: Sequences that decode together.
        max_queue: Requests that wait for a slot before further ones are refused.
        kv_cache_bytes: The most that the KV cache of running and finished requests may take. Memory is allocated as
            tokens arrive.
        feature_cache_bytes: The most that cached features of images and videos may take.
        enable_prefix_caching: Whether a prompt reuses the keys and values that the cache still holds of an earlier one.
        prefill_chunk: Most prompt tokens in one prefill call; None leaves it to the engine.
        prefill_chunk_while_decoding: The same while other sequences decode, which wait for it.
    """

    max_num_seqs: int = 16
    max_queue: int = 64
    kv_cache_bytes: int = 4 * 2**30
    feature_cache_bytes: int = 512 * 2**20
    enable_prefix_caching: bool = True
    prefill_chunk: int | None = None
    prefill_chunk_while_decoding: int | None = None

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUM.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int) or value < minimum:
                raise InvalidValue(name, f"a whole number of at least {minimum}", repr(value))


DEFAULTS = SchedulerConfig()
