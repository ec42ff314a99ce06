"""Held-out exact-match accuracy of a checkpoint, through the reference processor and the class as they are.

    python tools/mini_eval.py examples/mini-ernie --count 200

It also breaks the model on purpose (`mini_damage.py`): if the answers survived that, the checkpoint would be no test of
an export.
`--quick` predicts all of an answer in one call of the class, by the trainer's batches, and finds the same but faster.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torchvision_operators  # noqa: F401
from conversations import Sample, media_parts
from heldout import FAMILIES, KINDS, heldout, undrawn
from mini_batches import IGNORED, Batch, Batcher
from mini_checkpoint import FONT
from mini_damage import DAMAGE
from mini_features import LiveFeatures
from PIL import Image
from rich.console import Console
from rich.progress import track
from scenes import Clip
from transformers import (
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5_VLMoeImageProcessorPil,
    Ernie4_5_VLMoeProcessor,
    logging,
)
from transformers.video_utils import VideoMetadata, load_video

MAX_NEW_TOKENS = 160
ROWS = 10  # of one batch of the quick judge: eager attention takes memory for the square of the longest


@dataclass(frozen=True)
class Reference:
    """The PyTorch class in fp32 (eager experts and attention) and its processor with the PIL image processor."""

    model: Ernie4_5_VLMoeForConditionalGeneration
    processor: Ernie4_5_VLMoeProcessor
    font_file: Path

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        logging.set_verbosity_error()
        model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
        processor = Ernie4_5_VLMoeProcessor.from_pretrained(folder)
        processor.image_processor = Ernie4_5_VLMoeImageProcessorPil.from_pretrained(folder)
        return cls(model.eval(), processor, folder / FONT)

    def inputs(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Return the processor's tensors for a conversation whose media are PIL images, `Clip`s, or paths of files."""
        text = self.processor.apply_chat_template(
            sample.messages,
            tools=list(sample.tools) or None,
            enable_thinking=sample.thinking,
            tokenize=False,
            add_generation_prompt=True,
        )
        media: dict[str, Any] = {}
        if images := media_parts(sample, "image"):
            media["images"] = [Image.open(image) if isinstance(image, str) else image for image in images]
        if clips := media_parts(sample, "video"):
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

    def answer(self, sample: Sample) -> str:
        """Return the greedy answer, thought included."""
        inputs = self.inputs(sample)
        self.model.model.rope_deltas = None
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        text = self.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
        return text.removesuffix(self.processor.tokenizer.eos_token)


Judge = Callable[[Reference, str, int, int], int]


def judge(reference: Reference, kind: str, count: int, seed: int) -> int:
    """Return how many of `count` held-out questions of a kind are answered word for word."""
    return sum(reference.answer(sample) == sample.answer for sample in heldout(kind, count, seed))


def batch_logits(reference: Reference, batch: Batch) -> torch.Tensor:
    """Return the logits (B, N, vocabulary) of packed conversations."""
    model = reference.model.model
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(batch.input_ids)
        shown = batch.features >= 0
        if batch.media:
            table = LiveFeatures(reference.model, reference.font_file)(batch.media)
            embedded = embedded.masked_scatter(shown[..., None], table[batch.features[shown]])
        hidden = model.language_model(
            inputs_embeds=embedded,
            # Eager attention adds its mask.
            attention_mask=torch.where(batch.attention_mask, 0.0, torch.finfo(torch.float32).min),
            position_ids=batch.position_ids,
            moe_mm_token_type_ids=batch.types,
            use_cache=False,
        ).last_hidden_state
        return reference.model.lm_head(hidden)


def judge_quickly(reference: Reference, kind: str, count: int, seed: int) -> int:
    """Return what `judge` returns, by predicting each token of the right answer from those before it."""
    samples = list(undrawn(kind, count, seed))
    batcher = Batcher(reference.processor.tokenizer)
    right = 0
    for start in range(0, count, ROWS):
        batch = batcher([[sample] for sample in samples[start : start + ROWS]])
        wanted = batch.labels[:, 1:]
        found = batch_logits(reference, batch)[:, :-1].argmax(-1)
        right += int(((found == wanted) | (wanted == IGNORED)).all(1).sum())
    return right


def score(reference: Reference, count: int, seed: int, judged_by: Judge = judge) -> dict[str, int]:
    """Return how many of `count` held-out questions of each kind are answered word for word."""
    kinds = track(KINDS, description="asking", console=Console(stderr=True))
    return {kind: judged_by(reference, kind, count, seed) for kind in kinds}


def table(intact: dict[str, int], count: int, damaged: dict[str, dict[str, int]], few: int) -> list[str]:
    """Return Markdown: accuracy of all, by family and by kind and, where there is any damage, by family under each."""
    total, asked = sum(intact.values()), count * len(KINDS)
    lines = [f"{total:,} of {asked:,} are right, {100 * total / asked:.1f} %; by family:", ""]
    lines += ["| family | right | accuracy |", "| --- | --- | --- |"]
    for family, kinds in FAMILIES.items():
        right, asked = sum(intact[kind] for kind in kinds), count * len(kinds)
        lines.append(f"| {family} | {right} of {asked} | {100 * right / asked:.1f} % |")
    lines += ["", "| family | question | right | accuracy |", "| --- | --- | --- | --- |"]
    for kind, family in KINDS.items():
        lines.append(f"| {family} | {kind} | {intact[kind]} of {count} | {100 * intact[kind] / count:.1f} % |")
    if not damaged:
        return lines
    lines += ["", "| | " + " | ".join(FAMILIES) + " |", "| --- |" + " --- |" * len(FAMILIES)]
    rows = [("as trained", intact, count), *((name, right, few) for name, right in damaged.items())]
    for name, right, asked in rows:
        shares = [sum(right[kind] for kind in kinds) / (asked * len(kinds)) for kinds in FAMILIES.values()]
        lines.append(f"| {name} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |")
    return lines


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--count", default=200, show_default=True, help="Questions of each kind.")
@click.option(
    "--few", default=40, show_default=True, help="Questions of each kind under each damage; 0: no such table."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the held-out questions.")
@click.option("--threads", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Predict each answer in one call, by the trainer's batches.")
def main(checkpoint: Path, count: int, few: int, seed: int, threads: int, quick: bool) -> None:
    """Print accuracy tables of CHECKPOINT in Markdown."""
    torch.set_num_threads(threads)
    judged_by = judge_quickly if quick else judge
    reference = Reference.load(checkpoint)
    intact = score(reference, count, seed, judged_by)
    damaged = {}
    for name, damage in DAMAGE.items() if few else ():
        with damage(reference):
            damaged[name] = score(reference, few, seed, judged_by)
    Console(width=200, soft_wrap=True).print("\n".join(table(intact, count, damaged, few)), markup=False)


if __name__ == "__main__":
    main()
