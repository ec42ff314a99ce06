"""What the benchmarks compare: each contestant loads the same checkpoint and runs the same prompts, in its own process.

A worker process answers one JSON line on standard output for each on standard input:
    {"do": "prefill", "text": 512, "image": [0, 0]}       -> {"seconds": ..., "rss_mib": ...}
    {"do": "decode", "tokens": 32}                        -> the same, going on from the last prefill
`image` is the (height, width) in patches of one picture put before the text; [0, 0] is none. `"sequences": 4` makes it
four prompts, each of other tokens; decode then goes on with all of them together, with the tokens of continuations.py,
whatever a contestant finds likeliest. What a contestant can't do it answers
with {"error": ...}, one line; one that can't even begin says so instead of its first line, and ends.

| contestant | needs |
| --- | --- |
| Ours | a bundle |
| PyTorch | the extra `parity`; to compile, a C++ compiler |
| Exported | the extra `parity`, onnxscript or openvino |
| OpenVino | a bundle of the target onnx-portable, openvino |
| LlamaCpp | a GGUF of make_gguf.py, which builds llama.cpp |
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from continuations import MAX_NEW_TOKENS, continuations
from llama_contestant import LlamaCpp

THREADS = 2


def prompt(text: int, image: tuple[int, int], ids: dict[str, int], number: int = 0) -> dict[str, np.ndarray]:
    """The same random prompt for every contestant, arrays as the reference's processor names them."""
    rng = np.random.default_rng(number)
    height, width = image
    placeholders = height * width // 4
    picture = [ids["image_start"]] + [ids["image"]] * placeholders + [ids["image_end"]] if placeholders else []
    tokens = np.array([[*picture, *rng.integers(10, 400, text)]])
    kinds = (tokens == ids["image"]).astype(np.int64)
    inputs = {
        "input_ids": tokens,
        "mm_token_type_ids": kinds,
        "moe_mm_token_type_ids": kinds | np.isin(tokens, [ids["image_start"], ids["image_end"]]),
    }
    if placeholders:
        inputs["pixel_values"] = rng.standard_normal((height * width, 588)).astype(np.float32)
        inputs["image_grid_thw"] = np.array([[1, height, width]])
    return inputs


class Ours:
    """This runtime on an exported bundle."""

    def __init__(self, bundle: Path) -> None:
        self.model = self.load(bundle)
        facts = self.model.manifest.model
        self.ids = {
            "image": facts.image_token_id,
            "image_start": facts.image_start_token_id,
            "image_end": facts.image_end_token_id,
        }

    def load(self, bundle: Path) -> Any:
        """The model, keeping nothing between prompts: every picture is encoded anew, as the other contestants do."""
        from ernie_export.runtime import load
        from ernie_export.runtime.scheduler_config import SchedulerConfig

        return load(
            bundle,
            threads=THREADS,
            scheduler_config=SchedulerConfig(feature_cache_bytes=0, enable_prefix_caching=False),
        )

    def prefill(self, prompts: list[dict[str, np.ndarray]], max_new_tokens: int) -> None:
        """Prompts to the first token of each."""
        from ernie_export.runtime.batch import Batch

        given = continuations(prompts)
        self.sequences = [self.sequence(*one, max_new_tokens) for one in zip(prompts, given, strict=True)]
        longest = max(sequence.num_tokens_reserved() for sequence in self.sequences)
        self.batch = Batch(self.model.engine, num_slots=len(prompts), max_seq_len=longest)
        for sequence in self.sequences:
            self.batch.add(sequence)

    def sequence(self, inputs: dict[str, np.ndarray], given: np.ndarray, max_new_tokens: int) -> Any:
        """One prompt as the runtime's batches take it, and the tokens that follow it."""
        from ernie_export.runtime.answer_text import AnswerText
        from ernie_export.runtime.preprocess import MediaItem, Prepared
        from ernie_export.runtime.preprocess.positions import rope_positions
        from ernie_export.runtime.sampling import Sampler
        from ernie_export.runtime.sampling_params import SamplingParams
        from ernie_export.runtime.sequence import Sequence
        from ernie_export.runtime.text_stream import TextStream

        grids = inputs.get("image_grid_thw")
        positions = rope_positions(inputs["input_ids"], inputs["mm_token_type_ids"], grids)
        media = ()
        if grids is not None:
            media = (MediaItem("image", tuple(map(int, grids[0])), inputs["pixel_values"], slice(0, 0)),)
        prompt = self.model.prompt(Prepared(inputs, media, positions))
        params = SamplingParams(max_new_tokens=max_new_tokens)
        text = AnswerText(TextStream(lambda ids: ""))
        following = iter(given.tolist())

        class Given(Sampler):
            """Finds the likeliest tokens as a greedy sampler does, and goes on with the given ones."""

            def __init__(self) -> None:
                super().__init__(params, (), ())
                self.found: list[int] = []

            def next(self, logits: Any) -> int:
                self.found.append(super().next(logits))
                return next(following)

        return Sequence(prompt, Given(), text, frozenset(), max_new_tokens)

    def decode(self, tokens: int) -> None:
        """Further steps."""
        for _ in range(tokens):
            self.batch.step()


