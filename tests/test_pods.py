"""The recipes of docs/pods.md, run by a shell with stand-ins for gcloud, srun and their like: nothing is rented."""

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import sample
from ddpm_jax import records
from ddpm_jax.cli import flags, plan
from ddpm_jax.config import ADM, VDM, UNet

TEXT = (ROOT / "docs" / "pods.md").read_text()
BLOCKS = [
    (heading, block)
    for heading, body in re.findall(r"^## (.*)\n((?:(?!^## ).*\n?)*)", TEXT, re.MULTILINE)
    for block in re.findall(r"^```bash\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
]
RECIPES = {heading: "".join(block for other, block in BLOCKS if other == heading) for heading, _ in BLOCKS}
OTHERS = ("gcloud", "kubectl", "mpirun", "pip", "python", "scontrol", "sleep", "srun", "ssh", "tail")
TOOLS = ("bash", "cat", "grep", "mkdir", "mktemp", "tee")
STAND_IN = """#!/bin/bash
call=$(mktemp "$CALLS/XXXXXXXX")
printf '%s\\0' "${0##*/}" "$@" > "$call.call"
case "$*" in *describe*) echo ACTIVE ;; *"-f -"*) cat > "$call.stdin" ;; *train.py*) echo "$TRAIN_SAYS" ;; esac
"""


def play(recipe: str, folder: Path, says: str = "") -> tuple[list[list[str]], list[str]]:
    """Run a recipe: the words of every call of another's program, and what any of them was given to read.

    Its bucket becomes a folder: what reaches buckets need not be installed here.
    """
    programs, calls = folder / "programs", folder / "calls"
    programs.mkdir()
    calls.mkdir()
    for name in OTHERS:
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    env = {"PATH": str(programs), "CALLS": str(calls), "TRAIN_SAYS": says, "SLURM_JOB_ID": "7", "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", recipe.replace("gs://", "/bucket/")],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = [file.read_text().split("\0")[:-1] for file in calls.glob("*.call")]
    return words, [file.read_text() for file in calls.glob("*.stdin")]


def scripts(calls: list[list[str]], read: list[str]) -> list[str]:
    """Every line that a shell elsewhere would get: over ssh, by mpirun or in a pod."""
    sent = [word.removeprefix("--command=") for words in calls for word in words if " " in word]
    return sent + [yaml.safe_load(text)["spec"]["template"]["spec"]["containers"][0]["command"][-1] for text in read]


def commands(calls: list[list[str]], read: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(train.py or sample.py, its arguments), wherever it is called; a variable of the far shell is 1."""
    said = [shlex.join(words) for words in calls if {"train.py", "sample.py"} & set(words)]
    for script in said + scripts(calls, read):
        script = re.sub(r"\$\w+", "1", script.replace("\\\n", " ").replace("\n", " ; "))
        lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for i, word in enumerate(words):
            if word in ("train.py", "sample.py"):
                ends = [j for j in range(i, len(words)) if set(words[j]) <= set("();<>|&")]
                yield word, words[i + 1 : min(ends, default=len(words))]


@pytest.mark.parametrize(("heading", "block"), BLOCKS)
def test_a_recipe_is_at_most_twenty_lines(heading, block):
    lines = block.splitlines()
    assert len(lines) <= 20, heading
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("heading", [heading for heading in RECIPES if heading[0].isdigit()])
def test_a_recipe_calls_the_programs_with_flags_that_they_have(heading, tmp_path):
    calls, read = play(RECIPES[heading], tmp_path)
    for script in scripts(calls, read):
        subprocess.run(["bash", "-n", "-c", script], check=True, capture_output=True)
    found = list(commands(calls, read))
    assert any(program == "train.py" for program, _ in found)
    for program, words in found:
        if program == "sample.py":
            flags.parse(sample.Flags, words[1:], prog=program, default=sample.Flags())
            continue
        asked = flags.training(words)
        three = [bool(asked.launch.coordinator), asked.launch.num_processes > 0, asked.launch.process_id >= 0]
        alone = heading.startswith("1.")
        assert three == [not (asked.launch.auto or alone)] * 3
        if "--workdir" in words:
            assert str(asked.workdir) == words[words.index("--workdir") + 1]


def test_the_images_are_prepared_by_commands_that_a_shell_can_read(tmp_path):
    calls, _ = play(RECIPES["Before the first recipe"], tmp_path)
    (code,) = [words[2] for words in calls if words[0] == "python"]
    compile(code, "prepare", "exec")


@pytest.mark.parametrize("number", ["1", "2"])
def test_what_a_recipe_rents_it_gives_back(number, tmp_path):
    (recipe,) = [text for heading, text in RECIPES.items() if heading.startswith(number)]
    calls, _ = play(recipe, tmp_path)
    rented, returned = ([words[3:6] for words in calls if action in words] for action in ("create", "delete"))
    assert len(rented) == 1
    assert [words[0] for words in rented] == [words[0] for words in returned]
    assert rented[0][2] == returned[0][2]


@pytest.mark.parametrize(
    ("says", "again"), [("runs/x was asked to stop, and is saved at step 3", True), ("runs/x is at step 9", False)]
)
def test_a_slurm_job_goes_back_to_the_queue_only_if_it_was_asked_to_stop(says, again, tmp_path):
    calls, _ = play(RECIPES["4. SLURM and GPUs"], tmp_path, says)
    assert (["scontrol", "requeue", "7"] in calls) == again


def test_the_slurm_job_asks_for_a_task_for_every_gpu_and_a_signal_ahead_of_the_end():
    lines = re.findall(r"^#SBATCH (.*)", RECIPES["4. SLURM and GPUs"], re.MULTILINE)
    asked = dict(word.removeprefix("--").partition("=")[::2] for line in lines for word in line.split())
    assert asked["gres"] == f"gpu:{asked['ntasks-per-node']}"
    assert re.fullmatch(r"TERM@\d+", asked["signal"])
    assert {"requeue", "time", "nodes"} <= asked.keys()


def test_the_pods_of_the_job_find_the_first_of_them(tmp_path):
    calls, (text,) = play(RECIPES["5. Kubernetes and GPUs"], tmp_path)
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    ((_, words),) = commands(calls, [text])
    launch = flags.training(words).launch
    assert launch.coordinator.startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}:")
    assert launch.num_processes == spec["completions"] == spec["parallelism"]
    assert "--launch.process-id $JOB_COMPLETION_INDEX" in pod["containers"][0]["command"][-1]
    # "kubectl create service clusterip NAME" selects pods labelled app: NAME
    assert ["kubectl", "create", "service", "clusterip", pod["subdomain"], "--clusterip=None"] in calls
    assert spec["template"]["metadata"]["labels"] == {"app": pod["subdomain"]}
    assert [v["name"] for v in pod["volumes"]] == [m["name"] for m in pod["containers"][0]["volumeMounts"]]


def test_flags_that_the_text_names_exist():
    default = flags.Training(workdir=Path(), config=flags.load_preset("cifar10"))
    known = {f"--{name}" for name in names(records.to_dict(default.config)) | {"workdir"}}
    known |= {f"--launch.{name}" for name in names(records.to_dict(default.launch))}
    known |= {f"--net.{name}" for net in (UNet(), ADM(), VDM()) for name in names(records.to_dict(net))}
    said = set(re.findall(r"--(?:data|devices|launch|net|optimizer|run|diffusion|sampling)\.[\w.-]+", TEXT))
    assert len(said) > 10
    assert not {flag.rstrip(".") for flag in said} - known


def names(tree: dict, prefix: str = "") -> set[str]:
    """Every field of plain data as a flag spells it."""
    inner = (
        names(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key} for key, value in tree.items()
    )
    return {name.replace("_", "-") for group in inner for name in group}


def test_the_plan_that_the_text_asks_for_can_be_asked_for():
    said = re.findall(r"`python -m ddpm_jax\.cli\.plan ([^`]*)`", TEXT)
    assert said
    for line in said:
        name, *words = line.split()
        default = plan.Flags(config=flags.load_preset(name))
        assert flags.parse(plan.Flags, words, prog="plan", default=default).target


def test_what_the_recipes_install_is_there_to_install():
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    said = {extra for group in re.findall(r"(?:\.|ddpm_jax)\[([a-z,]+)\]", TEXT) for extra in group.split(",")}
    assert said
    assert said <= offered.keys()


def test_links_within_the_page_lead_somewhere():
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", TEXT, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= headings
