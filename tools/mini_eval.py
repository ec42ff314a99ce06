"""Held-out exact-match accuracy of a checkpoint, through the reference processor and the class as they are.

    python tools/mini_eval.py examples/mini-ernie --count 200

It also breaks the expert banks on purpose: if the answers survived that, the checkpoint would be no test of an export.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torchvision_operators  # noqa: F401
from mini_batches import parts
from PIL import Image
from rich.console import Console
from rich.progress import track
from scenes import FAMILIES, KINDS, Clip, Sample, heldout
from transformers import (
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5_VLMoeImageProcessorPil,
    Ernie4_5_VLMoeProcessor,
    logging,
)
from transformers.video_utils import VideoMetadata, load_video


@dataclass(frozen=True)
class Reference:
    """The PyTorch class in fp32 (eager experts and attention) and its processor with the PIL image processor."""

    model: Ernie4_5_VLMoeForConditionalGeneration
    processor: Ernie4_5_VLMoeProcessor

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        logging.set_verbosity_error()
        model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
        processor = Ernie4_5_VLMoeProcessor.from_pretrained(folder)
        processor.image_processor = Ernie4_5_VLMoeImageProcessorPil.from_pretrained(folder)
        return cls(model.eval(), processor)

    def inputs(self, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The processor's tensors for messages whose media are PIL pictures, `Clip`s, or paths of files."""
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        sample, media = Sample("", messages, ""), {}
        if images := parts(sample, "image"):
            media["images"] = [Image.open(image) if isinstance(image, str) else image for image in images]
        if clips := parts(sample, "video"):
            decoded = [self._decode(clip) for clip in clips]
            media |= {"videos": [frames for frames, _ in decoded], "video_metadata": [about for _, about in decoded]}
            media["do_sample_frames"] = False
        return dict(self.processor(text=[text], return_tensors="pt", **media))

    def _decode(self, clip: Clip | str) -> tuple[Any, VideoMetadata]:
        if isinstance(clip, str):
            return load_video(clip, backend="pyav", sample_indices_fn=self.processor.video_processor.sample_frames)
        count = len(clip.frames)
        about = VideoMetadata(total_num_frames=count, fps=clip.fps, frames_indices=list(range(count)))
        return clip.frames.copy(), about

    def answer(self, messages: list[dict[str, Any]], types: Callable[[torch.Tensor], Any] | None = None) -> str:
        """Greedy answer; `types` may falsify the expert dispatch (`moe_mm_token_type_ids`)."""
        inputs = self.inputs(messages)
        if types is not None:
            inputs["moe_mm_token_type_ids"] = types(inputs["moe_mm_token_type_ids"])
        self.model.model.rope_deltas = None
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=24, do_sample=False)
        return self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def score(reference: Reference, count: int, seed: int, types: Callable | None = None) -> dict[str, int]:
    """How many of `count` held-out questions of each kind are answered word for word."""
    right = {}
    for kind in track(KINDS, description="asking"):
        samples = heldout(kind, count, seed)
        right[kind] = sum(reference.answer(sample.messages, types) == sample.answer for sample in samples)
    return right


def zero_bank(reference: Reference, bank: str) -> None:
    """Set all expert weights of one bank ("text_moe" or "vision_moe") to zero."""
    for name, parameter in reference.model.named_parameters():
        if f".{bank}.experts." in name:
            parameter.data.zero_()


# What is done to a freshly loaded model, and to its dispatch.
DAMAGE: dict[str, tuple[Callable[[Reference], None], Callable[[torch.Tensor], Any] | None]] = {
    "vision bank zeroed": (lambda r: zero_bank(r, "vision_moe"), None),
    "text bank zeroed": (lambda r: zero_bank(r, "text_moe"), None),
    "banks swapped (dispatch inverted)": (lambda r: None, lambda types: 1 - types.clamp(max=1)),
    "type ids left out (all to the text bank)": (lambda r: None, lambda types: None),
}


def table(intact: dict[str, int], count: int, damaged: dict[str, dict[str, int]], few: int) -> list[str]:
    """Markdown: accuracy by kind, and by family under each kind of damage."""
    lines = ["| family | question | right | accuracy |", "| --- | --- | --- | --- |"]
    for kind, family in KINDS.items():
        lines.append(f"| {family} | {kind} | {intact[kind]} of {count} | {100 * intact[kind] / count:.1f} % |")
    families = [family for family, (_, kinds) in FAMILIES.items() if kinds]
    lines += ["", "| | " + " | ".join(families) + " |", "| --- |" + " --- |" * len(families)]
    rows = [("as trained", intact, count), *((name, right, few) for name, right in damaged.items())]
    for name, right, asked in rows:
        shares = []
        for family in families:
            kinds = FAMILIES[family][1]
            shares.append(f"{100 * sum(right[kind] for kind in kinds) / (asked * len(kinds)):.1f} %")
        lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return lines


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=200, show_default=True, help="Questions of each kind.")
@click.option("--few", default=40, show_default=True, help="Questions of each kind on each damaged model.")
@click.option("--seed", default=0, show_default=True, help="Seed of the held-out questions.")
@click.option("--threads", default=1, show_default=True)
def main(checkpoint: Path, count: int, few: int, seed: int, threads: int) -> None:
    """Print accuracy tables of CHECKPOINT in Markdown."""
    torch.set_num_threads(threads)
    intact = score(Reference.load(checkpoint), count, seed)
    damaged = {}
    for name, (harm, types) in DAMAGE.items() if few else ():
        reference = Reference.load(checkpoint)
        harm(reference)
        damaged[name] = score(reference, few, seed, types)
    Console(width=200, soft_wrap=True).print("\n".join(table(intact, count, damaged, few)), markup=False)


if __name__ == "__main__":
    main()
