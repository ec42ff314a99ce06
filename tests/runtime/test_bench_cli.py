"""ernie-bench from its arguments to its output: one run on a real bundle, and one line for every mistake."""

import json
import math

import pytest
from PIL import Image

from ernie_export.common.text import format_number
from ernie_export.runtime.bench import measure as bench
from ernie_export.runtime.bench import plot as bench_plot
from ernie_export.runtime.bench.machine import Machine
from ernie_export.runtime.cli import bench as bench_cli
from tests.paths import MINI

QUICK = ("--prompt-tokens", 40, "--output-tokens", 4, "--batch", "2,1", "--rounds", 2, "--threads", 1)
STATISTICS = ("mean", "median", "std", "p95", "p99")
THROUGHPUTS = ("request_throughput", "output_throughput", "total_token_throughput", "decode_throughput")


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return mini_bundle


@pytest.fixture
def ernie_bench(capsys):
    """Run the command in this process; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            bench_cli.main([*map(str, arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def test_json(ernie_bench, bundle):
    """Every field with its type; the names are those of the common benchmarks, so they may not change."""
    code, out, err = ernie_bench(bundle, *QUICK, "--images", "112x112,56x60", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert set(document) == {
        "date", "bundle", "target", "precision", "bundle_bytes", "workload", "machine", "load_seconds",
        "peak_rss_bytes", "batches", "images", "notes",
    }  # fmt: skip
    assert document["workload"] == {
        "prompt_tokens": 40, "images": [[112, 112], [56, 60]], "image_tokens": 24, "output_tokens": 4,
        "batches": [2, 1], "rounds": 2, "warmup": 1, "seed": 0, "threads": 1,
    }  # fmt: skip
    assert (document["bundle"], document["target"], document["precision"]) == (str(bundle), "onnx", "fp32")
    assert set(document["machine"]) == {"cpu", "cores", "memory", "system", "load_average", "versions", "busy"}
    assert {"python", "ernie-export", "onnxruntime", "numpy"} == set(document["machine"]["versions"])
    assert 50 * 2**20 < document["peak_rss_bytes"] < 4 * 2**30 and 0 < document["load_seconds"] < 60
    for batch, figures in zip((2, 1), document["batches"], strict=True):
        counts = {
            "max_concurrency": batch, "num_prompts": 2 * batch, "completed": 2 * batch,
            "total_input_tokens": 64 * 2 * batch, "total_output_tokens": 4 * 2 * batch,
        }  # fmt: skip
        assert {key: figures[key] for key in counts} == counts
        latencies = {f"{rank}_{kind}_ms" for rank in STATISTICS for kind in ("ttft", "tpot", "itl", "e2el")}
        lists = {"input_lens", "output_lens", "ttfts", "itls"}
        assert set(figures) == {*counts, "duration", *THROUGHPUTS, *latencies, *lists}
        assert all(math.isfinite(figures[key]) for key in set(figures) - lists)
        assert all(figures[key] > 0 for key in THROUGHPUTS)
        assert [len(figures[key]) for key in sorted(lists)] == [2 * batch] * 4
        assert {len(itls) for itls in figures["itls"]} == {3}
    for size, figures in zip((112, 56), document["images"], strict=True):
        latencies = {f"{rank}_image_{kind}_ms" for rank in STATISTICS for kind in ("latency", "preprocess")}
        assert set(figures) == {"width", "height", "patches", "tokens", "image_throughput", *latencies}
        assert figures["width"] == size and figures["image_throughput"] > 0


def test_tables_and_a_plot(ernie_bench, bundle, tmp_path):
    code, out, err = ernie_bench(bundle, *QUICK, "--images", "112x112", "--plot", tmp_path / "out.png")
    assert (code, err) == (0, "")
    stated = (
        f"{bundle}: onnx, fp32, ", "40 text tokens and 18 image tokens (112x112), answers of 4", "2 rounds after 1",
        "seed 0", "threads: 1", "onnxruntime 1.", "load average", "peak memory", "batch 2", "batch 1",
        *(label for label, _ in bench_cli.ROWS), "images/s",
    )  # fmt: skip
    assert [part for part in stated if part not in out] == []
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == bench_plot.SIZE


def test_text_alone_has_no_table_of_images(ernie_bench, bundle):
    code, out, _ = ernie_bench(bundle, *QUICK, "--rounds", 1, "--warmup", 0)
    assert code == 0 and "images/s" not in out and "image tokens" not in out


MISTAKES = {
    "no bundle": (["nowhere"], ("nowhere", "no folder")),
    "a checkpoint": ([MINI], (str(MINI), "manifest.json", "checkpoint")),
    "no rounds": (["BUNDLE", "--rounds", 0], ("--rounds", "0")),
    "less than no warm-up": (["BUNDLE", "--warmup", -1], ("--warmup", "-1")),
    "no threads": (["BUNDLE", "--threads", 0], ("--threads", "0")),
    "no prompt": (["BUNDLE", "--prompt-tokens", 0], ("--prompt-tokens", "0")),
    "a prompt shorter than the template": (["BUNDLE", "--prompt-tokens", 2], ("--prompt-tokens", "at least", "2")),
    "a prompt past the positions": (["BUNDLE", "--prompt-tokens", 5000], ("--prompt-tokens", "4096", "5064")),
    "one token has no interval": (["BUNDLE", "--output-tokens", 1], ("--output-tokens", "1")),
    "an empty batch": (["BUNDLE", "--batch", "1,0"], ("--batch", "from 1", "found 0")),
    "a batch past the limit": (["BUNDLE", "--batch", "1025"], ("--batch", "1024", "1025")),
    "no batch": (["BUNDLE", "--batch", ""], ("--batch", "nothing")),
    "a batch that is no number": (["BUNDLE", "--batch", "1,two"], ("--batch", "two")),
    "a batch in other digits": (["BUNDLE", "--batch", "²"], ("--batch", "²")),
    "a size of one side": (["BUNDLE", "--images", "224"], ("--images", "WIDTHxHEIGHT", "224")),
    "a size that ends early": (["BUNDLE", "--images", "224x224,"], ("--images", "nothing")),
    "a long picture": (["BUNDLE", "--images", "1x201"], ("--images", "200", "1x201")),
    "a huge picture": (["BUNDLE", "--images", "90000x90000"], ("--images", "89478485", "90000x90000")),
    "a negative seed": (["BUNDLE", "--seed", -1], ("--seed", "-1")),
    "a plot of another kind": (["BUNDLE", "--plot", "out.pdf"], ("--plot", ".png", "out.pdf")),
    "a plot in no folder": (["BUNDLE", "--plot", "no/out.png"], ("--plot", "no folder no")),
    "an unknown option": (["BUNDLE", "--speed"], ("--speed",)),
}


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(ernie_bench, bundle, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    code, out, err = ernie_bench(*(bundle if argument == "BUNDLE" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert [part for part in parts if part not in err] == [], err
    assert list(tmp_path.iterdir()) == []


def test_a_plot_without_matplotlib(ernie_bench, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_cli, "find_spec", lambda name: None)
    code, out, err = ernie_bench(bundle, "--plot", tmp_path / "out.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "extra 'bench'" in err and "matplotlib" in err


@pytest.mark.parametrize("output", [[], ["--json"]], ids=["table", "json"])
def test_interrupted_it_leaves_nothing(ernie_bench, bundle, tmp_path, monkeypatch, output):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_round", interrupted)
    code, out, err = ernie_bench(bundle, *QUICK, *output, "--plot", tmp_path / "out.png")
    assert (code, out, err) == (130, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("load", "busy"), [(0.9, False), (1.1, True)])
def test_a_busy_machine_is_said_to_be_one(load, busy):
    assert Machine("cpu", 2, 2**30, "Linux", load, {}).busy == busy


def test_numbers():
    assert [format_number(value) for value in (0.0123, 1.5, 99.96, 12345.6, 16)] == [
        "0.0123", "1.50", "100", "12,346", "16"
    ]  # fmt: skip
