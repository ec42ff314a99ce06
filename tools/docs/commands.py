"""The reference of commands, from their click definitions, and of metrics, from a server's registry."""

import re
import tomllib
from importlib import import_module
from types import SimpleNamespace

import click

from ernie_export.runtime.serving.http.metrics import CacheSize, Metrics
from tools.docs.tables import ROOT, table

_DEFAULT = re.compile(r"\s*\[default: (.*?)\]")  # of an option whose default click cannot show itself


def commands() -> dict[str, click.Command]:
    """Return every installed command by name, as its module defines it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return {name: import_module(entry.partition(":")[0]).command for name, entry in scripts.items()}


def commands_page() -> str:
    """Return the page with every command's usage, text and options."""
    sections = [section(name, command) for name, command in commands().items()]
    return (
        "# Commands\n\nEvery command has `--help` and `--version`. Errors are one line on standard error that names the\n"
        "file or option, what was expected and what was found; exit codes are on [the page of errors](errors.md).\n\n"
        + "\n".join(sections)
    )


def section(name: str, command: click.Command) -> str:
    """Return one command's section."""
    context = click.Context(command, info_name=name, color=False)
    usage = " ".join(command.collect_usage_pieces(context))
    options = [
        [signature(parameter, context), default(parameter), _DEFAULT.sub("", parameter.help or "")]
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and not {"--help", "--version"} & set(parameter.opts)
    ]
    text = "\n".join(line.strip() for line in (command.help or "").splitlines())
    return (
        f"## {name}\n\n```text\n{name} {usage}\n```\n\n{text}\n\n{table(['option', 'default', 'meaning'], options)}\n"
    )


def signature(option: click.Option, context: click.Context) -> str:
    """Return an option's names and its value, as code."""
    names = ", ".join(option.opts)
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    return f"`{names}{value}`"


def default(option: click.Option) -> str:
    """Return an option's default; empty for none, which its help then explains where it matters."""
    if said := _DEFAULT.search(option.help or ""):
        return said[1]
    if option.is_flag or option.multiple or not isinstance(option.default, str | int | float):
        return ""
    return f"`{option.default}`" if option.default != "" else ""


def metrics_page() -> str:
    """Return the page of Prometheus metrics."""
    features = SimpleNamespace(queries=0, hits=0)
    cache = CacheSize(tokens=1, max_model_len=1, bytes=1, prefix_caching=True)
    registry = Metrics("model", lambda: 0, lambda: 0, lambda: 0, features, cache).registry
    rows = [
        [f"`{family.name}`", family.type, family.documentation]
        for family in registry.collect()
        if not family.name.startswith("process_")
    ]
    return (
        "# Metrics\n\n`GET /metrics` of `ernie-serve` returns these in Prometheus' text form, beside the process's own\n"
        "(`process_resident_memory_bytes` and so on). Names that vLLM has mean the same, so its dashboards work. Counters end\n"
        "in `_total`, histograms in `_bucket`, `_sum` and `_count`. All carry the label `model_name`.\n\n"
        + table(["name", "kind", "meaning"], rows)
        + "\n\nThe labels of `vllm:cache_config_info` are those of vLLM's that mean something here: "
        + ", ".join(f"`{name}`" for name in cache.labels())
        + ".\nThe cache has no blocks, on a GPU or elsewhere; its tokens are counted as blocks of one, so that `num_gpu_blocks` times\n"
        "`block_size` is what it holds.\n"
    )
