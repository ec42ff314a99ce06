"""Train the mini checkpoint from a seed, on generated scenes, with the PyTorch class, on a CPU.

    python tools/train_mini.py --out examples/mini-ernie

Every step is one optimiser step over a few pictures, pairs, clips and conversations; the share of each grows by stage,
so that the model has learned to see before it must compare. Expert routing is balanced without an auxiliary loss
(arXiv 2408.15664): after each step the correction bias of an expert moves against its load.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click
import mini_speed
import torch
import torchvision_operators  # noqa: F401
from mini_batches import Batcher
from mini_checkpoint import FONT, build_config, build_tokenizer, save_weights, write_processors
from mini_tripwire import FAULTS, Tripwire, unlikelihood
from rich.console import Console
from scenes import FAMILIES, KINDS, Sample, heldout, layout
from torch import distributed as dist
from torch.nn import functional as F
from transformers import Ernie4_5_VLMoeForConditionalGeneration, LlamaTokenizer

BIAS_RATE = 1e-3
FAULT_WEIGHT = 0.3
FAULTS_FROM = 0.6  # share of the run after which faults are trained against
QUESTIONS = 6  # at most, about one scene
# (share of the run, scenes of each family in one step of one worker)
STAGES = (
    (0.10, {"first": 24}),
    (0.12, {"single": 16, "clip": 2}),
    (0.13, {"apart": 6, "single": 10, "pair": 6, "clip": 3}),
    (0.65, {"single": 10, "pair": 8, "clip": 4, "turns": 1, "text": 1}),
)


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and from which seed."""

    steps: int
    rate: float
    seed: int
    begin: int
    warmup: int = 100

    def families(self, step: int) -> dict[str, int]:
        done = 0.0
        for share, families in STAGES:
            done += share
            if step < done * self.steps:
                return families
        return STAGES[-1][1]

    def learning_rate(self, step: int) -> float:
        """Half a cosine down to a fiftieth, after a linear warm-up from the first step that is taken."""
        warm = min(1.0, (step - self.begin + 1) / self.warmup)
        return self.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def tokenizer_texts() -> list[str]:
    """All words that questions, answers and the chat template use, often enough for each to become one token."""
    texts = ["User: Picture 1:", "Video 1:", "Assistant: ", "seconds", "the first and second"] * 200
    for kind in KINDS:
        for sample in heldout(kind, 300, seed=-1):
            asked = [part["text"] for turn in sample.messages for part in turn["content"] if part["type"] == "text"]
            texts += [*asked, sample.answer, f" {sample.answer}"]
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


class LoadBalance:
    """Counts how often each expert of each bank is chosen, and moves the correction biases against the counts."""

    def __init__(self, model: Ernie4_5_VLMoeForConditionalGeneration, tripwire: Tripwire) -> None:
        self.tripwire = tripwire
        self.gates = [module for name, module in model.named_modules() if name.endswith("_moe.gate")]
        self.counts = [torch.zeros(gate.num_experts) for gate in self.gates]
        for index, gate in enumerate(self.gates):
            gate.register_forward_hook(lambda _m, _i, out, index=index: self._count(index, out[2]))

    def _count(self, index: int, chosen: torch.Tensor) -> None:
        if self.tripwire.fault is None:
            self.counts[index] += torch.bincount(chosen.flatten(), minlength=len(self.counts[index]))

    def step(self, rate: float) -> None:
        """Nudge every bias by `rate`, from the counts of all workers since the last step."""
        for counts in self.counts:
            dist.all_reduce(counts)
        for gate, counts in zip(self.gates, self.counts, strict=True):
            gate.moe_statics.e_score_correction_bias.data += rate * torch.sign(counts.mean() - counts)
            counts.zero_()


