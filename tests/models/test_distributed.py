"""One model trained by two processes: the steps of one, one recorded row, and an end when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from generated_photos import noise_study

from carspotter import cli
from carspotter.models import experiments, runs
from carspotter.models.workers import Worker, this_worker

# 30 training photos: the second batch is one photo, and one of two processes has nothing of it.
SMALL = {"conv_channels": (4, 8), "dense_units": 8, "batch_size": 29, "learning_rate": 1e-3, "dtype": "float64"}
NAMES = ["baseline_cnn", "augmentation"]


@pytest.fixture
def study(tmp_path):
    return noise_study(tmp_path)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a framework's processes, as in `start("torch", epochs, names)`; what still runs afterwards is ended."""
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CARSPOTTER_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    started = []

    def start(framework, epochs, names):
        for command, variables in COMMANDS[framework]():
            command = [*command, __file__, framework, str(epochs), *names]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=os.environ | variables, **pipes))
        return started

    yield start
    for process in started:
        process.kill()


def torch_commands():
    return [([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], {})]


def tensorflow_commands():
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    cluster = {"worker": [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]}
    for free in sockets:
        free.close()
    configs = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(2)]
    return [([sys.executable], {"TF_CONFIG": json.dumps(config)}) for config in configs]


COMMANDS = {"torch": torch_commands, "tensorflow": tensorflow_commands}


def small(name):
    return replace(experiments.SERIES[name], **SMALL)


def train_small(framework, epochs, names):
    """What each process runs: the verb, for small and exact experiments."""
    experiments.SERIES |= {name: small(name) for name in names}
    for name in names:
        arguments = ["train", name, "--framework", framework, "--study", "toy", "--image-size", "24"]
        if status := cli.main([*arguments, "--epochs", epochs]):
            sys.exit(status)


def weights_of(run):
    path = next(run.folder.glob("checkpoint.*"))
    if path.suffix == ".npz":
        return {name: array for name, array in np.load(path).items() if name != "epoch"}
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


@pytest.mark.parametrize("framework", COMMANDS)
def test_two_processes_take_the_steps_of_one_and_record_one_run(study, start, tmp_path, framework):
    pytest.importorskip(framework)
    started = start(framework, 2, NAMES)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    printed = "".join(output for output, _ in outputs).strip().splitlines()
    assert len(printed) == len(NAMES), "the first process speaks, the other does not"

    table = runs.read_runs(study)
    assert list(table["experiment"]) == NAMES and table["device"].str.endswith("2 processes").all()
    alone = replace(study, results=tmp_path / "alone")
    alone.folder.mkdir(parents=True)
    alone.splits.write_bytes(study.splits.read_bytes())
    for name, run_id in zip(NAMES, table["run"], strict=True):
        together = runs.load_run(study, run_id)
        one = runs.train_run(alone, small(name), framework, image_size=24, epochs=2, show_progress=False)
        assert one.id == run_id, "a run's name does not say how many processes made it"
        columns = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
        np.testing.assert_allclose(together.history[columns], one.history[columns], rtol=1e-6)
        found, expected = weights_of(together), weights_of(one)
        apart = sum(np.sum((found[key] - expected[key]) ** 2) for key in expected)
        assert apart < 1e-12 * sum(np.sum(array**2) for array in expected.values())


@pytest.mark.parametrize("framework", COMMANDS)
def test_batch_norm_keeps_its_averages_where_a_process_has_nothing_of_a_batch(study, start, framework):
    pytest.importorskip(framework)
    started = start(framework, 2, ["batch_norm"])
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    run = runs.load_run(study, runs.read_runs(study)["run"].item())
    assert np.isfinite(run.history["train_loss"]).all()
    assert all(np.isfinite(array).all() for array in weights_of(run).values())


def test_a_process_that_dies_ends_the_job_and_one_process_goes_on_where_it_was(study, start):
    pytest.importorskip("torch")
    (job,) = start("torch", 60, NAMES[:1])
    assert any(line.startswith("epoch 3/") for line in job.stderr)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ranks = {child for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()}
    os.kill(int(ranks.pop()), signal.SIGKILL)
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert runs.read_runs(study).empty

    run = runs.train_run(study, small(NAMES[0]), "torch", image_size=24, epochs=60, show_progress=False)
    assert list(run.history["epoch"]) == list(range(1, 61)) and len(runs.read_runs(study)) == 1


def test_a_process_knows_its_place(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "TF_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert this_worker("torch") == Worker(0, 1), "variables of another tool are not torchrun's"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert this_worker("torch") == Worker(1, 2)
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}}))
    assert this_worker("tensorflow") == Worker(2, 3)
    assert this_worker("keras") == Worker(0, 1)
    for broken in ("{", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 5}}'):
        monkeypatch.setenv("TF_CONFIG", broken)
        with pytest.raises(ValueError, match="TF_CONFIG is .*HOST:PORT"):
            this_worker("tensorflow")


if __name__ == "__main__":
    train_small(sys.argv[1], sys.argv[2], sys.argv[3:])
