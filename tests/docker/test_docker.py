"""The images' files: linted, pinned, and of one mind with the commands and with pyproject.toml. None is built here."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from ernie_export.runtime.cli.serve import command
from tests.paths import ROOT

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
IMAGES = ("cpu", "cuda", "tensorrt")
EXTRAS = {"cpu": ["serve"], "cuda": ["serve", "gpu"], "tensorrt": ["serve", "trt-rtx"]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def hadolint(text):
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "-"], input=text, capture_output=True, text=True)


def test_hadolint_finds_nothing():
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("changed", "rule"),
    [(DOCKERFILE.replace(":3.11.14-slim-bookworm", ""), "DL3006"), (DOCKERFILE + "RUN sudo id\n", "DL3004")],
    ids=["no version", "sudo"],
)
def test_hadolint_would_find_something(changed, rule):
    assert rule in hadolint(changed).stdout


@pytest.mark.parametrize("script", ["install.sh", "lock.sh", "check.sh"])
def test_scripts_parse(script):
    assert subprocess.run(["sh", "-n", DOCKER / script]).returncode == 0
    assert (DOCKER / script).stat().st_mode & 0o111, "not executable"


def pins(name):
    """Packages of a lock by name, each with at least one hash."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (DOCKER / f"{name}.lock").read_text().strip()):
        match = re.match(r"([a-z0-9.-]+)==([^ ;]+)", entry)
        assert match and "--hash=sha256:" in entry, entry
        found[match[1]] = Version(match[2])
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_the_locks_hold_what_the_project_asks_for(image):
    """Each requirement of the package and of the image's extras; onnxruntime-gpu stands for onnxruntime on CUDA."""
    found = pins(image)
    wanted = [
        *PROJECT["dependencies"],
        *(r for extra in EXTRAS[image] for r in PROJECT["optional-dependencies"][extra]),
    ]
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if (image, name) == ("cuda", "onnxruntime"):
            assert "onnxruntime" not in found and "onnxruntime-gpu" in found
        else:
            assert found[name] in requirement.specifier, f"{image}.lock: {name} {found[name]}, expected {requirement}"


def test_the_build_tools_are_pinned():
    assert "hatchling" in pins("build")


def answer():
    specification = importlib.util.spec_from_file_location("answer", DOCKER / "answer.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("image", IMAGES)
def test_the_entry_point_is_one_that_the_command_takes(image, tmp_path):
    """Its options exist; beyond loopback it has keys; and it runs as a user that is not root, with a health check."""
    words = answer().instruction(image, "ENTRYPOINT")
    assert words[0] == "ernie-serve" and words[0] in PROJECT["scripts"]
    with command.make_context(words[0], words[1:]) as context:
        options = context.params
    assert options["host"] == "0.0.0.0" and options["api_key_file"] == Path("/run/secrets/api_keys")
    assert options["device"] == ("cpu" if image == "cpu" else "cuda")
    assert "/health" in answer().instruction(image, "HEALTHCHECK")[-1]
    (server,) = re.findall(r"^FROM \S+ AS server\n(.*?)^FROM ", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert re.search(r"^USER 10001:10001$", server, re.MULTILINE)
    assert f"FROM server AS {image}\n" in DOCKERFILE


def test_compose_runs_each_image_read_only_on_loopback():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert set(compose["services"]) == set(IMAGES)
    for image, service in compose["services"].items():
        assert service["build"] == {"context": "..", "dockerfile": "docker/Dockerfile", "target": image}
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["tmpfs"] == ["/tmp"]
        assert service["ports"] == ["127.0.0.1:${PORT:-8000}:8000"] and service["secrets"] == ["api_keys"]
        assert service["volumes"][0]["read_only"] is True and service["volumes"][0]["target"] == "/bundle"
        assert ("deploy" in service) == (image != "cpu")
    assert set(compose["secrets"]) == {"api_keys"}
    assert json.dumps(compose).count("${KEYS:?") == 1


def copied_paths() -> set[str]:
    """Return what the Dockerfile copies of the repository."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    return {word for line in lines for word in line.split()}


def test_the_dockerfile_copies_what_the_wheel_carries():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in (*wheel["packages"], *wheel["force-include"]):
        assert path.split("/")[0] in copied_paths(), path


def test_the_context_holds_what_the_dockerfile_copies():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = copied_paths()
    assert ignored[0] == "*" and copied
    for source in copied:
        assert f"!{source.split('/')[0]}" in ignored and list(ROOT.glob(source)), source
