"""Greedy answers of exported random checkpoints: token for token those of the PyTorch class's `generate`.

The reference gets the runtime's own arrays (tests/parity/preprocess compares those), `experts_implementation="eager"`
and fp32. Where the reference's two best logits lie within `NEAR` of each other, relatively, rounding may decide: such
steps are counted in the summary, and a token may differ there alone.
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ernie_export.runtime import Model, load
from ernie_export.runtime.feature_cache import FeatureCache
from ernie_export.runtime.scheduler_config import SchedulerConfig

NEAR = 1e-4
NEW_TOKENS = 10
FORGETFUL = SchedulerConfig(enable_prefix_caching=False, feature_cache_bytes=0)  # every answer from scratch
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "three-experts-of-eight": {
        "text": {"moe_num_experts": 8, "moe_k": 3, "num_hidden_layers": 4, "moe_num_shared_experts": 1}
    },
    "dense-in-the-middle": {
        "text": {"num_hidden_layers": 3, "mlp_layer_types": ["sparse", "dense", "sparse"], "use_bias": True},
        "tie_word_embeddings": False,
    },
    "one-kv-head-bf16": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 64, "num_hidden_layers": 3},
        "dtype": torch.bfloat16,
    },
    "deep-vit-wide-vision-experts": {"text": {"moe_intermediate_size": [16, 64]}, "vision": {"depth": 5}},
}
PAIRS = [(name, target) for name in CHECKPOINTS for target in ("onnx", "onnx-portable")]


def picture(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def image(seed: int, height: int, width: int) -> dict[str, Any]:
    return {"type": "image", "image": picture(seed, height, width)}


def video(seed: int, frames: int, height: int, width: int) -> dict[str, Any]:
    return {"type": "video", "video": [picture(seed + i, height, width) for i in range(frames)], "fps": 2.0}


def said(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [said("user", "What is red and round?")],
    "one-image": [said("user", image(1, 70, 112), "Which shape is it?")],
    "two-unequal-images": [said("user", image(2, 60, 150), "and", image(3, 112, 84), "Which has more?")],
    "video": [said("user", video(10, 6, 64, 96), "What moves?")],
    "images-and-videos-over-turns": [
        said("system", "Answer in one word."),
        said("user", image(4, 84, 84), "What is it?"),
        said("assistant", "square"),
        said("user", video(20, 5, 90, 60), image(5, 56, 140), "And here?"),
        said("assistant", "left"),
        said("user", video(30, 4, 64, 64), "When?"),
    ],
}


@pytest.fixture(scope="module")
def exported(make_exported, tmp_path_factory):
    """exported(name): a checkpoint, made once."""

    def make(name: str) -> Any:
        return make_exported(tmp_path_factory.mktemp(name), 100 + list(CHECKPOINTS).index(name), **CHECKPOINTS[name])

    return functools.cache(make)


@pytest.fixture(scope="module", params=PAIRS, ids="/".join)
def loaded(request, exported):
    """Name, our model and the reference."""
    name, target = request.param
    case = exported(name)
    with load(case.bundles[target], threads=1, scheduler_config=FORGETFUL) as model:
        yield "/".join(request.param), model, case.reference


def answer_of_reference(reference: Any, arrays: dict[str, np.ndarray]) -> tuple[list[list[int]], np.ndarray]:
    """Tokens of each row without the prompt, cut after the end token; relative gap of the two best logits, (B, T)."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    output = reference.generate(
        **tensors, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    best = torch.stack(output.logits, 1).topk(2).values
    gaps = (best[..., 0] - best[..., 1]) / best[..., 0].abs()
    rows = output.sequences[:, arrays["input_ids"].shape[1] :].tolist()
    end = reference.generation_config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows], gaps.numpy()


