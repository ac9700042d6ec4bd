"""The plan for a GPU that can be had for a short time: its arithmetic, its limits, its refusals."""

import inspect
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import pytest

from benchmarks.common import environment, notes
from benchmarks.common.paths import ROOT
from benchmarks.gpu import parts, quick, suites, wheels
from benchmarks.gpu.task import collect
from benchmarks.gpu.tasks import CACHES, SHORT, TASKS

BY_NAME = {task.name: task for task in (*TASKS, CACHES)}


@pytest.mark.parametrize("call", [parts.FIRST, parts.SECOND], ids=["first", "second"])
def test_the_limits_fit_into_the_call(call):
    assert call.seconds <= call.budget
    ends = list(call.ends().values())
    assert ends == sorted(ends)
    assert ends[-1] + call.after == call.seconds
    assert f"sum of limits {call.seconds} s" in parts.arithmetic(call)


def test_both_calls_fit_into_fifteen_minutes():
    assert parts.FIRST.budget == 540
    assert parts.SECOND.budget <= 120
    assert parts.SECOND.left == 200
    assert parts.WHOLE - parts.FIRST.budget - parts.SECOND.budget >= 200
    assert parts.WHOLE == 15 * 60
    assert "660 s of 900 s" in parts.arithmetic(parts.FIRST)


def test_the_most_valuable_parts_come_first():
    first = ["hardware", "smoke", "tests", "compile", "step", "attack", "kernels"]
    assert [part.name for part in parts.FIRST.parts] == first
    assert [part.seconds for part in parts.FIRST.parts] == [15, 25, 150, 150, 100, 80, 90]
    assert not {"sanitizer", "text-21000"} & {t for p in parts.FIRST.parts for t in p.tasks}
    dry = [name for part in parts.everything().parts for name in part.tasks]
    assert sorted(dry) == sorted(BY_NAME)  # no task runs for the first time on a GPU


def test_the_tasks_take_the_arguments_that_they_are_given():
    for name, task in BY_NAME.items():
        for given in (task.small, SHORT.get(name, {})):
            inspect.signature(task.run).bind(**given)
    for call in (parts.FIRST, parts.SECOND):
        for part in call.parts:
            for name in part.tasks:  # pytest is interrupted, and prints what failed, before the end
                seconds = SHORT.get(name, {}).get("seconds")
                assert seconds is None or seconds <= part.seconds - 20


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--budget", "300"], "--budget 300 is too short.*535 s.*--only hardware smoke"),
        (["--second", "150"], "--second 150.*200 s.*give the machine back"),
        (["--second", "250", "--budget", "60"], "--budget 60 is too short.*120 s"),
        (["--only", "sanitizer"], "--only.*'sanitizer'; there are hardware"),
    ],
)
def test_too_little_time_is_one_line(args, words, capsys):
    assert quick.main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(words, line)


@pytest.mark.parametrize(("out", "error"), [("False\n", ""), ("", "Traceback\nno module torch")])
def test_no_gpu_is_one_line(out, error, capsys, monkeypatch):
    done = SimpleNamespace(stdout=out, stderr=error)
    monkeypatch.setattr(quick.subprocess, "run", lambda *_, **__: done)
    assert quick.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no GPU" in line
    assert "H100 or H200" in line
    assert (error.splitlines() or ["is_available"])[-1] in line


