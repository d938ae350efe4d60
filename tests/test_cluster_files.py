"""The files of docs/cluster: each against the rules of the program that reads it."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from support.jobs import ROOT
from support.slurm import in_slurm, write_script

CLUSTER = ROOT / "docs" / "cluster"
VERSION = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)

# KubeRay's fields as of release 1.5 (ray-operator/apis/ray/v1 of ray-project/kuberay). Its API
# server drops a field that it does not know without a word.
RAY_JOB = {
    *(
        "activeDeadlineSeconds",
        "backoffLimit",
        "clusterSelector",
        "entrypoint",
        "jobId",
        "metadata",
    ),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "managedBy", "suspend"),
    *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode"),
    *("submitterConfig", "submitterPodTemplate", "ttlSecondsAfterFinished"),
}
RAY_CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"),
    *("headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend"),
    "workerGroupSpecs",
}
GROUP = {"rayStartParams", "template", "resources", "labels"}
HEAD = GROUP | {"serviceType", "enableIngress", "headService"}
WORKERS = GROUP | {
    *("groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "replicas"),
    *("scaleStrategy", "suspend"),
}


def load(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return values


class TestRayJob:
    job = load("rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]

    def test_fields_are_known(self):
        assert (self.job["apiVersion"], self.job["kind"]) == ("ray.io/v1", "RayJob")
        assert self.job["spec"].keys() <= RAY_JOB
        assert self.cluster.keys() <= RAY_CLUSTER
        assert self.cluster["headGroupSpec"].keys() <= HEAD
        for group in self.cluster["workerGroupSpecs"]:
            assert group.keys() <= WORKERS
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

    def test_values_of_ray_start_are_text(self):
        groups = [self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"]]
        for group in groups:
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())

    def test_pods_are_pods(self):
        groups = [self.cluster["headGroupSpec"], *self.cluster["workerGroupSpecs"]]
        for group in groups:
            spec = group["template"]["spec"]
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
            kubernetes_validate.validate(pod, "1.31", strict=True)
            names = {volume["name"] for volume in spec["volumes"]}
            for container in spec["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= names
                assert container["resources"]["requests"] == container["resources"]["limits"]

    def test_versions_are_those_that_the_image_has(self):
        assert self.cluster["rayVersion"] == VERSION["ray"]

    def test_the_entrypoint_is_a_command_of_the_image(self, patch_flags_parse):
        python, script, *flags = shlex.split(self.job["spec"]["entrypoint"])
        assert (python, script) == ("python", "/opt/blt-titan/jobs/patch_corpus.py")
        patch_flags_parse(flags)


@pytest.fixture
def patch_flags_parse():
    import tyro

    from pipeline.patch.config import PatchCorpusConfig

    def parse(flags: list[str]) -> None:
        tyro.cli(PatchCorpusConfig, args=flags)

    return parse


def test_ray_up():
    config = load("ray-up.yaml")
    full = prepare_config(config)
    validate_config(full)
    # Ray's defaults would put another release of Ray into the image.
    commands = [
        *(full["initialization_commands"] + full["setup_commands"]),
        *(full["head_setup_commands"] + full["worker_setup_commands"]),
    ]
    assert not [command for command in commands if re.search(r"pip install.*\bray\b", command)]
    (image,) = {full["docker"]["image"]}
    assert (
        image == TestRayJob.cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    )


def instructions() -> list[list[str]]:
    """The Dockerfile's instructions: word, arguments."""
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [line.split(maxsplit=1) for line in lines]


def test_the_image_holds_what_is_installed():
    copied = [words[1].split()[:-1] for words in instructions() if words[0] == "COPY"]
    paths = [ROOT / name for names in copied for name in names]
    assert all(path.exists() for path in paths)
    # What pyproject.toml names, and all packages.
    names = {path.name for path in paths}
    assert names >= {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert names >= {"model", "pipeline", "train", "jobs"}
    (install,) = [line for word, line in instructions() if word == "RUN" and "pip" in line]
    make = (ROOT / "Makefile").read_text()
    # The same command as the Makefile's, which installs the environment of these tests.
    assert "--constraint constraints.txt --editable" in make
    assert "--constraint constraints.txt --editable" in install


class TestSlurm:
    script = CLUSTER / "slurm.sh"

    def run(self, tmp_path: Path, python: str, **more: str) -> tuple[int, str, list[str]]:
        env = in_slurm(tmp_path / "bin", **more)
        said = tmp_path / "bin" / "said"
        write_script(tmp_path / "bin" / "python", python)
        # A head that stays, a check that succeeds at once, workers that end.
        write_script(
            tmp_path / "bin" / "ray",
            f'echo "ray $@ token=${{#RAY_AUTH_TOKEN}}" >> {said}; '
            '[[ "$*" != *--head* ]] || exec sleep 60',
        )
        command = [str(self.script), "jobs/patch_corpus.py", "--input", "a b"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, said.read_text().splitlines()

    def test_the_job_runs_on_a_cluster_of_all_nodes(self, tmp_path):
        python = 'sleep 1; echo "$RAY_ADDRESS $RAY_AUTH_MODE $3"; exit 3'
        status, output, said = self.run(tmp_path, python, SLURM_JOB_NUM_NODES="4")
        port = 20000 + os.getpid() % 10000
        assert status == 3 and f"localhost:{port} token a b" in output
        assert f"--head --block --port={port}" in "\n".join(said)
        assert f"ray start --address=localhost:{port} --block token=64" in said

    def test_it_requeues_before_its_time_is_up(self, tmp_path):
        python = "sleep 0.5; kill -USR1 $PPID; exec sleep 30"
        status, output, said = self.run(tmp_path, python)
        assert status == 143 and "goes back into the queue" in output
        assert any(line.startswith("requeue ") for line in said)

    def test_a_ray_that_does_not_start_is_named(self, tmp_path):
        env = in_slurm(tmp_path / "bin")
        write_script(tmp_path / "bin" / "ray", "exit 1")
        done = subprocess.run([self.script], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "Ray did not start on localhost" in done.stderr
