"""The launch scripts, with fake cloud commands on the PATH."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from tests.helpers.running import ROOT, TINY, environment

RECORD = """import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("STATUS", 0)))
"""
# Two tasks on this machine, as SLURM would start them; its status is the largest of theirs.
SRUN = """import os, subprocess, sys
while sys.argv[1].startswith("-"):
    del sys.argv[1]
tasks = [subprocess.Popen(sys.argv[1:], env={**os.environ, "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_STEP_NODELIST": "127.0.0.1"})
    for i in range(2)]
sys.exit(max(task.wait() for task in tasks))
"""
AWKWARD = ["--config.sample.prompts=('a cat\\'s \"hat\"', '$HOME')", "--workdir=/data/my run"]
TRAIN = ["python3", "-m", "experiments.train", "--distributed=auto"]


@pytest.fixture
def launch(tmp_path):
    """Runs a script with commands of given names and programs: (status, its stderr, calls)."""

    def run(script, *args, commands, **variables):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, program in commands.items():
            path = folder / name
            path.write_text(f"#!{sys.executable}\n{program}")
            path.chmod(0o755)
        record = tmp_path / "record"
        record.unlink(missing_ok=True)
        env = environment() | variables | {"RECORD": str(record)}
        env["PATH"] = f"{folder}{os.pathsep}{env['PATH']}"
        command = [str(ROOT / "tools" / "launch" / script), *args]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        lines = record.read_text().splitlines() if record.exists() else []
        return done.returncode, done.stderr, [json.loads(line) for line in lines]

    return run


def on_a_worker(text, home):
    """The command line that a worker's shell starts for this command."""
    record = home / "worker"
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"RECORD": str(record), "HOME": str(home), "PATH": path}
    subprocess.run(["bash", "-c", text], env=env, cwd=home, check=True)
    return json.loads(record.read_text())


def test_tpu_vm(launch, tmp_path):
    (tmp_path / "uvit_jax").mkdir()
    commands = {"gcloud": RECORD, "python3": RECORD}
    where = dict(TPU="pod", ZONE="us-east5-b")
    status, err, calls = launch("tpu_vm.sh", "--config=x.py", *AWKWARD, commands=commands, **where)
    assert status == 0, err
    ((*call, command),) = calls
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert call[6:] == ["--zone=us-east5-b", "--worker=all"]
    started = on_a_worker(command.removeprefix("--command="), tmp_path)
    assert started == [*TRAIN, "--config=x.py", *AWKWARD]
    status, err, calls = launch("tpu_vm.sh", commands=commands, TPU="pod")
    assert status != 0 and "set ZONE" in err and not calls


def test_gke(launch, tmp_path):
    where = dict(CLUSTER="c", TPU_TYPE="v5litepod-16", SLICES="2", IMAGE="r/i")
    commands = {"xpk": RECORD, "python3": RECORD}
    status, err, calls = launch("gke.sh", "my-run", *AWKWARD, commands=commands, **where)
    assert status == 0, err
    ((*call, command),) = calls
    assert call[:3] == ["xpk", "workload", "create"]
    assert set(call[3:]) == {
        *("--cluster=c", "--workload=my-run", "--tpu-type=v5litepod-16", "--num-slices=2"),
        *("--docker-image=r/i", "--max-restarts=10"),
    }
    assert on_a_worker(command.removeprefix("--command="), tmp_path) == [*TRAIN, *AWKWARD]
    status, err, calls = launch("gke.sh", commands=commands, **where)
    assert status != 0 and "give the run a name" in err and not calls


def test_slurm_requeues_a_failed_run_but_not_a_wrong_command(launch):
    # The fake scontrol fails too, which changes nothing.
    commands = {"srun": RECORD, "scontrol": RECORD}
    for status, again in ((0, False), (2, False), (143, False), (1, True), (134, True)):
        job = dict(SLURM_JOB_ID="7", STATUS=str(status))
        returned, err, calls = launch("slurm.sh", *AWKWARD, commands=commands, **job)
        assert returned == status, err
        assert calls[0] == ["srun", "--kill-on-bad-exit=1", *TRAIN, *AWKWARD]
        assert calls[1:] == [["scontrol", "requeue", "7"]] * again
    *_, calls = launch("slurm.sh", commands=commands, **job, SLURM_RESTART_COUNT="10")
    assert len(calls) == 1


def test_slurm_tasks_become_one_run(launch, tmp_path):
    """Each task sees the devices of both: fsdp=3 does not fit two."""
    python = f"import os, sys\nos.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])"
    args = (f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.mesh.fsdp=3")
    commands = {"srun": SRUN, "scontrol": RECORD, "python3": python}
    status, err, calls = launch(
        "slurm.sh", *args, commands=commands, SLURM_JOB_ID=str(job_with_free_port())
    )
    assert status == 2 and not calls, err
    assert len(re.findall(r"error: config\.mesh.*fsdp=3.*2 devices", err)) == 2, err


def job_with_free_port():
    """A SLURM job id from which JAX derives a coordinator port that is free."""
    for job in range(os.getpid() % 4096, 10000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", job % 2**12 + 2**16 - 2**12)):
                return job
    raise AssertionError("no port is free")
