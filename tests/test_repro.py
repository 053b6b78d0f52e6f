"""Several stages at a time: order, failures, and DVC pipelines that are really run."""

import subprocess
import sys
import threading

import networkx
import pytest
import yaml

from sumlib.pipeline.repro import StageError, main, out_of_date, run_all

DVC = [sys.executable, "-m", "dvc"]
MEET = (
    "touch {me}.started && for i in $(seq 600); do "
    "test -e {other}.started && cat {me}.txt > {me}.out && exit 0; sleep 0.1; done; exit 1"
)


@pytest.fixture
def pipeline(tmp_path):
    """Two stages that end only if they run at the same time, and one that joins what they make."""
    stages = {
        me: {"cmd": MEET.format(me=me, other=other), "deps": [f"{me}.txt"], "outs": [f"{me}.out"]}
        for me, other in ("ab", "ba")
    }
    stages["join"] = {"cmd": "cat a.out b.out > join.out", "deps": ["a.out", "b.out"], "outs": ["join.out"]}
    stages["alone"] = {
        "cmd": "cp a.txt alone.out",
        "deps": ["a.txt"],
        "outs": ["alone.out"],
        "meta": {"cost": 3},
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    subprocess.run([*DVC, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def status(root) -> str:
    return subprocess.run([*DVC, "status"], cwd=root, check=True, capture_output=True, text=True).stdout


def test_stages_run_side_by_side_and_only_those_out_of_date(pipeline, capsys):
    assert dict(out_of_date(pipeline).nodes(data="cost")) == {"a": 1, "b": 1, "join": 1, "alone": 3}
    assert main(["--jobs", "2"], pipeline) == 0
    assert (pipeline / "join.out").read_text() == "ab" and "up to date" in status(pipeline)
    assert set(yaml.safe_load((pipeline / "dvc.lock").read_text())["stages"]) == {"a", "b", "join", "alone"}

    made = {path: path.stat().st_mtime_ns for path in pipeline.glob("*.out")}
    capsys.readouterr()
    assert (
        main(["--jobs", "2"], pipeline) == 0
        and capsys.readouterr().out == "Data and pipelines are up to date.\n"
    )
    (pipeline / "b.txt").write_text("c")
    assert set(out_of_date(pipeline)) == {"b", "join"}
    assert main(["--jobs", "2"], pipeline) == 0 and (pipeline / "join.out").read_text() == "ac"
    assert {path.name for path, at in made.items() if path.stat().st_mtime_ns == at} == {"a.out", "alone.out"}


def test_stages_at_a_time_share_the_cores(pipeline, monkeypatch):
    (pipeline / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"s": {"cmd": "echo $SUM_PROCESSES > s.out", "outs": ["s.out"]}}})
    )
    for cores, jobs, each in (("8", "2", "4"), ("8", "3", "2"), ("2", "4", "1")):
        (pipeline / "s.out").unlink(missing_ok=True)
        (pipeline / "dvc.lock").unlink(missing_ok=True)
        monkeypatch.setenv("SUM_PROCESSES", cores)
        assert main(["--jobs", jobs], pipeline) == 0
        assert (pipeline / "s.out").read_text().strip() == each


def test_a_failure_is_told_and_what_was_done_is_kept(pipeline, capsys):
    text = (pipeline / "dvc.yaml").read_text()
    (pipeline / "dvc.yaml").write_text(text.replace("cat a.out b.out >", "echo no ink left && false >"))
    assert main(["--jobs", "2"], pipeline) == 1
    message = capsys.readouterr().err
    assert "failed to reproduce 'join'" in message and "repeat it with `dvc repro join`" in message
    assert set(out_of_date(pipeline)) == {"join"}
    (pipeline / "dvc.yaml").write_text(text)
    assert main(["--jobs", "2"], pipeline) == 0 and (pipeline / "join.out").read_text() == "ab"


def test_one_job_is_dvc_repro_itself(pipeline, capfd):
    (pipeline / "b.started").touch()  # the other stage of each pair never has to be waited for
    (pipeline / "a.started").touch()
    assert (
        main([], pipeline) == 0
        and (pipeline / "join.out").read_text() == "ab"
        and "Running stage 'join'" in capfd.readouterr().out
    )
    assert main([], pipeline) == 0 and "up to date" in capfd.readouterr().out


def test_jobs_must_be_positive(capsys):
    with pytest.raises(SystemExit):
        main(["--jobs", "0"])
    assert "--jobs must be 1 or more, got 0" in capsys.readouterr().err


def test_long_chains_come_first_and_nothing_before_its_inputs():
    graph = networkx.DiGraph([("x", "y"), ("y", "z")])
    graph.add_nodes_from(["a", "b"])
    order, told = [], []
    run_all(graph, order.append, 1, lambda name, seconds: told.append(name))
    assert order == told == ["x", "y", "a", "b", "z"]
    graph.nodes["b"]["cost"] = 2.5
    order.clear()
    run_all(graph, order.append, 1, lambda name, seconds: None)
    assert order == ["x", "b", "y", "a", "z"]
    assert len(graph) == 5  # the caller's graph is left as it was


def test_after_a_failure_nothing_starts_but_what_runs_is_waited_for():
    failed, order, told = threading.Event(), [], []

    def run(name):
        order.append(name)
        if name == "bad":
            failed.set()
            raise StageError("bad")
        assert failed.wait(60)

    graph = networkx.DiGraph([("bad", "later"), ("good", "later")])
    graph.add_node("z")
    with pytest.raises(StageError, match="bad"):
        run_all(graph, run, 2, lambda name, seconds: told.append(name))
    assert sorted(order) == ["bad", "good"]
