"""Every stage of an exported random checkpoint against the PyTorch class: fp32, within 1e-5 relative.

Routing has to agree token by token. Only where the reference's k-th and (k+1)-th scores lie within `GAP` of each other
may it differ; such ties are counted in the summary, and from a differing token on the layers above are not compared.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine
from ernie_export.runtime.feature_cache import encode_media
from ernie_export.runtime.preprocess.positions import rope_positions, token_types, vision_coordinates
from tests.mini import MEDIA_IDS, TEXT, TOKEN_COUNT

TOLERANCE = 1e-5
# Router logits of about 5 carry the hidden states' 2e-6, so a probability (slope at most 1/4) carries 2.5e-6.
GAP = 4e-6

MEDIA = {name.removesuffix("_id"): number for name, number in MEDIA_IDS.items()}

# text, vision and top-level keys that a case fixes; everything else is drawn from its seed.
CASES: dict[str, dict[str, Any]] = {
    "many-heads-one-kv": {"text": {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 64}},
    "as-many-kv-heads": {"text": {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}},
    "every-expert-chosen": {"text": {"moe_num_experts": 4, "moe_k": 4}},
    "one-expert-chosen": {"text": {"moe_num_experts": 7, "moe_k": 1}},
    "many-experts": {"text": {"moe_num_experts": 24, "moe_k": 6, "moe_intermediate_size": [12, 4]}},
    "vision-experts-wider": {"text": {"moe_intermediate_size": [8, 40]}},
    "experts-of-one-width": {"text": {"moe_intermediate_size": [24, 24], "moe_num_shared_experts": 1}},
    "all-dense": {"text": {"num_hidden_layers": 2, "mlp_layer_types": ["dense"] * 2}},
    "all-sparse": {"text": {"num_hidden_layers": 3, "mlp_layer_types": ["sparse"] * 3}},
    "dense-in-the-middle": {"text": {"num_hidden_layers": 3, "mlp_layer_types": ["sparse", "dense", "sparse"]}},
    "no-shared-expert": {"text": {"moe_num_shared_experts": 0}},
    "two-shared-with-bias": {"text": {"moe_num_shared_experts": 2, "use_bias": True}, "tie_word_embeddings": False},
    "head-dim-explicit": {
        "text": {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 40}
    },
    "tied": {"tie_word_embeddings": True, "text": {"vocab_size": TOKEN_COUNT}},
    "deep-vit": {"vision": {"depth": 6, "hidden_size": 48, "num_heads": 4}},
    "one-vit-block-small-patch": {"vision": {"depth": 1, "patch_size": 6}},
    "merge-3": {"vision": {"spatial_merge_size": 3}},
    "bf16-checkpoint": {"dtype": torch.bfloat16},
    "head-dim-10": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 40},
        "targets": ("onnx-portable",),
    },
    "head-dim-6-explicit": {
        "text": {"head_dim": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 32},
        "targets": ("onnx-portable",),
    },
}


# Cases that the graphs for TensorRT for RTX and for TensorRT are held to, too; they differ from the portable ones in
# attention, rotation and dispatch.
TENSORRT = ("many-heads-one-kv", "every-expert-chosen", "many-experts", "vision-experts-wider", "head-dim-10")


def targets(name: str) -> tuple[str, ...]:
    lowered = ("rtx", "trt") if name in TENSORRT else ()
    many = ("trt-many",) if name == "many-experts" else ()  # with the decode steps of many sequences
    return (*CASES[name].get("targets", ("onnx", "onnx-portable")), *lowered, *many)


PAIRS = [(name, target) for name in CASES for target in targets(name)]


@pytest.fixture(scope="module")
def exported(make_exported, tmp_path_factory):
    """exported(name): a case, made once for its targets."""
    return functools.cache(
        lambda name: make_exported(
            tmp_path_factory.mktemp(name), list(CASES).index(name), **CASES[name] | {"targets": targets(name)}
        )
    )


@pytest.fixture(params=PAIRS, ids="/".join)
def stages(request, exported, summary):
    name, target = request.param
    case = exported(name)
    return Stages("/".join(request.param), case.bundles[target], case.reference, summary)


def items(config: Any, seed: int) -> dict[str, list[tuple[int, int, int]]]:
    """Grids of three images, two of one size, and two clips."""
    rng = np.random.default_rng(seed)
    m = config.vision_config.spatial_merge_size
    size = lambda: tuple(int(n) * m for n in rng.integers(1, 4, 2))  # noqa: E731
    one = size()
    other = (2 * m, 3 * m)
    return {"image": [(1, *one), (1, *other), (1, *one)], "video": [(int(rng.choice([2, 4])), *other), (6, m, 2 * m)]}


class Stages:
    """One bundle beside the reference."""

    def __init__(self, name: str, bundle: Path, reference: Any, summary: Any) -> None:
        self.name = name
        self.bundle = bundle
        self.reference = reference
        self.summary = summary
        self.engine = OrtCpuEngine(bundle, Manifest.read(bundle), threads=1)
        self.config = reference.config
        self.merge = self.config.vision_config.spatial_merge_size

    def check(self, stage: str, ours: np.ndarray, reference: torch.Tensor, where: str = "") -> None:
        error = self.summary.error(stage, ours, reference.detach().numpy(), f"{self.name} {where}".strip())
        assert error < TOLERANCE, f"{self.name} {where}: {stage} is {error:.2e} from PyTorch"

    def pixels(self, grids: list[tuple[int, int, int]], seed: int) -> list[np.ndarray]:
        width = 3 * self.config.vision_config.patch_size**2
        rng = np.random.default_rng(seed)
        return [rng.standard_normal((t * h * w, width)).astype(np.float32) for t, h, w in grids]

    def session(self, graph: str, outputs: Sequence[str] = ()) -> ort.InferenceSession:
        """A session of one graph with more of its values as outputs."""
        model = onnx.load(self.bundle / f"{graph}.onnx", load_external_data=False)
        known = {output for node in model.graph.node for output in node.output}
        assert set(outputs) <= known, f"no such values: {set(outputs) - known}"
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        probe = self.bundle / "probe.onnx"
        onnx.save(model, probe)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        return ort.InferenceSession(probe, options, providers=["CPUExecutionProvider"])


def media_prompt(stages: Stages, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray, np.ndarray]:
    """Text, three images and two clips in mixed order: the reference's inputs, our features, feature index, types."""
    grids = items(stages.config, seed)
    pixels = {kind: stages.pixels(g, seed) for kind, g in grids.items()}
    features = {kind: encode_media(stages.engine, pixels[kind], grids[kind], stages.merge) for kind in grids}
    rng = np.random.default_rng(seed)

    def words(count: int) -> list[int]:
        return [int(id) for id in rng.choice(TEXT, count)]

    ids = words(3)
    ordered = []
    taken = {"image": 0, "video": 0}
    for kind in ("image", "video", "image", "image", "video"):
        t, h, w = grids[kind][taken[kind]]
        tokens = t * h * w // stages.merge**2 // (2 if kind == "video" else 1)
        ids += [MEDIA[f"{kind}_start_token"], *[MEDIA[f"{kind}_token"]] * tokens, MEDIA[f"{kind}_end_token"], *words(2)]
        ordered.append(features[kind][taken[kind]])
        taken[kind] += 1
    input_ids = np.array([ids])
    types, moe_types = token_types(input_ids, MEDIA)
    is_feature = types[0] != 0
    inputs = {"input_ids": input_ids, "mm_token_type_ids": types, "moe_mm_token_type_ids": moe_types}
    inputs |= {"pixel_values": np.concatenate(pixels["image"]), "image_grid_thw": np.array(grids["image"])}
    inputs |= {"pixel_values_videos": np.concatenate(pixels["video"]), "video_grid_thw": np.array(grids["video"])}
    return inputs, features, np.concatenate(ordered), np.where(is_feature, np.cumsum(is_feature), 0)


