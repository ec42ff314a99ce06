"""An hour of mixed requests against a real ernie-serve, its memory watched all along.

    python benchmarks/soak.py bundles/mini-ernie --minutes 60 --out benchmarks/results/soak.json

Text, pictures nobody has sent before, clips, several turns, several choices, streams that their client leaves midway,
and requests that have to be refused, in a random order that repeats with --seed. The questions among them of
examples/questions.json have to get their answers. The server's caches are kept small enough to be full before the
warm-up is over, so that what grows after it is no cache. The C library keeps what its heap needed at most: so the soak
begins with each refused request of all clients at once, which otherwise meet by chance after the warm-up. Growth: the
median of the resident set in the last tenth of the time over that in the tenth after the warm-up.
"""

import asyncio
import base64
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from openai import APIStatusError, AsyncOpenAI
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ("--port", "0", "--model-name", "soaked", "--kv-cache", "0.05", "--feature-cache", "1", "--rows", "4")
WARM_UP = 1 / 6  # of the time
MIB = 2**20


@dataclass
class Soak:
    """The client, what it counts, and the memory that it sees."""

    client: AsyncOpenAI
    rng: random.Random
    questions: list[dict[str, Any]]
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    trace: list[tuple[float, float, float]] = field(default_factory=list)  # seconds, resident and anonymous MiB

    async def ask(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        return await self.client.chat.completions.create(model="soaked", messages=messages, **options)  # type: ignore[call-overload]

    async def known(self) -> None:
        """A question with a picture, clip or neither, whose answer is known."""
        question = self.rng.choice(self.questions)
        answer = (await self.ask(question["asked"], max_tokens=32)).choices[0].message.content
        if answer != question["answer"]:
            self.wrong.append(f"{question['name']}: {answer!r}")

    async def text(self) -> None:
        """Words that no prompt began with before, streamed to the end."""
        words = " ".join(self.rng.choices(("red", "blue", "which", "circle", "seven", "?"), k=self.rng.randint(1, 200)))
        async for _ in await self.ask(user(text(words)), stream=True, temperature=1.0, max_tokens=48):
            pass

    async def picture(self) -> None:
        """One to three pictures that nobody has sent before."""
        parts = [self.new_picture() for _ in range(self.rng.randint(1, 3))]
        await self.ask(user(*parts, text("What is in the picture?")), max_tokens=24)

    async def choices(self) -> None:
        """Several sampled answers with their logprobs."""
        await self.ask(user(text("What is red?")), n=3, temperature=1.5, max_tokens=16, logprobs=True, top_logprobs=5)

    async def turns(self) -> None:
        """A second question about the same picture."""
        messages = user(self.new_picture(), text("Where is the square?"))
        answer = (await self.ask(messages, max_tokens=16)).choices[0].message.content
        further = [{"role": "assistant", "content": answer}, *user(text("What colour is it?"))]
        await self.ask([*messages, *further], max_tokens=16)

    async def leave(self) -> None:
        """Go away in the middle of a stream."""
        stream = await self.ask(
            user(self.new_picture(), text("Tell.")), stream=True, temperature=2.0, max_tokens=400,
            extra_body={"min_tokens": 400},
        )  # fmt: skip
        wanted = self.rng.randint(1, 40)
        async for _ in stream:
            wanted -= 1
            if not wanted:
                break
        await stream.close()

    async def refused(self) -> None:
        """A request that has to be refused."""
        await self.refuse(self.rng.choice(self.bad_requests()))

    async def refuse(self, messages: list[dict[str, Any]]) -> None:
        """Send what has to be refused."""
        try:
            await self.ask(messages)
        except APIStatusError as e:
            if e.status_code != 400:
                raise
        else:
            self.wrong.append("a bad request was answered")

    async def refuse_together(self, clients: int) -> None:
        """Send each request that has to be refused from all clients at once."""
        for messages in self.bad_requests():
            await asyncio.gather(*(self.refuse(messages) for _ in range(clients)))

    def bad_requests(self) -> tuple[list[dict[str, Any]], ...]:
        """Messages that have to be refused, each for another reason."""
        return (
            user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
            user({"type": "video_url", "video_url": {"url": data_uri(self.rng.randbytes(2000), "video")}}),
            user({"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}),
            [{"role": "nobody", "content": "x"}],
            user(text("😀" * 100_000)),
            user(*[{"type": "image_url", "image_url": {"url": data_uri(bytes(2**20), "image")}}] * 4),
            user(*[text("a")] * 5000),
        )

    def new_picture(self) -> dict[str, Any]:
        seed = self.rng.getrandbits(32)
        side = self.rng.randint(40, 200)
        pixels = np.random.default_rng(seed).integers(0, 256, (side, 120, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return {"type": "image_url", "image_url": {"url": data_uri(stream.getvalue(), "image")}}

    async def asker(self, until: float, pause: float) -> None:
        """Ask one thing after another, with a pause of random length between."""
        ways: list[Callable[[], Awaitable[None]]] = [
            self.known, self.known, self.text, self.picture, self.choices, self.turns, self.leave, self.refused
        ]  # fmt: skip
        while time.monotonic() < until:
            way = self.rng.choice(ways)
            try:
                await way()
                self.ended[way.__name__] += 1
            except Exception as e:
                self.wrong.append(f"{way.__name__}: {type(e).__name__} {e}"[:300])
            await asyncio.sleep(self.rng.uniform(0, 2 * pause))

    async def watch(self, pid: int, began: float, until: float, every: float) -> None:
        """Note the server's memory."""
        while time.monotonic() < until:
            status = Path(f"/proc/{pid}/status").read_text()
            resident, anonymous = (int(status.split(f"{key}:")[1].split()[0]) / 1024 for key in ("VmRSS", "RssAnon"))
            self.trace.append((round(time.monotonic() - began, 1), round(resident, 2), round(anonymous, 2)))
            await asyncio.sleep(every)


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    """One turn of the user's."""
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict[str, Any]:
    """A part of text."""
    return {"type": "text", "text": words}


def data_uri(data: bytes, kind: str) -> str:
    """A file as it goes into a request."""
    return f"data:{kind}/any;base64,{base64.b64encode(data).decode()}"


def questions() -> list[dict[str, Any]]:
    """examples/questions.json, with the messages as OpenAI writes them under "asked"."""
    found: list[dict[str, Any]] = json.loads((ROOT / "examples" / "questions.json").read_text())
    for question in found:
        question["asked"] = [
            turn | {"content": [as_openai(part) for part in turn["content"]]} for turn in question["messages"]
        ]
    return found


def as_openai(part: dict[str, Any]) -> dict[str, Any]:
    """A part with a local file, as a part with the file in it."""
    if part["type"] == "text":
        return part
    kind = part["type"]
    return {"type": f"{kind}_url", f"{kind}_url": {"url": data_uri((ROOT / part["path"]).read_bytes(), kind)}}


def summary(trace: list[tuple[float, float, float]], seconds: float) -> dict[str, Any]:
    """Medians after the warm-up and at the end, of the resident set and its anonymous part, and growth in percent."""

    def median(column: int, first: float, last: float) -> float:
        return statistics.median(row[column] for row in trace if first * seconds <= row[0] <= last * seconds)

    result: dict[str, Any] = {}
    for name, column in (("resident", 1), ("anonymous", 2)):
        before = median(column, WARM_UP, WARM_UP + 0.1)
        after = median(column, 0.9, 1.0)
        result[name] = {
            "after_warm_up_mib": before, "at_the_end_mib": after, "growth_percent": round(100 * (after / before - 1), 2)
        }  # fmt: skip
    return result


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--askers", default=3, show_default=True, help="Clients at a time.")
@click.option("--pause", default=1.0, show_default=True, metavar="SECONDS", help="Of a client between requests, mean.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(bundle: Path, minutes: float, askers: int, pause: float, seed: int, out: Path | None) -> None:
    """Ask a server of the mini BUNDLE for MINUTES; exit with 1 where anything was wrong or memory grew by over 2 %."""
    log = Path(f"{out or 'soak'}.log")
    program = "from ernie_export.runtime.cli.serve import main; main()"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-c", program, str(bundle), *OPTIONS], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        try:
            soak = asyncio.run(run(url, server.pid, 60 * minutes, askers, pause, seed))
        finally:
            server.terminate()
            status = server.wait()
    printed = log.read_text()
    log.unlink()
    report = {
        "command": f"soak.py --minutes {minutes:g} --askers {askers} --pause {pause:g} --seed {seed}",
        "server": list(OPTIONS),
        "date": time.strftime("%Y-%m-%d"),
        "ended": dict(soak.ended),
        "wrong": soak.wrong[:50],
        "exit_code": status,
        "printed_by_the_server": printed[-2000:],
        **summary(soak.trace, 60 * minutes),
        "trace": {"columns": ["seconds", "resident MiB", "anonymous MiB"], "rows": thinned(soak.trace)},
    }
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "trace"}, indent=1))
    growth = report["resident"]["growth_percent"]
    sys.exit(1 if soak.wrong or printed or status or growth > 2 else 0)


async def run(url: str, pid: int, seconds: float, askers: int, pause: float, seed: int) -> Soak:
    """Ask and watch for so many seconds."""
    began = time.monotonic()
    until = began + seconds
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        soak = Soak(client, random.Random(seed), questions())
        for _ in range(3):
            await soak.refuse_together(askers)
        watch = soak.watch(pid, began, until, min(5.0, seconds / 60))
        await asyncio.gather(watch, *(soak.asker(until, pause) for _ in range(askers)))
    return soak


def thinned(trace: list[tuple[float, float, float]], most: int = 180) -> list[list[float]]:
    """Evenly spaced rows, at most so many."""
    step = -(-len(trace) // most)
    return [list(row) for row in trace[::step]]


if __name__ == "__main__":
    main()
