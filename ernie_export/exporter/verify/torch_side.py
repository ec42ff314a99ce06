"""The PyTorch side of ernie-verify: probed values of the transformers class in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Ernie4_5_VLMoeForConditionalGeneration
from transformers.utils import logging as transformers_logging

from ernie_export.common.errors import InvalidFile
from ernie_export.graphs.checkpoint.original.files import as_hf_checkpoint
from ernie_export.graphs.config import ErnieConfig


def hide_progress_bars() -> None:
    """Let transformers load a checkpoint without drawing bars."""
    transformers_logging.disable_progress_bar()


class Reference:
    """The transformers class with eager experts, which alone fix the order of sums; forward hooks read the probes."""

    def __init__(self, checkpoint: Path) -> None:
        try:
            with as_hf_checkpoint(checkpoint, ErnieConfig.from_hf(checkpoint), require_all=False) as folder:
                self.model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
                    folder, dtype=torch.float32, experts_implementation="eager", local_files_only=True
                ).eval()
        except (OSError, ValueError) as e:
            line = str(e).strip().split("\n")[0]
            raise InvalidFile(checkpoint, "a checkpoint that transformers loads", line) from e

    @property
    def experts(self) -> int:
        """Return how many text experts the model has in all layers, which is as many as vision experts."""
        layers = self.model.model.language_model.layers
        return sum(layer.mlp.text_moe.gate.num_experts for layer in layers if hasattr(layer.mlp, "text_moe"))

    def probe(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a prompt; returns the probed values by the names that verify.py compares."""
        found: dict[str, Any] = {}
        hooks = self._hook(found)
        try:
            with torch.no_grad():
                output = self.model(**self._tensors(arrays), use_cache=True)
            return {name: to_numpy(value) for name, value in found.items()} | {"logits": output.logits[:, -1].numpy()}
        finally:
            for hook in hooks:
                hook.remove()

    def generate(self, arrays: dict[str, np.ndarray], count: int) -> tuple[list[int], np.ndarray]:
        """Return `count` greedy tokens, never ending the answer, and the logits (count, V) before each."""
        output = self._generate(arrays, max_new_tokens=count, min_new_tokens=count)
        logits = torch.cat(output.logits).numpy()
        return output.sequences[0, arrays["input_ids"].shape[1] :].tolist(), logits

    def answer(self, arrays: dict[str, np.ndarray], longest: int) -> list[int]:
        """Return greedy tokens up to the end of the answer, at most `longest`."""
        output = self._generate(arrays, max_new_tokens=longest)
        tokens: list[int] = output.sequences[0, arrays["input_ids"].shape[1] :].tolist()
        return tokens

    def _generate(self, arrays: dict[str, np.ndarray], **lengths: int) -> Any:
        greedy = {"do_sample": False, "repetition_penalty": 1.0}
        asked = {"output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad():
            return self.model.generate(**self._tensors(arrays), **greedy, **asked, **lengths)

    def _tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        self.model.model.rope_deltas = None  # kept between calls by the class
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def _hook(self, found: dict[str, Any]) -> list[Any]:
        """Collect outputs under verify.py's names; images and clips come in separate calls, in that order."""

        def collect(name: str) -> Any:
            return lambda _module, _inputs, output: found.setdefault(name, []).append(first(output))

        def collect_input(name: str) -> Any:
            return lambda _module, inputs: found.setdefault(name, []).append(inputs[0])

        def collect_routing(group: int, index: int) -> Any:
            return lambda router, _inputs, output: keep_routing(found, router, output, group, index)

        model, hooks = self.model.model, []
        for index, block in enumerate(model.vision_tower.blocks):
            hooks.append(block.register_forward_hook(collect(f"vision block {index}")))
        hooks.append(model.vision_tower.ln.register_forward_hook(collect("vision encoder")))
        hooks.append(model.resampler_model.register_forward_hook(collect("resampler")))
        for index, layer in enumerate(model.language_model.layers):
            collect_attention = collect_input(f"layer {index} attention")
            hooks.append(layer.post_attention_layernorm.register_forward_pre_hook(collect_attention))
            hooks.append(layer.register_forward_hook(collect(f"layer {index}")))
            if hasattr(layer.mlp, "text_moe"):
                for group, moe in enumerate((layer.mlp.text_moe, layer.mlp.vision_moe)):
                    hooks.append(moe.gate.register_forward_hook(collect_routing(group, index)))
        return hooks


def keep_routing(found: dict[str, Any], router: Any, output: Any, group: int, index: int) -> None:
    """Record a router's choice, and the gap between its last chosen and its best refused score.

    Args:
        found: Receives both, under verify.py's names.
        router: The router module.
        output: What it returned: logits, weights and chosen experts.
        group: 0 for the text experts, 1 for the vision experts, which are numbered from E on.
        index: The layer.
    """
    logits, _, chosen = output
    experts, k = logits.shape[-1], chosen.shape[-1]
    scores = router.moe_statics(torch.softmax(logits.float(), -1)).sort(-1, descending=True).values
    gap = scores[:, k - 1] - scores[:, k] if experts > k else torch.ones(len(scores))
    name = f"{('text', 'vision')[group]} routing {index}"
    found[name], found[f"{name} gap"] = [chosen + group * experts], [gap]


def first(output: Any) -> torch.Tensor:
    """Return the hidden states of a module that may return them alone or in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def to_numpy(parts: list[torch.Tensor]) -> np.ndarray:
    """Return the rows of all calls, one after the other."""
    return np.concatenate([(part.reshape(-1, part.shape[-1]) if part.ndim > 1 else part).numpy() for part in parts])