def test_vision_encoder_and_resampler(stages):
    """Each item's patch embeddings, and its features through the runtime's grouping by frame size."""
    for kind, grids in items(stages.config, 7).items():
        pixels = stages.pixels(grids, 8)
        get = getattr(stages.reference.model, f"get_{kind}_features")
        with torch.no_grad():
            expected = get(torch.from_numpy(np.concatenate(pixels)), torch.tensor(grids), return_dict=True)
        vision = stages.session("vision")
        start = 0
        for number, (array, (t, h, w)) in enumerate(zip(pixels, grids)):
            frames = array.reshape(t, h * w, -1)
            coordinates = vision_coordinates(h, w, stages.merge)
            (hidden,) = vision.run(None, {"pixel_values": frames, "coordinates": coordinates})
            stop = start + t * h * w
            reference = expected.last_hidden_state[start:stop]
            stages.check("vision encoder", hidden.reshape(t * h * w, -1), reference, f"{kind} {number}")
            start = stop
        features = encode_media(stages.engine, pixels, grids, stages.merge)
        for number, (ours, reference) in enumerate(zip(features, expected.pooler_output)):
            stages.check("resampler", ours, reference, f"{kind} {number}")


class Reference:
    """One forward pass of the reference, with every layer's output and routing."""

    def __init__(self, model: Any, inputs: dict[str, np.ndarray], position_ids: np.ndarray) -> None:
        self.layers: list[torch.Tensor] = []
        self.routing: dict[int, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}  # scores, chosen by expert group
        hooks = []
        for index, layer in enumerate(model.model.language_model.layers):
            hooks.append(layer.register_forward_hook(lambda m, i, output: self.layers.append(output)))
            for expert_group in ("text", "vision"):
                if hasattr(layer.mlp, "text_moe"):
                    gate = getattr(layer.mlp, f"{expert_group}_moe").gate
                    hooks.append(gate.register_forward_hook(self.router(index, expert_group)))
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        try:
            with torch.no_grad():
                self.output = model(**tensors, position_ids=torch.from_numpy(position_ids), use_cache=True)
        finally:
            for hook in hooks:
                hook.remove()

    def router(self, index: int, expert_group: str) -> Any:
        def record(gate: Any, _: Any, output: Any) -> None:
            scores = gate.moe_statics(output[0].softmax(-1))
            self.routing.setdefault(index, {})[expert_group] = scores, output[2]

        return record

    def chosen(self, index: int, types: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
        """Experts (T, k), the vision expert group's from `experts` on, and the gap after the k-th score (T,)."""
        expert_groups = self.routing[index]
        k = next(iter(expert_groups.values()))[1].shape[1]
        chosen = np.zeros((len(types), k), np.int64)
        gaps = np.full(len(types), np.inf)
        for expert_group, rows, first in (("text", types == 0, 0), ("vision", types != 0, experts)):
            if rows.any():
                scores, picked = expert_groups[expert_group]
                chosen[rows] = picked.numpy() + first
                if k < experts:
                    best = scores.sort(dim=-1, descending=True).values.double()
                    gaps[rows] = (best[:, k - 1] - best[:, k]).numpy()
        return chosen, gaps


def run_decoder(stages: Stages, inputs: dict[str, Any], features: np.ndarray, index: np.ndarray, positions: np.ndarray):
    """The decoder graph on one whole prompt: outputs by name, every layer's and router's among them."""
    kinds = stages.config.text_config.mlp_layer_types
    layers = [f"/model/layers.{i}/after_mlp/output_0" for i in range(len(kinds))]
    routers = [f"/model/layers.{i}/mlp/MoEDispatch/output_1" for i, kind in enumerate(kinds) if kind == "sparse"]
    session = stages.session("decoder", layers + routers)
    length = inputs["input_ids"].shape[1]
    text = stages.config.text_config
    head_dim = stages.reference.model.language_model.layers[0].self_attn.head_dim
    empty = np.zeros((1, text.num_key_value_heads, length + 3, head_dim), np.float32)
    feed = {"input_ids": inputs["input_ids"], "token_types": inputs["moe_mm_token_type_ids"]}
    feed |= {"feature_index": index[None], "features": features, "position_ids": positions}
    feed |= {"past_lengths": np.array([0]), "lengths": np.array([length])}
    feed |= {f"past_{part}.{i}": empty for i in range(len(kinds)) for part in ("key", "value")}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed)))


