"""What the decoder of the mini checkpoint learns from at each step of a run, and how its weights move."""

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
import torchvision_operators  # noqa: F401
from conversations import Sample
from mini_batches import IGNORED, Batch, Batcher
from mini_checkpoint import save_weights
from mini_features import StockedFeatures
from mini_muon import average_gradients, build_optimisers, set_rates
from mini_plan import Plan
from mini_readers import Readers
from mini_tripwire import FAULTS, Tripwire, unlikelihood
from rich.console import Console
from torch import distributed as dist
from torch.nn import functional as F
from transformers import Ernie4_5_VLMoeForConditionalGeneration

BIAS_RATE = 1e-3
FAULT_ROWS = 5
FAULT_EVERY = 3
# Kinds of question that nothing but a picture or a clip answers (but for the number of pictures, a count): these must
# go wrong under a fault.
MEDIA_KINDS = frozenset(
    (
        "colour shape where count describe exists check at list which more direction mover when clock json clip-colour "
        "clip-things happens"
    ).split()
)


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
    features: StockedFeatures
    readers: Readers

    def conversations(self, step: int, name: str, rows: int | None = None) -> list[list[Sample]]:
        """Return the conversations of one step, or so many of them of any maker; other ones in each worker."""
        rng = Random(f"{name}/{self.plan.seed}/{step}/{self.rank}")
        source = self.features.source()
        makers = self.plan.stage(step).rows
        drawn = [make(rng, source) for make, count in makers.items() for _ in range(count)]
        found = [samples for samples in drawn if samples]
        return found if rows is None else rng.sample(found, rows)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Return the last hidden states (B, N, hidden)."""
        embedded = self.model.get_input_embeddings()(batch.input_ids)
        shown = batch.features >= 0
        if batch.media:
            table = self.features(batch.media)
            embedded = embedded.masked_scatter(shown[..., None], table[batch.features[shown]])
        return self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            moe_mm_token_type_ids=batch.types,
            use_cache=False,
        ).last_hidden_state

    def loss(self, step: int, hits: dict[str, list[bool]]) -> float:
        """Backward pass over one step's conversations; `hits` collects whether the whole answer was predicted."""
        rows = sorted(map(self.batcher.row, self.conversations(step, "train")), key=lambda row: len(row.ids))
        cuts = [len(rows) * share // 6 for share in (0, 3, 5, 6)]
        parts = [self.batcher.pack(rows[a:b]) for a, b in pairwise(cuts) if a < b]
        total = sum(float(batch.weights.sum()) for batch in parts)
        return sum(self._backward(batch, total, step, hits) for batch in parts)

    def _backward(self, batch: Batch, total: float, step: int, hits: dict[str, list[bool]]) -> float:
        hidden = self.hidden(batch)
        asked = batch.labels[:, 1:] != IGNORED
        logits = self.model.lm_head(hidden[:, :-1][asked])
        wanted = batch.labels[:, 1:][asked]
        loss = (F.cross_entropy(logits, wanted, reduction="none") * batch.weights[:, 1:][asked]).sum() / total
        share = float(batch.weights.sum()) / total
        read = self.readers.loss(batch, step / self.plan.steps, self.plan.settling(step))
        (loss + share * read).backward()
        right = torch.ones_like(asked)
        right[asked] = logits.argmax(-1) == wanted
        for samples, owned, fine in zip(batch.samples, batch.owner[:, 1:], right, strict=True):
            for number, sample in enumerate(samples, 1):
                hits["thinking" if sample.thinking else sample.kind].append(bool(fine[owned == number].all()))
        return loss.item()

    def fault(self, step: int, hits: dict[str, list[bool]]) -> None:
        """Backward pass that makes answers less likely under one fault; `hits` collects which begin right."""
        batch = self.batcher(self.conversations(step, "fault", FAULT_ROWS))
        rng = Random(f"fault/{self.plan.seed}/{step}")
        (fault,) = rng.choices(FAULTS, [fault.share for fault in FAULTS])
        opens = (batch.labels[:, 1:] != IGNORED) & (batch.labels[:, :-1] == IGNORED)
        for row, samples in enumerate(batch.samples):
            for number, sample in enumerate(samples, 1):
                if sample.kind not in MEDIA_KINDS or sample.thinking:  # a thought's first token is a line's end
                    opens[row] &= batch.owner[row, 1:] != number
        with self.tripwire.on(fault, batch) as faulty:
            logits = self.model.lm_head(self.hidden(faulty)[:, :-1][opens])
            wanted = batch.labels[:, 1:][opens]
            (fault.weight * unlikelihood(logits, wanted)).backward()
        hits[f"({fault.name})"] += (logits.argmax(-1) == wanted).tolist()


def trained_parameters(run: Run) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of the model that are not frozen, and those of the heads, by name."""
    named = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    named |= {f"heads.{name}": p for name, p in run.readers.named_parameters()}
    return named


def train(run: Run, console: Console, report: int, out: Path) -> None:
    """Run all steps; worker 0 prints accuracies by kind and saves the weights every `report` steps."""
    named = trained_parameters(run)
    optimisers = build_optimisers(named, run.plan.rate, run.plan.muon_rate)
    learned = list(named.values())
    balance = LoadBalance(run.model, run.tripwire)
    started = time.monotonic()
    hits: dict[str, list[bool]] = defaultdict(list)
    losses: list[float] = []
    for step in range(run.plan.begin, run.plan.steps):
        set_rates(optimisers, run.plan.schedule(step))
        losses.append(run.loss(step, hits))
        if run.plan.stage(step).faults and step % FAULT_EVERY == 0:
            run.fault(step, hits)
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
            console.print(f"    {run.readers.report()}")
            hits.clear()
            losses.clear()
            save_weights(run.model, out)