class OpenVino(Ours):
    """This runtime with OpenVINO as its engine, on a bundle of the target onnx-portable."""

    def prefill(self, prompts: list[dict[str, np.ndarray]], max_new_tokens: int) -> None:
        """See `Ours.prefill`."""
        expect_one(prompts)
        super().prefill(prompts, max_new_tokens)

    def load(self, bundle: Path) -> Any:
        """See `Ours.load`."""
        from openvino_engine import OpenVinoEngine

        from ernie_export.common.manifest import Manifest
        from ernie_export.runtime.pipeline import Model
        from ernie_export.runtime.preprocess import Preprocessor
        from ernie_export.runtime.scheduler_config import SchedulerConfig

        manifest = Manifest.read(bundle)
        engine = OpenVinoEngine(bundle, manifest, THREADS)
        return Model(
            manifest,
            Preprocessor.from_folder(bundle),
            engine,
            SchedulerConfig(feature_cache_bytes=0, enable_prefix_caching=False),
        )


class PyTorch:
    """The transformers class. experts: eager or grouped_mm; dtype: float32 or bfloat16; compiled: by torch.compile."""

    def __init__(self, checkpoint: Path, experts: str, dtype: str, compiled: bool = False) -> None:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
        import torch
        import torchvision_operators  # noqa: F401
        from transformers import Ernie4_5_VLMoeForConditionalGeneration

        torch.set_num_threads(THREADS)
        self.torch = torch
        self.model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), experts_implementation=experts
        ).eval()
        self.model.requires_grad_(False)
        config = self.model.config
        self.ids = {
            "image": config.image_token_id,
            "image_start": config.image_start_token_id,
            "image_end": config.image_end_token_id,
        }
        if compiled:  # lengths change from call to call: one graph for all of them
            self.model.forward = torch.compile(self.model.forward, dynamic=True)

    def prefill(self, prompts: list[dict[str, np.ndarray]], max_new_tokens: int) -> None:
        """Prompts, of equal length, to the first token of each; logits for the last position only, as by generate()."""
        torch = self.torch
        inputs = {name: np.concatenate([one[name] for one in prompts]) for name in prompts[0]}
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if "pixel_values" in tensors:
            tensors["pixel_values"] = tensors["pixel_values"].to(self.model.dtype)
        self.model.model.rope_deltas = None
        output = self.model(**tensors, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        self.found = output.logits[:, -1:].argmax(-1)
        self.position = int(inputs["input_ids"].shape[1])
        self.given = iter(torch.from_numpy(continuations(prompts).T[..., None]))

    def decode(self, tokens: int) -> None:
        """Further steps, by the shortest loop that the class allows."""
        for _ in range(tokens):
            token = next(self.given)
            position = self.torch.full((3, len(token), 1), self.position)
            output = self.model(input_ids=token, past_key_values=self.cache, position_ids=position, use_cache=True)
            self.found = output.logits[:, -1:].argmax(-1)
            self.position += 1


class Exported:
    """What transformers' own exporters make of the class, in float32: one graph of text tokens, prompt and steps alike.

    Of a prompt with a picture no exporter makes a graph (tracing ends at a shape that depends on the data).
    exporter: onnx, run by ONNX Runtime with the fusions for its CPU provider, or openvino.
    """

    def __init__(self, checkpoint: Path, exporter: str) -> None:
        source = PyTorch(checkpoint, "grouped_mm", "float32")
        from transformers import exporters
        from transformers.exporters.utils import decompose_for_generation

        self.torch = source.torch
        self.ids = source.ids
        tokens = {name: self.torch.from_numpy(a) for name, a in prompt(16, (0, 0), source.ids).items()}
        parts = decompose_for_generation(source.model, tokens, multi_token_decode=True)
        model, sample = parts["decode"]
        if exporter == "onnx":
            kind = exporters.OnnxExporter
            settings = exporters.OnnxConfig(dynamic=True, ort_fusions="cpu")
        else:
            kind = exporters.OpenVINOExporter
            settings = exporters.OpenVINOConfig(dynamic=True, stateful=False)
        graph = kind().export(model, sample, settings)
        self.runner = graph.to(**self.options(exporter)).runners["model"]
        self.empty = sample["past_key_values"]
        for layer in self.empty.layers:
            layer.keys, layer.values = layer.keys[:, :, :0].contiguous(), layer.values[:, :, :0].contiguous()

    @staticmethod
    def options(exporter: str) -> dict[str, Any]:
        """Threads and precision, in the words of each runtime."""
        if exporter == "openvino":
            return {"config": {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}}
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        return {"session_options": options}

    def prefill(self, prompts: list[dict[str, np.ndarray]], max_new_tokens: int) -> None:
        """Prompt to the first token."""
        expect_one(prompts)
        (inputs,) = prompts
        if "pixel_values" in inputs:
            raise NotImplementedError("no graph of a prompt with a picture")
        self.cache = self.empty
        self.position = 0
        self.given = iter(self.torch.from_numpy(continuations(prompts).T[..., None]))
        self.run(self.torch.from_numpy(inputs["input_ids"]))

    def run(self, tokens: Any) -> None:
        """Append tokens (1, n); the positions are those of the attention and those of the three rotary axes."""
        length = tokens.shape[1]
        positions = self.torch.arange(self.position, self.position + length).expand(4, 1, length).contiguous()
        output = self.runner(input_ids=tokens, position_ids=positions, past_key_values=self.cache)
        self.cache = output.past_key_values
        self.found = output.logits[:, -1:].argmax(-1)
        self.position += length

    def decode(self, tokens: int) -> None:
        """Further steps."""
        for _ in range(tokens):
            self.run(next(self.given))


CONTESTANTS = {kind.__name__: kind for kind in (Ours, OpenVino, PyTorch, Exported, LlamaCpp)}


def expect_one(prompts: list[dict[str, np.ndarray]]) -> None:
    """Raise NotImplementedError for several prompts."""
    if len(prompts) > 1:
        raise NotImplementedError("one sequence at a time here")


def make(spec: dict[str, Any]) -> Any:
    """A contestant from its description, as compare.py writes it: its class's name, and what that takes."""
    paths = {key: Path(spec[key]) for key in ("bundle", "checkpoint", "gguf") if key in spec}
    return CONTESTANTS[spec["kind"]](**({key: value for key, value in spec.items() if key != "kind"} | paths))


def prompts_of(task: dict[str, Any], ids: dict[str, int]) -> list[dict[str, np.ndarray]]:
    """The prompts of a prefill."""
    return [prompt(task["text"], tuple(task["image"]), ids, number) for number in range(task.get("sequences", 1))]


def work(spec: dict[str, Any], packages: list[str]) -> None:
    """The worker's loop; ends when standard input does. `packages`: folders to import from, last."""
    sys.path.extend(packages)
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print, too

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        contestant = make(spec)
    except Exception as e:
        return answer(error=one_line(e))
    answer(ready=True)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            prompts = prompts_of(task, contestant.ids) if task["do"] == "prefill" else []
            started = time.perf_counter()
            if prompts:
                contestant.prefill(prompts, MAX_NEW_TOKENS)
            else:
                contestant.decode(task["tokens"])
            seconds = time.perf_counter() - started
        except Exception as e:
            answer(error=one_line(e))
            continue
        # ru_maxrss is in KiB on Linux.
        answer(seconds=seconds, rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def one_line(error: BaseException) -> str:
    """The error at the root of a chain, by its type and first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


if __name__ == "__main__":
    work(json.loads(sys.argv[1]), sys.argv[2:])