def compare(summary: Any, where: str, ours: tuple[int, ...], expected: list[int], gaps: np.ndarray) -> None:
    """Equal tokens, but for what follows a step whose gap is at rounding level."""
    summary.counts["generated tokens compared"] += len(expected)
    summary.counts[f"generated tokens with a logit gap below {NEAR:g}"] += int((gaps[: len(expected)] < NEAR).sum())
    if list(ours) == expected:
        return
    differ = next(i for i in range(NEW_TOKENS) if i >= min(len(ours), len(expected)) or ours[i] != expected[i])
    assert gaps[differ] < NEAR, f"{where}: token {differ} is {ours}, the reference has {expected} (gaps {gaps})"
    summary.notes.append(f"{where}: token {differ} chosen otherwise at a logit gap of {gaps[differ]:.1e}")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_same_tokens(loaded, summary, conversation):
    name, model, reference = loaded
    messages = CONVERSATIONS[conversation]
    (expected,), (gaps,) = answer_of_reference(reference, model.preprocess(messages))
    result = model.generate(messages, max_new_tokens=NEW_TOKENS)
    compare(summary, f"{name} {conversation}", result.tokens, expected, gaps)


@pytest.mark.parametrize("conversation", ["text", "two-unequal-images", "video"])
def test_same_log_probabilities_of_the_prompt(loaded, summary, conversation):
    name, model, reference = loaded
    messages = CONVERSATIONS[conversation]
    tensors = {key: torch.from_numpy(array) for key, array in model.preprocess(messages).items()}
    with torch.no_grad():
        expected = reference(**tensors).logits[0].log_softmax(-1)
    request = model.submit(messages, max_new_tokens=0, prompt_logprobs=2)
    while not request.done:
        model.scheduler.step()
    scores = request.sequence.prompt_logprobs
    tokens = tensors["input_ids"][0, 1:]
    assert len(scores) == len(tokens) and not request.sequence.tokens
    chosen = expected[:-1].gather(1, tokens[:, None])[:, 0].numpy()
    where = f"{name} {conversation}"
    ours = np.array([score.chosen for score in scores])
    assert summary.error("log probabilities of prompts", ours, chosen, where) < 1e-4
    ours = np.array([[value for _, value in score.top] for score in scores])
    best = expected[:-1].topk(2).values.numpy()
    assert summary.error("the two highest of prompts", ours, best, where) < 1e-4
    ranks = 1 + (expected[:-1] > torch.from_numpy(chosen)[:, None] + NEAR).sum(1)
    assert all(score.rank >= rank for score, rank in zip(scores, ranks.tolist(), strict=True))


