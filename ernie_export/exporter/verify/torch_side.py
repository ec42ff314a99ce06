"""The PyTorch side of ernie-verify: probed values of the transformers class in float32."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration, GenerationConfig

from ernie_export.common.errors import InvalidFile
from ernie_export.exporter.verify.layer_stream import LayerSync, StreamedLayer, free_memory, raise_first
from ernie_export.exporter.verify.probe_names import DECODE
from ernie_export.exporter.verify.reference_weights import TensorSource, read_parameter
from ernie_export.graphs.checkpoint.original.files import as_hf_checkpoint
from ernie_export.graphs.config import ErnieConfig

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Run:
    """What the reference computes of one conversation.

    Attributes:
        probes: The probed values of the prompt by the names that verify.py compares.
        logits: float32 (tokens, V) before each token of the answer.
    """

    probes: dict[str, np.ndarray]
    logits: np.ndarray


class Reference:
    """The transformers class with eager experts, which alone fix the order of sums; forward hooks read the probes.

    Where the weights do not fit into memory twice over, each decoder layer's are read when the conversations reach it
    and freed behind them: all conversations wait for each other before and after each layer.
    """

    def __init__(self, checkpoint: Path, tensors: TensorSource, resident: bool | None = None) -> None:
        """Make the model without weights, and read those that stay.

        Args:
            checkpoint: The checkpoint's folder.
            tensors: The weights.
            resident: Whether all weights stay in memory; None to decide by their size and the memory that is free.

        Raises:
            InvalidFile: transformers cannot make the model.
        """
        self._tensors = tensors
        try:
            with as_hf_checkpoint(checkpoint, ErnieConfig.from_hf(checkpoint), require_all=False) as folder:
                config = Ernie4_5_VLMoeConfig.from_pretrained(folder, local_files_only=True)
                with torch.device("meta"):
                    self.model = Ernie4_5_VLMoeForConditionalGeneration._from_config(
                        config, dtype=torch.float32, experts_implementation="eager"
                    ).eval()
                if (folder / GENERATION).is_file():
                    self.model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as e:
            line = str(e).strip().split("\n")[0]
            raise InvalidFile(checkpoint, "a checkpoint that transformers loads", line) from e
        model = self.model.model
        # Their frequencies are no parameters, and were made without values.
        model.language_model.rotary_emb = type(model.language_model.rotary_emb)(config.text_config)
        model.vision_tower.rotary_pos_emb = type(model.vision_tower.rotary_pos_emb)(config.vision_config)
        self._found = threading.local()  # probed values of the conversation that a thread reads
        prefix = "model.language_model.layers"
        self._layers = [] if self._fits(resident) else self._without_weights(prefix)
        for name, _ in list(self.model.named_parameters(remove_duplicate=False)):
            if not (self._layers and name.startswith(f"{prefix}.")):
                self._fill(name)

    def _fits(self, resident: bool | None) -> bool:
        nbytes = 4 * sum(int(parameter.numel()) for parameter in self.model.parameters())
        return 2 * nbytes < free_memory() if resident is None else resident

    def _without_weights(self, prefix: str) -> list[StreamedLayer]:
        def streamed(index: int, layer: torch.nn.Module) -> StreamedLayer:
            return StreamedLayer(layer, lambda name: self._fill(f"{prefix}.{index}.{name}"))

        return [streamed(index, layer) for index, layer in enumerate(self.model.model.language_model.layers)]

    def _fill(self, name: str) -> None:
        """Read one parameter."""
        owner, _, last = name.rpartition(".")
        module = self.model.get_submodule(owner)
        shape = tuple(module._parameters[last].shape)
        array = np.ascontiguousarray(read_parameter(self._tensors, name, shape))
        module._parameters[last] = torch.nn.Parameter(torch.from_numpy(array), requires_grad=False)

    @property
    def experts(self) -> int:
        """Return how many text experts the model has in all layers, which is as many as vision experts."""
        layers = self.model.model.language_model.layers
        return sum(layer.mlp.text_moe.gate.num_experts for layer in layers if hasattr(layer.mlp, "text_moe"))

    def run(self, prompts: Mapping[str, dict[str, np.ndarray]], answers: Mapping[str, list[int]]) -> dict[str, Run]:
        """Read conversations and their answers.

        Args:
            prompts: The processor's arrays of each conversation, by its name.
            answers: Tokens to read after each prompt.

        Returns:
            What was computed, by the conversations' names.
        """
        sync = LayerSync(self._layers, len(prompts))
        hooks = self._hook()  # after those that load the layers
        try:
            with ThreadPoolExecutor(len(prompts)) as threads:
                read = sync.synchronized(self._read)
                runs = {name: threads.submit(read, prompts[name], answers[name]) for name in prompts}
            raise_first(runs.values())
            return {name: run.result() for name, run in runs.items()}
        finally:
            sync.close()
            for hook in hooks:
                hook.remove()

    def _read(self, prompt: dict[str, np.ndarray], answer: list[int]) -> Run:
        found: dict[str, Any] = {}
        self._found.values = found
        self.model.model.rope_deltas = None  # kept between calls by the class
        tensors = {name: torch.from_numpy(array) for name, array in continued(prompt, answer).items()}
        with torch.no_grad():
            output = self.model(**tensors, use_cache=False, logits_to_keep=len(answer))
        logits = output.logits[0].numpy()
        probes = {name: to_numpy(value) for name, value in found.items()}
        return Run(by_phase(probes, prompt) | {"logits": logits[:1], f"{DECODE}logits": logits[1:]}, logits)

    def answer(self, arrays: dict[str, np.ndarray], longest: int) -> list[int]:
        """Return greedy tokens up to the end of the answer, at most `longest`."""
        self.model.model.rope_deltas = None  # kept between calls by the class
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        greedy = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": longest}
        sync = LayerSync(self._layers, 1)
        try:
            with torch.no_grad():
                output = sync.synchronized(self.model.generate)(**tensors, **greedy)
        finally:
            sync.close()
        tokens: list[int] = output[0, arrays["input_ids"].shape[1] :].tolist()
        return tokens

    def _hook(self) -> list[Any]:
        """Collect outputs under verify.py's names; images and clips come in separate calls, in that order."""

        def keep(name: str, value: torch.Tensor) -> None:
            self._found.values.setdefault(name, []).append(value)

        def collect(name: str) -> Any:
            return lambda _module, _inputs, output: keep(name, first(output))

        def collect_input(name: str) -> Any:
            return lambda _module, inputs: keep(name, inputs[0])

        def collect_routing(group: int, index: int) -> Any:
            return lambda router, _inputs, output: keep_routing(self._found.values, router, output, group, index)

        model = self.model.model
        hooks = []
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


