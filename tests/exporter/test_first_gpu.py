"""tools.first_gpu from its command line: without a GPU, and with fakes of TensorRT, a driver and compute-sanitizer."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import MINI, ROOT
from tools.first_gpu.report import write_report
from tools.first_gpu.session import Found, Session, Skipped, StepFailed

# Writes the summary of memcheck, and runs the program that it is to watch.
FAKE_SANITIZER = """#!/bin/sh
while [ "$1" != --log-file ]; do shift; done
echo "========= ERROR SUMMARY: {errors} errors" > "$(dirname "$2")/$$.txt"
shift 2
exec "$@"
"""


def run_steps(out: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, dict], str]:
    """Run the tool; return its exit code, the steps of its report by name, and what it printed."""
    program = [sys.executable, "-m", "tools.first_gpu", "-o", str(out), *arguments]
    process = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=os.environ | (env or {}))
    assert process.stderr == ""
    report = json.loads((out / "report.json").read_text())
    return process.returncode, {step["name"]: step for step in report["steps"]}, process.stdout


@pytest.fixture
def out(made, tmp_path) -> Path:
    """The folder of a run that has a bundle for TensorRT already, with a few of the kernels: all take a minute."""
    shutil.copytree(made[0], tmp_path / "out" / "trt")
    return tmp_path / "out"


def test_a_dry_run_without_a_gpu_comes_to_the_end(out):
    code, steps, printed = run_steps(out, "--rehearse")
    assert code == 0 and printed.count("\n") == len(steps) + 1
    assert {step["status"] for step in steps.values()} == {"passed", "skipped"}
    passed = {name for name, step in steps.items() if step["status"] == "passed"}
    rehearsed = {"export onnx", "answer onnx", "verify onnx", "prefill onnx", "decode onnx"}
    assert passed == {"machine", "export trt", "export trt-rtx"} | rehearsed
    for name in steps.keys() - passed:
        assert steps[name]["detail"] == "no GPU that NVIDIA's driver shows"
    assert (out / "trt-rtx" / "decode.engine").is_file()
    assert steps["answer onnx"]["data"]["tokens"]
    assert re.search(r"[\d]+ of [\d]+ next tokens agree", steps["verify onnx"]["detail"])
    html = (out / "report.html").read_text()
    embedded = re.search(r'<script type="application/json" id="report">(.*)</script>', html, re.DOTALL)
    assert embedded is not None and json.loads(embedded[1]) == json.loads((out / "report.json").read_text())
    assert all(f"<td>{name}</td><td>{step['status']}</td>" in html for name, step in steps.items())


def with_sanitizer(folder: Path, environment: dict[str, str], errors: int) -> dict[str, str]:
    """Return the environment with a compute-sanitizer on PATH that finds so many errors in each process."""
    folder.mkdir()
    (folder / "compute-sanitizer").write_text(FAKE_SANITIZER.format(errors=errors))
    (folder / "compute-sanitizer").chmod(0o755)
    return environment | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_engines_are_built_and_watched_on_a_fake_gpu(out, tmp_path, environment):
    """What follows the builds fails here, since the fake makes no engines that run; every step has its turn."""
    chosen = ("build trt", "answer trt", "prefill trt", "sanitize trt", "export trt")
    env = with_sanitizer(tmp_path / "bin", environment, errors=0)
    code, steps, _ = run_steps(out, *(part for name in chosen for part in ("--only", name)), env=env)
    assert code == 1 and list(steps) == list(chosen)
    assert steps["build trt"]["status"] == "passed", steps["build trt"]
    assert steps["build trt"]["detail"].startswith("engines of TensorRT 11.4")
    assert steps["build trt"]["data"]["decode"]["attention"]["decomposable"] is True
    assert {"vision", "resampler", "decoder", "decode"} == steps["build trt"]["data"]["messages"].keys()
    for name in ("answer trt", "prefill trt"):
        assert steps[name]["status"] == "failed" and steps[name]["detail"].startswith("exit code"), steps[name]
    assert steps["sanitize trt"]["status"] == "passed", steps["sanitize trt"]
    assert steps["sanitize trt"]["detail"].startswith("no errors in 4 processes")
    assert not (out / "trt-sanitized").exists() and (out / "trt" / "decode.engine").is_file()


def test_what_compute_sanitizer_finds_fails_its_step(out, tmp_path, environment):
    env = with_sanitizer(tmp_path / "bin", environment, errors=3)
    code, steps, _ = run_steps(out, "--only", "sanitize trt", env=env)
    assert code == 1 and steps["sanitize trt"]["status"] == "failed", steps["sanitize trt"]
    assert steps["sanitize trt"]["detail"].startswith("12 errors in 4 processes")
    assert not (out / "trt-sanitized").exists()


def test_a_build_that_fails_is_reported_with_the_librarys_messages(out, environment):
    """The plugins' kernels are damaged, which ends the builder."""
    (out / "trt" / "kernels-sm90.json").write_text("{}")
    code, steps, _ = run_steps(out, "--only", "build trt", "--only", "answer trt", env=environment)
    assert code == 1 and steps["build trt"]["status"] == "failed"
    assert "kernels-sm90.json" in steps["build trt"]["detail"]
    assert steps["answer trt"]["status"] == "skipped"
    assert steps["answer trt"]["detail"] == "there are no engines: see the step build trt"


