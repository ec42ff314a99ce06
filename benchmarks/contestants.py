"""What the benchmarks compare: each contestant loads the same checkpoint and runs the same prompts, in its own process.

A worker process answers one JSON line on standard output for each on standard input:
    {"do": "prefill", "text": 512, "image": [0, 0]}       -> {"seconds": ..., "rss_mib": ...}
    {"do": "decode", "tokens": 32}                        -> the same, going on from the last prefill
`image` is the (height, width) in patches of one picture put before the text; [0, 0] is none.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2


def prompt(text: int, image: tuple[int, int], ids: dict[str, int]) -> dict[str, np.ndarray]:
    """The same random prompt for every contestant, arrays as the reference's processor names them."""
    rng = np.random.default_rng(0)
    height, width = image
    placeholders = height * width // 4
    picture = [ids["image_start"]] + [ids["image"]] * placeholders + [ids["image_end"]] if placeholders else []
    tokens = np.array([[*picture, *rng.integers(10, 400, text)]])
    kinds = (tokens == ids["image"]).astype(np.int64)
    inputs = {
        "input_ids": tokens,
        "mm_token_type_ids": kinds,
        "moe_mm_token_type_ids": kinds | np.isin(tokens, [ids["image_start"], ids["image_end"]]),
    }
    if placeholders:
        inputs["pixel_values"] = rng.standard_normal((height * width, 588)).astype(np.float32)
        inputs["image_grid_thw"] = np.array([[1, height, width]])
    return inputs


class Ours:
    """This runtime on an exported bundle."""

    def __init__(self, bundle: Path) -> None:
        from ernie_export.runtime import load
        from ernie_export.runtime.scheduler import Limits

        # Features are encoded in every round, as the other contestants do.
        self.model = load(bundle, threads=THREADS, limits=Limits(feature_bytes=0))
        facts = self.model.manifest.model
        self.ids = {
            "image": facts.image_token_id,
            "image_start": facts.image_start_token_id,
            "image_end": facts.image_end_token_id,
        }

    def prefill(self, inputs: dict[str, np.ndarray], room: int) -> None:
        """Prompt to the first token."""
        from ernie_export.runtime.generation import Batch, Sequence
        from ernie_export.runtime.preprocess import Medium, Prepared
        from ernie_export.runtime.preprocess.positions import rope_positions
        from ernie_export.runtime.sampling import Sampler, SamplingParams
        from ernie_export.runtime.text_stream import TextStream

        grids = inputs.get("image_grid_thw")
        positions = rope_positions(inputs["input_ids"], inputs["mm_token_type_ids"], grids)
        media = ()
        if grids is not None:
            media = (Medium("image", tuple(map(int, grids[0])), inputs["pixel_values"], slice(0, 0)),)
        prompt = self.model.prompt(Prepared(inputs, media, positions))
        params = SamplingParams(max_new_tokens=room)
        text = TextStream(lambda ids: "")
        self.sequence = Sequence(prompt, Sampler(params, (), ()), text, frozenset(), room)
        self.batch = Batch(self.model.engine, 1, self.sequence.capacity())
        self.batch.add(self.sequence)

    def decode(self, tokens: int) -> None:
        """Further tokens, greedily."""
        for _ in range(tokens):
            self.batch.step()


class PyTorch:
    """The transformers class. experts: eager or grouped_mm; dtype: float32 or bfloat16."""

    def __init__(self, checkpoint: Path, experts: str, dtype: str) -> None:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
        import torchvision_standin

        torchvision_standin.install()
        import torch
        from transformers import Ernie4_5_VLMoeForConditionalGeneration

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), experts_implementation=experts
        ).eval()
        config = self.model.config
        self.ids = {
            "image": config.image_token_id,
            "image_start": config.image_start_token_id,
            "image_end": config.image_end_token_id,
        }

    def prefill(self, inputs: dict[str, np.ndarray], room: int) -> None:
        """Prompt to the first token; logits for the last position only, as generate() asks for."""
        torch = self.torch
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if "pixel_values" in tensors:
            tensors["pixel_values"] = tensors["pixel_values"].to(self.model.dtype)
        self.model.model.rope_deltas = None
        output = self.model(**tensors, use_cache=True, logits_to_keep=1)
        self.cache, self.token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        self.position = int(inputs["input_ids"].shape[1])

    def decode(self, tokens: int) -> None:
        """Further tokens, greedily, by the shortest loop that the class allows."""
        for _ in range(tokens):
            position = self.torch.full((3, 1, 1), self.position)
            output = self.model(input_ids=self.token, past_key_values=self.cache, position_ids=position, use_cache=True)
            self.token = output.logits[:, -1:].argmax(-1)
            self.position += 1


def make(spec: dict[str, Any]) -> Ours | PyTorch:
    """A contestant from its description, as compare.py writes it."""
    return (
        Ours(Path(spec["bundle"])) if "bundle" in spec else PyTorch(**(spec | {"checkpoint": Path(spec["checkpoint"])}))
    )


def work(spec: dict[str, Any]) -> None:
    """The worker's loop; ends when standard input does."""
    contestant = make(spec)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        if task["do"] == "prefill":
            inputs = prompt(task["text"], tuple(task["image"]), contestant.ids)
            started = time.perf_counter()
            contestant.prefill(inputs, room=256)
        else:
            started = time.perf_counter()
            contestant.decode(task["tokens"])
        seconds = time.perf_counter() - started
        # ru_maxrss is in KiB on Linux.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "rss_mib": peak}), flush=True)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
