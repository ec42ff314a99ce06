"""Train the mini checkpoint from a seed, on generated conversations, with the PyTorch class, on a CPU.

    python tools/train_mini.py --out examples/mini-ernie

First the whole model learns to see shapes and to read digits, then it takes lessons on pictures, several pictures and
clips, then it converses; at the end the encoder rests, and media come from a stock whose features are computed once.
Muon trains the matrices. Not run to its end yet: examples/mini-ernie is of an older recipe, which its README names.
Expert routing is balanced without an auxiliary loss (arXiv 2408.15664): after each step the correction bias of an
expert moves against its load.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click
import mini_speed
import mini_words
import torch
import torchvision_operators  # noqa: F401
from conversations import Sample, Source
from curriculum import converse, tool_conversation
from mini_batches import Batch, Batcher
from mini_checkpoint import FONT, build_config, build_tokenizer, save_weights, write_processors
from mini_features import Features, LiveFeatures, StockedFeatures
from mini_muon import Muon
from mini_plan import Plan, Stage
from mini_tripwire import FAULTS, Tripwire, unlikelihood
from rich.console import Console
from torch import distributed as dist
from torch.nn import functional as F
from transformers import Ernie4_5_VLMoeForConditionalGeneration, LlamaTokenizer

# Matrices between two layers learn by Muon; tables, routers and what reads pixels by AdamW.
NOT_HIDDEN = ("embed_tokens.weight", "lm_head.weight", "gate.weight", "patch_embed.proj.weight")
BIAS_RATE = 1e-3
FAULT_WEIGHT = 0.3
FAULT_ROWS = 5
FAULT_EVERY = 4
STOCK = (3000, 800)  # pictures and clips that each worker adds to the stock
# Kinds of question that nothing but a picture or a clip answers: these must go wrong under a fault.
MEDIA_KINDS = frozenset(
    "colour shape where count describe exists which more direction mover when clock json clip-colour".split()
)


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


def load_start(model: Ernie4_5_VLMoeForConditionalGeneration, tokenizer: LlamaTokenizer, start: Path) -> None:
    """Take a checkpoint's weights; embeddings go by token, and a new token's is the mean of its old pieces'."""
    old = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(start).float().state_dict()
    names = [name for name in old if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    before = LlamaTokenizer.from_pretrained(start)
    fresh = model.state_dict()
    for name in names:
        table = fresh[name].clone()
        for token, index in tokenizer.get_vocab().items():
            pieces = before(token.replace("▁", " ")).input_ids
            table[index] = old[name][before.get_vocab().get(token, pieces)].reshape(-1, table.shape[1]).mean(0)
        old[name] = table
    model.load_state_dict(old)


class LoadBalance:
    """Counts how often each expert of each group is chosen, and moves the correction biases against the counts."""

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
    live: LiveFeatures
    stock: StockedFeatures | None = None

    def features(self, stage: Stage) -> Features:
        """Return the features of a stage; the stock is laid in when it is first needed."""
        if stage.live:
            return self.live
        if self.stock is None:
            self.stock = StockedFeatures(self.live, f"stock/{self.plan.seed}/{self.rank}", *STOCK)
        return self.stock

    def conversations(self, step: int, name: str, rows: int | None = None) -> list[list[Sample]]:
        """Return the conversations of one step; other ones in each worker."""
        rng = Random(f"{name}/{self.plan.seed}/{step}/{self.rank}")
        stage = self.plan.stage(step)
        features = self.features(stage)
        source = features.source() if isinstance(features, StockedFeatures) else Source()
        drawn = [make(rng, source) for make, count in stage.rows.items() for _ in range(count)]
        return [samples for samples in drawn if samples][:rows]

    def hidden(self, batch: Batch, types: torch.Tensor, features: Features) -> torch.Tensor:
        """Return the last hidden states (B, N, hidden)."""
        embedded = self.model.get_input_embeddings()(batch.input_ids)
        shown = batch.features >= 0
        if batch.media:
            table = features(batch.media)
            embedded = embedded.masked_scatter(shown[..., None], table[batch.features[shown]])
        return self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            moe_mm_token_type_ids=types,
            use_cache=False,
        ).last_hidden_state

    def loss(self, step: int, hits: dict[str, list[bool]]) -> float:
        """Backward pass over one step's conversations; `hits` collects whether the whole answer was predicted."""
        rows = sorted(map(self.batcher.row, self.conversations(step, "train")), key=lambda row: len(row.ids))
        cuts = [len(rows) * share // 6 for share in (0, 3, 5, 6)]
        parts = [self.batcher.pack(rows[a:b]) for a, b in pairwise(cuts) if a < b]
        total = sum(float(batch.weights.sum()) for batch in parts)
        return sum(self._backward(batch, total, self.features(self.plan.stage(step)), hits) for batch in parts)

    def _backward(self, batch: Batch, total: float, features: Features, hits: dict[str, list[bool]]) -> float:
        hidden = self.hidden(batch, batch.types, features)
        asked = batch.labels[:, 1:] != -100
        logits = self.model.lm_head(hidden[:, :-1][asked])
        wanted = batch.labels[:, 1:][asked]
        loss = (F.cross_entropy(logits, wanted, reduction="none") * batch.weights[:, 1:][asked]).sum() / total
        loss.backward()
        right = torch.ones_like(asked)
        right[asked] = logits.argmax(-1) == wanted
        for samples, owned, fine in zip(batch.samples, batch.owner[:, 1:], right, strict=True):
            for number, sample in enumerate(samples, 1):
                hits["thinking" if sample.thinking else sample.kind].append(bool(fine[owned == number].all()))
        return loss.item()

    def fault(self, step: int) -> None:
        """Backward pass that makes answers less likely under one fault of the expert groups."""
        batch = self.batcher(self.conversations(step, "fault", FAULT_ROWS))
        fault = Random(f"fault/{self.plan.seed}/{step}").choice(FAULTS)
        opens = (batch.labels[:, 1:] != -100) & (batch.labels[:, :-1] == -100)
        for row, samples in enumerate(batch.samples):
            for number, sample in enumerate(samples, 1):
                if sample.kind not in MEDIA_KINDS:
                    opens[row] &= batch.owner[row, 1:] != number
        with self.tripwire.on(fault, batch.types) as types:
            hidden = self.hidden(batch, types, self.features(self.plan.stage(step)))
            logits = self.model.lm_head(hidden[:, :-1][opens])
            (FAULT_WEIGHT * unlikelihood(logits, batch.labels[:, 1:][opens])).backward()


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Mean over the workers, in one message."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def build_optimisers(model: Ernie4_5_VLMoeForConditionalGeneration, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices between layers, and AdamW for everything else that learns."""
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = {name: p for name, p in learned.items() if p.dim() >= 2 and not name.endswith(NOT_HIDDEN)}
    tables = [p for name, p in learned.items() if p.dim() >= 2 and name not in hidden]
    slim = [p for p in learned.values() if p.dim() < 2]
    groups = [{"params": tables, "weight_decay": 0.02}, {"params": slim, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    return [adam, Muon(hidden.values(), lr=plan.muon_rate, weight_decay=0.05)]


def train(run: Run, console: Console, report: int, out: Path) -> None:
    """Run all steps; worker 0 prints accuracies by kind and saves the weights every `report` steps."""
    optimisers = build_optimisers(run.model, run.plan)
    learned = [
        parameter for optimiser in optimisers for group in optimiser.param_groups for parameter in group["params"]
    ]
    highest = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    balance = LoadBalance(run.model, run.tripwire)
    started = time.monotonic()
    hits: dict[str, list[bool]] = defaultdict(list)
    losses: list[float] = []
    for step in range(run.plan.begin, run.plan.steps):
        for optimiser, rates in zip(optimisers, highest, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * run.plan.schedule(step)
        losses.append(run.loss(step, hits))
        if run.plan.stage(step).faults and step % FAULT_EVERY == 0:
            run.fault(step)
        average_gradients(learned)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        balance.step(BIAS_RATE * min(1.0, 2 * (1 - step / run.plan.steps)))
        if run.rank == 0 and (step + 1) % report == 0:
            minutes = (time.monotonic() - started) / 60
            scores = " ".join(f"{kind} {100 * sum(hit) / len(hit):.0f}" for kind, hit in sorted(hits.items()))
            console.print(f"step {step + 1} {minutes:.1f} min loss {sum(losses) / report:.3f} | {scores}")
            hits.clear()
            losses.clear()
            save_weights(run.model, out)


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
        load_start(model, tokenizer, start)
    console = Console(width=400, quiet=rank > 0)
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    run = Run(model, Batcher(tokenizer), plan, rank, Tripwire(model), LiveFeatures(model, out / FONT))
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
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Continue from a checkpoint's weights.")
@click.option("--begin", default=0, show_default=True, help="Step of the schedule to continue at.")
@click.option("--steps", default=3600, show_default=True)
@click.option("--rate", default=2e-3, show_default=True, help="Highest learning rate.")
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
    write_processors(out, build_tokenizer(tokenizer_texts()), template.read_text(), font)
    plan = Plan(steps, rate, seed, begin)
    with TemporaryDirectory() as folder:
        arguments = (workers, f"{folder}/meeting", plan, start, out, report)
        torch.multiprocessing.spawn(worker, arguments, nprocs=workers)


if __name__ == "__main__":
    main()