def test_an_unknown_step_is_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "tools.first_gpu", "-o", str(tmp_path / "out"), "--only", "dance"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.returncode == 2 and process.stderr.startswith("error: --only: expected some of machine, ")
    assert process.stderr.count("\n") == 1 and process.stdout == ""


@pytest.fixture
def session(tmp_path) -> Session:
    return Session(tmp_path, MINI, None, timeout=20)


def die(session: Session, name: str) -> Found:
    session.run(name, [sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"])
    return Found("")


def complain(session: Session, name: str) -> Found:
    session.run(name, [sys.executable, "-c", "import sys; print('look'); sys.exit('error: it is </script> so')"])
    return Found("")


def skip(session: Session, name: str) -> Found:
    raise Skipped("nothing to do it with")


def lose(session: Session, name: str) -> Found:
    raise StepFailed("half of it is gone", {"half": 0.5})


def err(session: Session, name: str) -> Found:
    return Found(str(1 / 0))


def succeed(session: Session, name: str) -> Found:
    return Found(session.run(name, [sys.executable, "-c", "print('fine')"]).strip())


def test_no_step_ends_the_others(session):
    steps = {"die": die, "complain": complain, "skip": skip, "lose": lose, "err": err, "succeed": succeed}
    for name, step in steps.items():
        session.do(name, step)
    found = {outcome.name: (outcome.status, outcome.detail) for outcome in session.outcomes}
    assert found == {
        "die": ("failed", "SIGSEGV"),
        "complain": ("failed", "exit code 1: error: it is </script> so"),
        "skip": ("skipped", "nothing to do it with"),
        "lose": ("failed", "half of it is gone"),
        "err": ("failed", "ZeroDivisionError: division by zero"),
        "succeed": ("passed", "fine"),
    }
    assert session.outcomes[3].data == {"half": 0.5}
    assert "in err" in session.outcomes[4].output and "look" in session.outcomes[1].output
    html = write_report(session).read_text()
    assert html.count("</script>") == 1, "what a program prints is escaped"


def test_a_command_that_hangs_is_ended_with_its_children(session, tmp_path):
    """A child that holds the output open would keep its reader waiting."""
    pid = tmp_path / "pid"
    child = (
        f"import subprocess as s; p = s.Popen(['sleep', '600']); open({str(pid)!r}, 'w').write(f'{{p.pid}}'); p.wait()"
    )
    session.timeout = 5

    def hang(session: Session, name: str) -> Found:
        session.run(name, [sys.executable, "-c", child])
        return Found("")

    outcome = session.do("hang", hang)
    assert (outcome.status, outcome.detail) == ("failed", "still running after 5 s: ended")
    assert outcome.seconds < 60
    status = Path("/proc", pid.read_text(), "status")
    assert not status.exists() or "zombie" in status.read_text()


def test_the_users_home_is_not_in_the_report(session):
    session.do("home", lambda session, name: Found(f"it lies in {Path.home()}/here"))
    write_report(session)
    text = (session.out / "report.json").read_text()
    assert "it lies in ~/here" in text and str(Path.home()) not in text