def test_missing_wheels_are_one_line_that_says_what_to_do(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("torch\nfastprompt-lacks-this>=2\n")
    with pytest.raises(wheels.WheelsMissingError, match=r"lacks-this.*make gpu-wheels") as caught:
        wheels.needed(tmp_path, listed)
    assert "\n" not in str(caught.value)


def test_only_what_is_missing_is_unpacked(tmp_path):
    name, info = "only_here-1.0", "only_here-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("only_here.py", "value = 3\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: only-here\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    listed = tmp_path / "list.txt"
    listed.write_text("only-here>=1\npytest>=8\n")
    found = wheels.needed(tmp_path, listed)
    assert [path.rsplit("/", 1)[1] for path in found] == [f"{name}-py3-none-any.whl"]
    wheels.install(found, tmp_path / "site")
    assert (tmp_path / "site" / "only_here.py").exists()


def test_the_size_of_wheels_and_checkout(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.whl").write_bytes(bytes(3 << 20))
    assert wheels.main(tmp_path) == 0
    assert "wheels 3.0 MiB, checkout" in capsys.readouterr().out
    monkeypatch.setattr(wheels, "MOST", 4 << 20)
    assert wheels.main(tmp_path) == 1


SLEEP = "import subprocess; subprocess.run(['sleep', '60'])"


def test_a_part_is_stopped_at_its_limit_with_all_it_has_started(tmp_path, monkeypatch, capsys):
    runner = quick.Runner(tmp_path, {}, time.time())
    codes = iter([SLEEP, "pass", "raise SystemExit(1)"])

    def start(part, log):
        command = [sys.executable, "-c", next(codes)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)

    started = []
    monkeypatch.setattr(runner, "_start", lambda *a: started.append(start(*a)) or started[-1])
    two = [parts.Part(name, 1, ()) for name in ("long", "short")]
    assert not runner.run(two, 1.0)
    assert started[0].stdout.read() == b""  # returns once nothing holds the pipe
    assert not runner.run([parts.Part("broken", 1, ())], 60.0)
    found = {line["part"]: line["value"][0] for line in notes.read(tmp_path / quick.NOTES)}
    assert found == {"long": "stopped at its limit", "short": "done", "broken": "failed"}
    assert "stopped at its limit" in capsys.readouterr().out


def test_results_are_kept_the_moment_they_are_known(tmp_path, monkeypatch):
    path = tmp_path / "quick.jsonl"
    notes.note("nowhere", 1)
    monkeypatch.setenv(environment.NOTES, str(path))
    monkeypatch.setenv(environment.TASK, "step")
    notes.note("alone", {"median": 0.05})
    notes.note("path", path)  # whatever it is
    with path.open("a") as file:
        file.write('{"name": "cut o')
    found = notes.read(path)
    assert [(line["task"], line["name"]) for line in found] == [("step", "alone"), ("step", "path")]
    assert found[0]["value"] == {"median": 0.05}


def test_result_files_are_made_from_the_notes(tmp_path):
    record = {"result": {"median": 1.0}, "task": "step", "card": "A Card 80GB", "code": "x"}
    broken = {"error": "it broke", "task": "attack", "card": "A Card 80GB"}
    for value in (record, broken, {**record, "task": "compile"}):
        notes.append(tmp_path / "quick.jsonl", {"name": "record", "value": value})
    notes.append(tmp_path / "quick.jsonl", {"part": "step", "name": "end", "value": ["done", 3]})
    assert collect(tmp_path / "quick.jsonl", tmp_path) == ["step"]
    assert json.loads((tmp_path / "a-card-80gb" / "gpu-step.json").read_text()) == record
    assert not (tmp_path / "a-card-80gb" / "gpu-attack.json").exists()


def test_caches_are_packed_into_few_files(tmp_path, monkeypatch):
    cache, out = tmp_path / "cache", tmp_path / "out"
    out.mkdir()
    assert "nothing was compiled" in quick.pack(cache, out, 9)
    (cache / "triton").mkdir(parents=True)
    (cache / "triton" / "kernel").write_bytes(os.urandom(3000))
    monkeypatch.setattr(quick, "VOLUME", 2000)
    assert "cat caches.tar.gz.* | tar xz" in quick.pack(cache, out, 9)
    assert len(list(out.iterdir())) == 2
    assert quick.VOLUMES + len((quick.NOTES, quick.LOG)) <= parts.MOST_FILES
    monkeypatch.setattr(quick, "VOLUME", 500)
    assert "left out" in quick.pack(cache, out, 9)
    assert len(list(out.iterdir())) == 2


def test_the_plan_needs_no_package():
    code = "import benchmarks.gpu.quick as q; print(q.plan(None, None, None).seconds)"
    command = [sys.executable, "-S", "-c", code]  # without site-packages
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True)
    assert done.stdout.strip() == str(parts.FIRST.seconds), done.stderr


def test_only_files_with_gpu_tests_are_collected():
    found = suites.marked()
    assert "tests/methods/test_methods_gpu.py" in found
    assert not [name for name in found if name.startswith(suites.LAUNCH)]
    assert len(found) < 15
    rest = suites.marked((*suites.STEPS, suites.LADDER))
    assert set(found) - set(rest) >= set(suites.STEPS)
    assert all((ROOT / name).exists() for name in (*suites.STEPS, suites.LAUNCH, suites.LADDER))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_dry_run(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu/quick.sh"), "--dry-run", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = notes.read(tmp_path / "out" / quick.NOTES)
    records = [line["value"] for line in lines if line["name"] == "record"]
    assert {record["task"] for record in records} == set(BY_NAME)
    assert not [record["error"] for record in records if "error" in record]
    assert len(list((tmp_path / "out").iterdir())) <= parts.MOST_FILES
