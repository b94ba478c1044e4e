"""A sweep on a real Ray cluster: a head and a second node on loopback, which is killed in the middle."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from carspotter.models import cluster as sweeping
from carspotter.models.cluster import pack_run, pack_study, unpack_run, unpack_study
from carspotter.models.experiments import BASELINE, quick
from carspotter.models.store import load_run, read_runs
from carspotter.models.sweep import Cell, run_sweep
from carspotter.photos.splitting import split_version

SMALL = replace(quick(replace(BASELINE, image_size=48)), epochs=30)
CELLS = [Cell(SMALL, "torch", seed) for seed in range(2)]
BROKEN = Cell(replace(SMALL, image_size=20), "torch")
TIMES = ["seconds", "processor_seconds", "photos_per_second", "finished_time"]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "memory": 4_000_000_000, "include_dashboard": False}


@pytest.fixture
def study(toy_study):
    return toy_study


@pytest.fixture(scope="module")
def quick_ray(tmp_path_factory):
    """Ray starts some eight processes, and gives each node 15 s to come up.

    Jupyter's extras make jsonschema, which Ray imports everywhere, build a grammar of addresses: 3 s of CPU each time.
    """
    folder = tmp_path_factory.mktemp("quick")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield pytest.importorskip("ray.cluster_utils")


@pytest.fixture(scope="module")
def ray_cluster(quick_ray):
    """A head on this machine, with a port for clients; its processes write below `folder`."""
    pytest.importorskip("torch")
    with (
        tempfile.TemporaryDirectory(prefix="cs-") as folder,  # sockets in it have paths of 107 bytes at most
        pytest.MonkeyPatch.context() as patch,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        patch.setenv("TMPDIR", folder)
        # As a cell on the cluster has: sums of two threads differ in a last digit.
        patch.setenv("OMP_NUM_THREADS", "1")
        port = free.getsockname()[1]
        free.close()
        cluster = quick_ray.Cluster(initialize_head=True, head_node_args=NODE | {"ray_client_server_port": port})
        try:
            yield SimpleNamespace(cluster=cluster, folder=Path(folder), client=f"ray://127.0.0.1:{port}")
        finally:
            cluster.shutdown()


def test_what_a_node_gets_is_what_training_reads_and_no_more(study, tmp_path):
    splits = pd.read_csv(study.splits)
    splits.loc[splits.index[:5], ["split", "label"]] = ["test", ""]
    splits.to_csv(study.splits, index=False)
    archive = pack_study(study)
    assert archive == pack_study(study), "the same study is the same archive"
    there = unpack_study(study.name, archive, tmp_path / "node")
    assert split_version(there) == split_version(study)
    assert {path.stem for path in there.raw.glob("*/??/*")} == set(splits["sha256"][5:]), "no test photo travels"
    assert not (there.data / "sealed").exists()
    (there.data / "mark").touch()
    assert unpack_study(study.name, archive, tmp_path / "node").data.joinpath("mark").exists(), "unpacked once"


def test_ray_that_is_missing_is_named(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"carspotter\[cluster\]"):
        run_sweep(study, CELLS, on="ray", show_progress=False)


def test_a_cluster_that_does_not_come_up_is_named(study, quick_ray, monkeypatch):
    def init(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(RuntimeError, match="no Ray cluster here: The current node timed out"):
        run_sweep(study, CELLS, on="ray", show_progress=False)
    assert read_runs(study).empty


@pytest.mark.slow
def test_a_node_that_is_killed_loses_its_running_cell_alone_and_the_table_is_complete(study, tmp_path, ray_cluster):
    cluster, stop, lost = ray_cluster.cluster, threading.Event(), []
    second = cluster.add_node(**NODE)
    place = f"carspotter-*-{second.node_id[:12]}/study/results/toy/runs"

    def kill_when_it_trains():
        while not stop.wait(0.005):
            for history in ray_cluster.folder.glob(f"{place}/*/history.csv"):
                if not (history.parent / "validation.csv").exists():
                    cluster.remove_node(second, allow_graceful=False)
                    lost.append(history.parent.name)
                    return

    killer = threading.Thread(target=kill_when_it_trains)
    killer.start()
    try:
        table = run_sweep(study, [*CELLS, BROKEN], on=cluster.address, show_progress=False)
    finally:
        stop.set()
        killer.join()

    assert len(lost) == 1, "the second node was killed while it trained a cell"
    assert not list(ray_cluster.folder.glob(f"{place}/{lost[0]}/validation.csv"))
    assert list(table["error"].astype(bool)) == [False] * len(CELLS) + [True]
    assert "20 px vanish" in table["error"].iloc[-1]
    assert lost[0] in set(table["run"]), "its cell was trained elsewhere"
    assert sorted(read_runs(study)["run"]) == sorted(table["run"][:-1]), "each run once, the failed one not"
    assert (table["seconds"] > 0).all()

    elsewhere = replace(study, results=tmp_path / "elsewhere")
    elsewhere.folder.mkdir(parents=True)
    unpack_run(elsewhere, pack_run(study, lost[0]))
    assert load_run(elsewhere, lost[0]).checkpoint.exists(), "what a cell starts from travels with it"

    again = run_sweep(study, CELLS, on="ray://127.0.0.1:1", show_progress=False)
    assert list(again["run"]) == list(table["run"][:-1]), "found, without a cluster"
    assert load_run(study, lost[0]).model is not None, "the weights came back too"
    here = replace(study, results=tmp_path / "here")
    shutil.copytree(study.folder, here.folder, ignore=shutil.ignore_patterns("runs", "runs.csv"))
    local = run_sweep(here, CELLS[:1], show_progress=False)
    same = [column for column in table if column != "seconds"]
    pd.testing.assert_frame_equal(local[same], table[same][:1])
    mine, theirs = (read_runs(one).sort_values("run").drop(columns=TIMES) for one in (here, study))
    theirs = theirs[theirs["run"].isin(mine["run"])]
    pd.testing.assert_frame_equal(mine.reset_index(drop=True), theirs.reset_index(drop=True))


@pytest.mark.parametrize(
    ("reason", "asked"), [("Initialization failure from server:\nZombieProcess", 5), ("nobody answers", 1)]
)
def test_a_server_that_hung_or_died_is_asked_for_again(study, monkeypatch, reason, asked):
    calls = []

    class Ray:
        shutdown = staticmethod(lambda: calls.append("shutdown"))

        @staticmethod
        def init(address, **options):
            calls.append(address)
            raise ConnectionError(reason)

    monkeypatch.setattr(sweeping, "_import_ray", lambda: Ray)
    with pytest.raises(RuntimeError, match=f"no Ray cluster at ray://there:1: {reason}"):
        run_sweep(study, CELLS, on="ray://there:1", show_progress=False)
    assert calls == ["ray://there:1", "shutdown"] * asked


@pytest.mark.slow
def test_ctrl_c_over_the_client_s_port_leaves_what_is_finished_and_the_sweep_goes_on(study, tmp_path, ray_cluster):
    pytest.importorskip("grpc", reason="the port ray:// needs it")
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(  # seeds that no cell of another test has left on the node
        'experiments = ["baseline_cnn"]\nframeworks = ["torch"]\nimage_sizes = [48]\nseeds = [10, 11]\n'
        "epochs = 30\nquick = true\n"
    )
    command = [sys.executable, "-m", "carspotter", "sweep", str(sweep), "--study", "toy", "--on", ray_cluster.client]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CARSPOTTER_HOME": str(tmp_path)}
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while read_runs(study).empty:
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.02)
        job.send_signal(signal.SIGINT)
        told = job.communicate(timeout=60)[1]
    finally:
        job.kill()
    assert job.returncode == 130 and "run the same command again" in told and "Traceback" not in told
    finished = set(read_runs(study)["run"])
    assert len(finished) == 1
    assert not list(study.runs.glob(".part-*")), "nothing half"

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    table = read_runs(study)
    assert len(table) == table["run"].nunique() == 2 and finished < set(table["run"])
