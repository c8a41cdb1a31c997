"""`lookaround train` on several processes: the files of one process, stopped together, gone on with by another number of them."""

from pathlib import Path

from reference.processes import fork_on_each


def test_train_on_any_number_of_processes(tmp_path):
    output = fork_on_each(Path(__file__).with_name("train_on_each.py"), "main", 4, str(tmp_path), timeout=500)
    assert output.count("holds this experiment, unfinished") == 1
    assert output.count("4 rows of the mesh") == 1
    assert output.count("interrupted: ") == 1
    said = "3 processes; the branches of lookaround:k=3,inner_state=interpolate,alpha=0.8, lookaround+ema:k=3,overlap=2, diloco+swa:"
    assert output.count(said) == 2
    assert output.count("; sgd: computed by each process alike") == 3
    for run in ("sgd", "lookaround,k=3,inner_state=interpolate,alpha=0.8"):
        lines = [
            (tmp_path / out / run / "seed-0" / "metrics.jsonl").read_text().splitlines()
            for out in ("one", "three", "stopped")
        ]
        assert len(lines[0]) == len(lines[1]) == len(lines[2])
