"""bench.py gpu where there is no GPU: what it would run, how a part ends, and the dry run."""

import json

import pytest

from minibert.bench.gpu import GpuBench, Part, learned, parts_of, run_part
from minibert.bench.inference import InferenceBench
from minibert.bench.train import TrainBench
from minibert.common.options import parse
from minibert.training.options import Options
from scripts import run_bench


@pytest.mark.parametrize("dry", [False, True])
def test_the_commands_are_accepted_and_take_ten_minutes(tmp_path, dry):
    parts = parts_of(GpuBench(dry_run=dry), tmp_path)
    kinds = {"bench.py train": TrainBench, "bench.py inference": InferenceBench, "train.py": Options}
    for part in parts[1:]:
        name = next(name for name in kinds if " ".join(part.words).startswith(name))
        options = parse(kinds[name], part.words[len(name.split()):], "", "")
        assert options.device == ("cpu" if dry else "cuda")
    sizes = [int(part.words[part.words.index("--micro-tokens") + 1]) for part in parts if "--no-peer" in part.words]
    assert dry or sizes == [4096, 8192, 16384, 32768, 65536]


def test_how_a_part_ends(tmp_path, capfd):
    def end(code, seconds=20.0, stopped=False):
        return run_part(Part("x", ["-c", code], seconds, stopped))

    state, result, _ = end("print('a table'); print('{\"a\": 1}')")
    assert (state, result) == ("done", {"a": 1}) and "a table" in capfd.readouterr().out
    assert end("raise SystemExit(3)")[:2] == ("failed, exit code 3", None)
    waiting = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('ended')"
    assert end(waiting, 2)[0] == "stopped after 2 s" and "ended" in capfd.readouterr().out
    assert end(waiting, 2, stopped=True)[0] == "done"


def test_what_was_learned(tmp_path):
    assert learned(tmp_path) == {}
    (tmp_path / "run").mkdir()
    rows = [{"step": i, "tokens": 10 * i, "loss": 5.0 - i, "tokens_per_second": i} for i in (1, 2, 3)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert learned(tmp_path) == {"steps": 3, "tokens": 30, "first_loss": 4.0, "last_loss": 2.0,
                                 "tokens_per_second": 2}


def test_without_a_gpu_it_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, said = run_bench("gpu", monkeypatch, capsys)
    assert code == 2 and "--dry-run" in said
    assert run_bench("gpu", monkeypatch, capsys, "--minutes", "0")[0] == 2


@pytest.mark.slow
def test_the_dry_run(monkeypatch, capsys):
    code, said, _ = run_bench("gpu", monkeypatch, capsys, "--dry-run", "--minutes", "0.1")
    result = json.loads(said.splitlines()[-1])
    assert code == 0 and set(result["states"].values()) == {"done"}
    assert result["results"]["distillation"]["steps"] > 0