@dataclass
class Run:
    """One training run: what is drawn, computed and reported at each step."""

    model: Ernie4_5_VLMoeForConditionalGeneration
    batcher: Batcher
    plan: Plan
    rank: int
    tripwire: Tripwire

    def samples(self, step: int, family: str, count: int) -> list[list[Sample]]:
        """`count` scenes of one layout, with up to four questions about each; other ones in each worker."""
        rng = Random(f"train/{self.plan.seed}/{step}/{family}/{self.rank}")
        sizes, makers = layout(rng, family), FAMILIES[family][0]
        scenes = [makers[index % len(makers)](rng, sizes).samples() for index in range(count)]
        return [rng.sample(samples, min(QUESTIONS, len(samples))) for samples in scenes]

    def loss(self, scenes: list[list[Sample]], share: float, hits: dict[str, list[bool]]) -> float:
        """Backward pass over one family's scenes; `hits` collects whether the whole answer was predicted."""
        batch, labels, owner = self.batcher(scenes)
        hidden = self.model.model(**batch, use_cache=False).last_hidden_state
        asked = labels[:, 1:] != -100
        logits, wanted = self.model.lm_head(hidden[:, :-1][asked]), labels[:, 1:][asked]
        loss = F.cross_entropy(logits, wanted)
        (loss * share).backward()
        right = torch.ones_like(asked)
        right[asked] = logits.argmax(-1) == wanted
        for samples, owned, fine in zip(scenes, owner[:, 1:], right, strict=True):
            for number, sample in enumerate(samples, 1):
                hits[sample.kind].append(bool(fine[owned == number].all()))
        return loss.item()

    def fault(self, step: int, family: str, count: int) -> None:
        """Backward pass that makes answers less likely under one fault of the expert banks."""
        rng = Random(f"fault/{self.plan.seed}/{step}/{self.rank}")
        batch, labels, _ = self.batcher(self.samples(step, family, count))
        opens = (labels[:, 1:] != -100) & (labels[:, :-1] == -100)
        with self.tripwire.on(rng.choice(FAULTS), batch) as faulty:
            hidden = self.model.model(**faulty, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1][opens])
            (FAULT_WEIGHT * unlikelihood(logits, labels[:, 1:][opens])).backward()


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Mean over the workers, in one message."""
    flat = torch.cat([(p if p.grad is None else p.grad).flatten() * (p.grad is not None) for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def train(run: Run, console: Console, report: int, out: Path) -> None:
    """The whole run; worker 0 prints accuracies by kind every `report` steps, and saves every ten reports."""
    wide = [p for p in run.model.parameters() if p.requires_grad and p.dim() >= 2]
    slim = [p for p in run.model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": wide, "weight_decay": 0.02}, {"params": slim, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=run.plan.rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    balance, hits, losses, started = LoadBalance(run.model, run.tripwire), defaultdict(list), [], time.monotonic()
    for step in range(run.plan.begin, run.plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = run.plan.learning_rate(step)
        families = run.plan.families(step)
        for family, count in families.items():
            share = count / sum(families.values())
            losses.append(share * run.loss(run.samples(step, family, count), share, hits))
        family = list(families)[step % len(families)]
        if step >= FAULTS_FROM * run.plan.steps and family != "text":
            run.fault(step, family, families[family])
        average_gradients(wide + slim)
        torch.nn.utils.clip_grad_norm_(wide + slim, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        balance.step(BIAS_RATE * min(1.0, 2 * (1 - step / run.plan.steps)))
        if run.rank == 0 and (step + 1) % report == 0:
            minutes = (time.monotonic() - started) / 60
            scores = " ".join(f"{kind} {100 * sum(hit) / len(hit):.0f}" for kind, hit in sorted(hits.items()))
            console.print(f"step {step + 1} {minutes:.1f} min loss {sum(losses) / report:.3f} | {scores}")
            hits.clear(), losses.clear()
            if (step + 1) % (10 * report) == 0:
                save_weights(run.model, out)


def worker(rank: int, workers: int, meeting: str, plan: Plan, start: Path | None, out: Path, report: int) -> None:
    """One of the processes that train together; worker 0 writes the checkpoint."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    mini_speed.install()
    tokenizer = LlamaTokenizer.from_pretrained(out)
    config = build_config(tokenizer)
    config._attn_implementation = "sdpa"
    model = fresh_model(config)
    if start is not None:
        model.load_state_dict(Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(start).float().state_dict())
    console = Console(width=250, quiet=rank > 0)
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(Run(model, Batcher(tokenizer, out / FONT), plan, rank, Tripwire(model)), console, report, out)
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
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Continue from a checkpoint's weights.")
@click.option("--begin", default=0, show_default=True, help="Step of the schedule to continue at.")
@click.option("--steps", default=3300, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes of one thread each; part of the recipe.")
@click.option("--report", default=100, show_default=True, help="Steps between two lines of accuracies.")
def main(
    out: Path,
    font: Path,
    template: Path,
    start: Path | None,
    begin: int,
    steps: int,
    rate: float,
    seed: int,
    workers: int,
    report: int,
) -> None:
    """Write a trained checkpoint to OUT."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(tokenizer_texts()) if start is None else LlamaTokenizer.from_pretrained(start)
    write_processors(out, tokenizer, template.read_text(), font)
    plan = Plan(steps, rate, seed, begin)
    with TemporaryDirectory() as folder:
        arguments = (workers, f"{folder}/meeting", plan, start, out, report)
        torch.multiprocessing.spawn(worker, arguments, nprocs=workers)


if __name__ == "__main__":
    main()
