"""Train the mini checkpoint from a seed, on generated conversations, with the PyTorch class, on a CPU.

    python tools/train_mini.py --out examples/mini-ernie

In three phases (`mini_plan.py`), each from the weights that the one before it wrote. In the first the vision encoder
and the resampler learn alone what each cell of a picture or a clip shows (`mini_sight.py`). Then they are frozen, and
the decoder takes lessons on a stock of media and converses about them; heads between its layers (`mini_readers.py`)
say early what each layer should find out. Muon trains the matrices, at a rate that falls from the start: small words
of an answer are learned at small rates only. Expert routing is balanced without an auxiliary loss (arXiv 2408.15664):
after each step the correction bias of an expert moves against its load.
"""

import json
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click
import mini_speed
import mini_words
import torch
import torchvision_operators  # noqa: F401
from conversations import Source
from curriculum import converse, tool_conversation
from mini_batches import Batcher
from mini_checkpoint import FONT, build_config, build_tokenizer, save_weights, write_processors
from mini_features import LiveFeatures, StockedFeatures
from mini_learner import Run, train
from mini_plan import Plan, phases
from mini_readers import Readers
from mini_sight import learn_to_see, sight_parameters
from mini_tripwire import Tripwire
from rich.console import Console
from torch import distributed as dist
from transformers import Ernie4_5_VLMoeForConditionalGeneration, LlamaTokenizer

STOCK = (6000, 2000)  # pictures and clips that each worker adds to the stock


def tokenizer_texts() -> list[str]:
    """All words that conversations and the chat template use, often enough for each to become one token."""
    texts = ["User: Picture 1:", "Picture 1:", "Video 1:", "Assistant: ", "seconds", "the first and second"] * 200
    words = [*mini_words.NOUNS, *mini_words.NAMES, *mini_words.VERBS, *mini_words.ADJECTIVES]
    texts += [f" {word}" for word in words] * 40
    rng = Random("tokenizer")
    for make, count in ((converse, 500), (tool_conversation, 100)):
        for _ in range(count):
            for sample in make(rng, Source()):
                contents = [turn["content"] for turn in sample.messages]
                parts = [p for c in contents for p in ([{"type": "text", "text": c}] if isinstance(c, str) else c)]
                texts += [part["text"] for part in parts if part["type"] == "text"]
                texts += [sample.answer, f" {sample.answer}", json.dumps(sample.tools)]
    return texts


def fresh_model(config) -> Ernie4_5_VLMoeForConditionalGeneration:
    """Weights drawn three times as wide as a large model's: the widths here are small, and 0.02 would learn slowly."""
    model = Ernie4_5_VLMoeForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "moe_statics" not in name:
                parameter.mul_(3)
        # Image tokens leave this norm with unit size; word embeddings are smaller by far.
        model.model.resampler_model.after_norm.weight.fill_(0.3)
    return model


def worker(rank: int, workers: int, meeting: str, plan: Plan, start: Path | None, out: Path, report: int) -> None:
    """Train together with the other workers; worker 0 writes the checkpoint."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    mini_speed.install()
    tokenizer = LlamaTokenizer.from_pretrained(out)
    config = build_config(tokenizer)
    config._attn_implementation = "sdpa"
    model = fresh_model(config)
    if start is not None:
        before = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(start).float()
        model.load_state_dict(before.state_dict())
        dist.barrier()  # before worker 0 writes there
    console = Console(width=400, quiet=rank > 0)
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    live = LiveFeatures(model, out / FONT)
    if start is None:
        learn_to_see(live, plan.seed, rank, console)
    for parameter in sight_parameters(live).values():
        parameter.requires_grad_(False)
    if rank == 0:
        save_weights(model, out)
    stock = StockedFeatures(live, f"stock/{plan.seed}/{rank}", *STOCK)
    console.print(f"{len(stock.pictures)} pictures and {len(stock.videos)} clips in the stock")
    run = Run(model, Batcher(tokenizer, plan.first), plan, rank, Tripwire(model), stock, Readers(model, tokenizer))
    train(run, console, report, out)
    if rank == 0:
        save_weights(model, out)
    dist.barrier()
    dist.destroy_process_group()


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Checkpoint folder.")
@click.option("--font", type=click.Path(path_type=Path, exists=True), default=Path("examples/mini-ernie") / FONT)
@click.option(
    "--template", type=click.Path(path_type=Path, exists=True), default=Path("examples/mini-ernie/chat_template.jinja")
)
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="What the phase before --phase wrote.")
@click.option("--phase", default=1, show_default=True, type=click.IntRange(1, 3), help="The first one to run.")
@click.option(
    "--steps", default=3000, show_default=True, help="Of the first phase; the others take 0.3 and 0.1 of them."
)
@click.option("--rate", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes of one thread each; part of the recipe.")
@click.option("--report", default=100, show_default=True, help="Steps between two lines of accuracies.")
def main(
    out: Path,
    font: Path,
    template: Path,
    start: Path | None,
    phase: int,
    steps: int,
    rate: float,
    seed: int,
    workers: int,
    report: int,
) -> None:
    """Write a trained checkpoint to OUT."""
    if (start is None) != (phase == 1):
        raise click.BadParameter("expected with --phase 2 or 3, and only there", param_hint="--start")
    if start is not None and start.resolve() == out.resolve():
        raise click.BadParameter("expected another folder than --start's, whose weights are read", param_hint="--out")
    out.mkdir(parents=True, exist_ok=True)
    write_processors(out, build_tokenizer(tokenizer_texts()), template.read_text(), font)
    for plan in phases(steps, rate, seed)[phase - 1 :]:
        with TemporaryDirectory() as folder:
            arguments = (workers, f"{folder}/meeting", plan, start, out, report)
            torch.multiprocessing.spawn(worker, arguments, nprocs=workers)
        start = out


if __name__ == "__main__":
    main()