def compare_decoder(stages: Stages, ours: dict[str, np.ndarray], reference: Reference, types: np.ndarray) -> int:
    """Layers and routing up to the first token that a tie sent elsewhere; returns the tokens compared to the end."""
    text = stages.config.text_config
    clean = len(types)
    for index, kind in enumerate(text.mlp_layer_types):
        if kind == "sparse":
            chosen = ours[f"/model/layers.{index}/mlp/MoEDispatch/output_1"]
            expected, gaps = reference.chosen(index, types, text.moe_num_experts)
            stages.summary.counts["routings compared"] += clean
            stages.summary.counts[f"routings within {GAP:g} of a tie (another choice would be accepted and noted)"] += (
                int((gaps[:clean] < GAP).sum())
            )
            differ = (np.sort(chosen, -1) != np.sort(expected, -1)).any(-1)[:clean]
            for token in np.flatnonzero(differ):
                assert gaps[token] < GAP, (
                    f"{stages.name}: layer {index} sends token {token} to experts {chosen[token]}, the reference to "
                    f"{expected[token]}, with a gap of {gaps[token]:.2e}"
                )
            if differ.any():
                clean = int(np.argmax(differ))
                stages.summary.notes.append(f"{stages.name}: layer {index} chose otherwise at a tie, token {clean}")
        if clean:
            hidden = ours[f"/model/layers.{index}/after_mlp/output_0"][:clean]
            stages.check("decoder layer", hidden, reference.layers[index][0, :clean], f"layer {index}")
    return clean


