"""The demo: right answers are reported as right, wrong ones by the exit code."""

import json
import subprocess
import sys

from click.testing import CliRunner

from ernie_export import demo


def test_the_demo_exports_the_small_checkpoint_and_all_answers_are_right(tmp_path):
    done = subprocess.run([sys.executable, "-m", "ernie_export.demo"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    questions = json.loads(demo.EXAMPLES.joinpath("questions.json").read_text())
    assert done.stdout.count(" right │") == len(questions)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_answer_is_shown_and_the_exit_code_is_1(tmp_path):
    question = {"messages": [{"role": "user", "content": [{"type": "text", "text": "How many sides has a triangle?"}]}]}
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([question | {"answer": "four"}]))
    result = CliRunner().invoke(demo.command, ["--questions", str(questions)])
    assert result.exit_code == 1
    assert "wrong" in result.output and "four" in result.output