def left_padded(requests: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Several requests as one batch of the reference: pads on the left, pixels and grids one after the other."""
    length = max(arrays["input_ids"].shape[1] for arrays in requests)
    batch: dict[str, list[np.ndarray]] = {}
    for arrays in requests:
        for name, array in arrays.items():
            if name.endswith(("ids", "mask")):
                array = np.pad(array, ((0, 0), (length - array.shape[1], 0)))
            batch.setdefault(name, []).append(array)
    return {name: np.concatenate(parts) for name, parts in batch.items()}


def test_turn_by_turn(loaded, summary):
    """A conversation asked again and again as it grows, each time taking over what the KV cache holds of it."""
    name, model, reference = loaded
    remembering = Model(model.manifest, model.preprocessor, model.engine)
    messages = CONVERSATIONS["images-and-videos-over-turns"]
    for turn, end in enumerate([i + 1 for i, message in enumerate(messages) if message["role"] == "user"]):
        arrays = model.preprocess(messages[:end])
        (expected,), (gaps,) = answer_of_reference(reference, arrays)
        request = remembering.submit(messages[:end], max_new_tokens=NEW_TOKENS)
        while not request.done:
            remembering.scheduler.step()
        compare(summary, f"{name} turn {turn}", tuple(request.sequence.tokens), expected, gaps)
        assert (request.sequence.reused > 0) == (turn > 0)


def test_a_batch_of_unequal_requests(loaded, summary):
    """As one at a time, and as the reference's left-padded batch."""
    name, model, reference = loaded
    requests = list(CONVERSATIONS.values())
    alone = [model.generate(messages, max_new_tokens=NEW_TOKENS) for messages in requests]
    together = model.generate(requests, max_new_tokens=NEW_TOKENS)
    expected, gaps = answer_of_reference(reference, left_padded([model.preprocess(m) for m in requests]))
    for conversation, one, several, wanted, row_gaps in zip(CONVERSATIONS, alone, together, expected, gaps):
        compare(summary, f"{name} {conversation} in a batch", several.tokens, list(one.tokens), row_gaps)
        compare(summary, f"{name} {conversation} in a batch", several.tokens, wanted, row_gaps)


def test_fewer_rows_than_requests(loaded):
    """Requests wait for a row, and rows of finished ones are taken over, without a trace in the answers.

    A few of the answers' tokens are declared end tokens, so that answers end at different steps.
    """
    _, model, _ = loaded
    requests = list(CONVERSATIONS.values())
    alone = [model.generate(messages, max_new_tokens=NEW_TOKENS).tokens for messages in requests]
    ends = {alone[0][2], alone[2][5]}
    info = replace(model.manifest.model, eos_token_ids=tuple(ends))
    manifest = replace(model.manifest, model=info)
    cut = [next((i + 1 for i, token in enumerate(tokens) if token in ends), NEW_TOKENS) for tokens in alone]
    assert len(set(cut)) > 1, "all end at once, and no row moves"
    for rows in (2, 3, 16):
        ending = Model(manifest, model.preprocessor, model.engine, SchedulerConfig(max_num_seqs=rows))
        results = ending.generate(requests, max_new_tokens=NEW_TOKENS)
        assert [r.tokens for r in results] == [tokens[:n] for tokens, n in zip(alone, cut)]


@pytest.mark.parametrize("conversation", ["text", "two-unequal-images", "images-and-videos-over-turns"])
def test_prefill_in_chunks(loaded, summary, conversation):
    """Chunks of five tokens, which cut through pictures and clips, give what the reference gives in one piece."""
    name, model, reference = loaded
    messages = CONVERSATIONS[conversation]
    arrays = model.preprocess(messages)
    types = arrays["mm_token_type_ids"][0]
    if conversation != "text":
        assert any(types[i - 1] == types[i] != 0 for i in range(5, len(types), 5)), "no chunk cuts through a picture"
    (expected,), (gaps,) = answer_of_reference(reference, arrays)
    chunked = Model(model.manifest, model.preprocessor, model.engine, replace(FORGETFUL, prefill_chunk=5))
    result = chunked.generate(messages, max_new_tokens=NEW_TOKENS)
    compare(summary, f"{name} {conversation} in chunks", result.tokens, expected, gaps)


@pytest.mark.parametrize("patches", [1, 50, 130])
def test_features_in_small_calls(loaded, summary, patches):
    """Encoder calls of few patches give the same features: sizes share calls, clips are cut between pairs."""
    name, model, reference = loaded
    pictures = [picture(seed, h, w) for seed, h, w in ((1, 70, 112), (2, 60, 150), (3, 70, 112), (4, 112, 84))]
    clips = [video(10, 6, 64, 96)["video"], video(20, 4, 90, 60)["video"]]
    small = Model(model.manifest, model.preprocessor, model.engine, FORGETFUL)
    merge = model.manifest.model.spatial_merge_size
    small.features = FeatureCache(model.engine, merge, limit=0, patches_per_call=patches)
    ours = small.image_features(pictures) + small.video_features(clips)
    parts = [*({"type": "image", "image": p} for p in pictures), *({"type": "video", "video": c} for c in clips)]
    arrays = {key: torch.from_numpy(a) for key, a in model.preprocess([said("user", *parts)]).items()}
    with torch.no_grad():
        images = reference.get_image_features(arrays["pixel_values"], arrays["image_grid_thw"], return_dict=True)
        videos = reference.get_video_features(arrays["pixel_values_videos"], arrays["video_grid_thw"], return_dict=True)
    for number, (mine, theirs) in enumerate(zip(ours, [*images.pooler_output, *videos.pooler_output], strict=True)):
        where = f"{name} {patches} patches a call, item {number}"
        assert summary.error("features of the runtime", mine, theirs.numpy(), where) < 1e-5
