"""lm-eval: generation by chat completions, with images too, and by completions, and multiple choice."""

import json
import math
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from PIL import Image

from tests.clients.probe import ANSWER, BUNDLE, IMAGE, MINI, MODEL, QUESTION, SCRIPTED, WORK, check, equal, true

COMMON = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(WORK / "data.jsonl")}}}
COMMON |= {"test_split": "test"}
EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
GENERATES = {"output_type": "generate_until", "doc_to_target": "{{answer}}", "metric_list": EXACT}
GENERATES |= {"generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16}}
SAID: dict[str, Any] = {"task": "said", "doc_to_text": "say:{{answer}}", **COMMON, **GENERATES}
LOOK = {**SAID, "task": "look", "doc_to_text": QUESTION, "doc_to_image": lambda document: [Image.open(IMAGE)]}
CHOICE: dict[str, Any] = {
    "task": "choice",
    "doc_to_text": "What is red?",
    "doc_to_choice": ["triangle", "circle"],
    "doc_to_target": 0,
    "output_type": "multiple_choice",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    **COMMON,
}
(WORK / "data.jsonl").write_text("".join(json.dumps({"answer": ANSWER, "number": i}) + "\n" for i in range(3)))


def evaluated(model: str, url: str, path: str, task: dict[str, Any], chat: bool = False, **options: Any) -> Any:
    """Return the results of a task."""
    arguments = {"model": MODEL, "base_url": f"{url}/v1/{path}", "max_retries": 1, "num_concurrent": 2, **options}
    return lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(),
        apply_chat_template=chat,
        batch_size=1,
    )


with check("local-chat-completions"):
    results = evaluated("local-chat-completions", SCRIPTED, "chat/completions", SAID, chat=True)
    equal(results["results"]["said"]["exact_match,none"], 1.0)
with check("local-chat-completions: images"):
    results = evaluated("local-chat-completions", MINI, "chat/completions", LOOK, chat=True)
    equal(results["results"]["look"]["exact_match,none"], 1.0)
for backend in ("remote", "huggingface"):
    options = {"tokenizer_backend": backend} | ({"tokenizer": str(BUNDLE)} if backend == "huggingface" else {})
    with check(f"local-completions, tokenizer_backend={backend}"):
        results = evaluated("local-completions", SCRIPTED, "completions", SAID, **options)
        equal(results["results"]["said"]["exact_match,none"], 1.0)
    with check(f"local-completions, multiple choice, tokenizer_backend={backend}"):
        results = evaluated("local-completions", MINI, "completions", CHOICE, **options)
        values = [value for sample in results["samples"]["choice"] for ((value, _),) in sample["resps"]]
        true(len(values) == 6 and all(-60 < value < 0 and math.isfinite(value) for value in values), values)
