"""benchmarks/precision.py asks every kind of question, and compares each bundle with the one in float32."""

import json
import subprocess
import sys

import heldout

from tests.paths import MINI, ROOT


def test_a_lower_precision_is_measured_against_float32(tmp_path):
    program = (sys.executable, ROOT / "benchmarks" / "precision.py", MINI)
    options = ("--precisions", "fp32,int4", "--count", "1", "--out", tmp_path / "result.json")
    process = subprocess.run([*program, *options], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert "--precisions fp32,int4 --count 1 --seed 0" in result["command"]
    float32, int4 = result["precisions"]
    for cost in (float32, int4):
        assert cost["asked"] == {family: len(kinds) for family, kinds in heldout.FAMILIES.items()}
        assert cost["accuracy"] == sum(cost["right"].values()) / len(heldout.KINDS) > 0.8
    assert float32["kl"] == 0 and float32["first_choice_agreed"] == 1
    assert int4["kl"] > 0 and int4["tiles_kl"] > 1e4 * float32["tiles_kl"]
    assert int4["mib"] < 0.5 * float32["mib"]