def continued(prompt: dict[str, np.ndarray], answer: list[int]) -> dict[str, np.ndarray]:
    """Return the processor's arrays of a prompt with all tokens of an answer but the last after it."""
    arrays = dict(prompt)
    for name, values in {
        "input_ids": answer[:-1],
        "attention_mask": [1] * (len(answer) - 1),
        "mm_token_type_ids": [0] * (len(answer) - 1),
        "moe_mm_token_type_ids": [0] * (len(answer) - 1),
    }.items():
        if name in arrays:
            arrays[name] = np.concatenate([arrays[name], np.array([values], arrays[name].dtype)], axis=1)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def by_phase(probes: dict[str, np.ndarray], prompt: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the probed values of the prompt, and under names of their own those of the answer, text after it."""
    tokens = prompt["input_ids"].shape[1]
    ends = {"layer": tokens, "text": int((prompt["moe_mm_token_type_ids"] == 0).sum())}
    split = {}
    for name, value in probes.items():
        end = ends.get(name.split()[0])
        split[name] = value[:end]
        if end is not None:
            split[DECODE + name] = value[end:]
    return split


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
    experts = logits.shape[-1]
    k = chosen.shape[-1]
    scores = router.moe_statics(torch.softmax(logits.float(), -1)).sort(-1, descending=True).values
    gap = scores[:, k - 1] - scores[:, k] if experts > k else torch.ones(len(scores))
    name = f"{('text', 'vision')[group]} routing {index}"
    found[name] = [chosen + group * experts]
    found[f"{name} gap"] = [gap]


def first(output: Any) -> torch.Tensor:
    """Return the hidden states of a module that may return them alone or in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def to_numpy(parts: list[torch.Tensor]) -> np.ndarray:
    """Return the rows of all calls, one after the other."""
    return np.concatenate([(part.reshape(-1, part.shape[-1]) if part.ndim > 1 else part).numpy() for part in parts])