def test_decoder(stages):
    """Every layer and its routing over a prompt of text, images and clips; logits; one decode step."""
    inputs, _, features, index = media_prompt(stages, 11)
    positions = rope_positions(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs["image_grid_thw"],
        inputs["video_grid_thw"],
        spatial_merge_size=stages.merge,
    )
    grids = {name: torch.from_numpy(inputs[name]) for name in ("image_grid_thw", "video_grid_thw")}
    types = torch.from_numpy(inputs["mm_token_type_ids"])
    expected, _ = stages.reference.model.get_rope_index(torch.from_numpy(inputs["input_ids"]), types, **grids)
    assert np.array_equal(positions, expected.numpy())
    reference = Reference(stages.reference, inputs, positions)
    ours = run_decoder(stages, inputs, features, index, positions)
    types = inputs["moe_mm_token_type_ids"][0]
    if compare_decoder(stages, ours, reference, types) < len(types):
        return
    logits = reference.output.logits[:, -1]
    stages.check("logits", ours["logits"], logits)
    token = logits.argmax(-1)[:, None]
    following = positions[:, :, -1:] + 1
    with torch.no_grad():
        step = stages.reference(
            input_ids=token, past_key_values=reference.output.past_key_values, position_ids=torch.from_numpy(following)
        )
    feed = {name.replace("present", "past"): array for name, array in ours.items() if name.startswith("present")}
    feed |= {"input_ids": token.numpy(), "position_ids": following}
    feed |= {"past_lengths": np.array([len(types)]), "lengths": np.array([1])}
    stages.check("decode step", stages.session("decode").run(["logits"], feed)[0], step.logits[:, -1])


@pytest.mark.parametrize("offset", [3_000, 20_000, 120_000])
@pytest.mark.parametrize("target", ["onnx", "onnx-portable"])
def test_far_positions(make_exported, tmp_path, summary, target, offset):
    """Angles of thousands of radians: cos and sin must reduce them as PyTorch's do."""
    case = make_exported(tmp_path, 3, {"num_hidden_layers": 3}, targets=(target,))
    stages = Stages(f"offset {offset}, {target}", case.bundles[target], case.reference, summary)
    ids = np.random.default_rng(offset).choice(TEXT, (1, 24))
    inputs = {"input_ids": ids, "moe_mm_token_type_ids": np.zeros_like(ids)}
    positions = offset + np.stack([np.arange(24), np.arange(24) * 7 % 50, np.arange(24) * 11 % 60])[:, None]
    reference = Reference(case.reference, inputs, positions)
    features = np.zeros((0, case.reference.config.text_config.hidden_size), np.float32)
    ours = run_decoder(stages, inputs, features, np.zeros(24, np.int64), positions)
    assert compare_decoder(stages, ours, reference, np.zeros(24)) == 24
    stages.check("logits", ours["logits"], reference.output.logits[:, -1])


def duplicates(model: Any) -> None:
    """Make experts 0 and 1 of every expert group equal, so that the choice between them changes the routing alone."""
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for expert_group in ("text_moe", "vision_moe") if hasattr(layer.mlp, "text_moe") else ():
                moe = getattr(layer.mlp, expert_group)
                for tensor in (moe.gate.weight, moe.experts.gate_up_proj, moe.experts.down_proj):
                    tensor[1] = tensor[0]
                moe.gate.moe_statics.e_score_correction_bias[:, 1] = moe.gate.moe_statics.e_score_correction_bias[:, 0]


def test_ties_are_seen(make_exported, tmp_path, summary):
    """Equal experts tie at the k-th place somewhere: the detector sees it, and the outputs agree nevertheless."""
    text = {"moe_num_experts": 5, "moe_k": 2, "num_hidden_layers": 3}
    case = make_exported(tmp_path, 5, text, change=duplicates)
    for target, bundle in case.bundles.items():
        stages = Stages(f"equal experts, {target}", bundle, case.reference, summary)
        inputs, _, features, index = media_prompt(stages, 11)
        positions = np.broadcast_to(np.arange(inputs["input_ids"].shape[1]), (3, *inputs["input_ids"].shape)).copy()
        reference = Reference(case.reference, inputs, positions)
        ours = run_decoder(stages, inputs, features, index, positions)
        types = inputs["moe_mm_token_type_ids"][0]
        seen = sum(int((reference.chosen(i, types, 5)[1] < GAP).sum()) for i in reference.routing)
        assert seen > 0
        # Which duplicate is chosen is free, so the layers are compared without the routing.
        for layer, expected in enumerate(reference.layers):
            hidden = ours[f"/model/layers.{layer}/after_mlp/output_0"]
            stages.check("decoder layer", hidden, expected[0], f"layer {layer}")
        stages.check("logits", ours["logits"], reference.output.logits[:, -1])
        summary.counts["ties made on purpose, all seen"] += seen
