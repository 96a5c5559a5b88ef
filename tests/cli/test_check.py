from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import statedict

Run = Callable[..., "subprocess.CompletedProcess[str]"]

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, head="fc3", classes=10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.add_module(head, nn.Linear(84, classes))

def renamed():
    return Net("classifier")

def bigger():
    return Net(classes=12)

def double():
    return Net().double()

def sgd(model):
    return torch.optim.SGD(model.parameters(), momentum=0.9)

def leaving():
    raise SystemExit(3)

def nothing():
    return {}

def broken():
    raise ValueError("no such data set")

class made:
    net = Net()
"""


@pytest.fixture
def check(run: Run, tmp_path: Path) -> Run:
    (tmp_path / "nets.py").write_text(NETS)
    return lambda *arguments: run("check", "checkpoint.pth", *arguments)


def test_a_file_that_fits_says_so_with_status_0_and_is_found_within_the_checkpoint(check: Run) -> None:
    done = check("--model", "nets:Net")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "checkpoint.pth at model_state: would restore 10 of 10 entries\n"
    assert check("--model", "nets:made.net", "--at", "model_state").stdout == done.stdout


def test_the_optimizer_is_checked_beside_the_model(check: Run) -> None:
    done = check("--model", "nets:Net", "--optimizer", "nets:sgd")
    assert done.returncode == 0, done.stderr
    assert "10 restored: optimizer_state.state.conv1.weight, " in done.stdout
    assert "its name is inferred from order and shapes" in done.stdout
    assert "optimizer_state.param_groups.0.lr (0.001 →" not in done.stdout
    wrong = check("--model", "nets:Net", "--optimizer", "torch.optim:Adam")
    assert wrong.returncode == 1
    assert "the state is another optimizer's" in wrong.stdout


def test_an_optimizer_is_found_in_a_list_and_missed_where_there_is_none(run: Run, check: Run, tmp_path: Path) -> None:
    state = statedict.load(tmp_path / "checkpoint.pth")
    statedict.save({"state_dict": state["model_state"]}, tmp_path / "bare.pth")
    lightning = {"state_dict": state["model_state"], "optimizer_states": [state["optimizer_state"]]}
    statedict.save(lightning, tmp_path / "lightning.pth")
    arguments = ("--model", "nets:Net", "--optimizer", "nets:sgd")
    done = run("check", "lightning.pth", *arguments)
    assert done.returncode == 0, done.stdout
    assert "lightning.pth at state_dict and optimizer_states.0: would restore 29 of 29" in done.stdout
    missed = run("check", "bare.pth", *arguments)
    assert missed.returncode == 1
    assert missed.stdout == "bare.pth: has no optimizer's state; if it has, name it by --optimizer-at\n"


def test_what_does_not_fit_is_status_1_with_the_remedy_and_the_remedy_works(check: Run) -> None:
    done = check("--model", "nets:renamed")
    assert done.returncode == 1
    assert "2 keys look renamed: fc3 → classifier; pass --rename fc3=classifier" in done.stdout
    assert "pass --allow-missing classifier.weight --allow-missing classifier.bias --allow-unexpected" in done.stdout
    assert check("--model", "nets:renamed", "--rename", "fc3=classifier").returncode == 0
    assert (
        check("--model", "nets:renamed", "--allow-missing", "classifier", "--allow-unexpected", "fc3").returncode == 0
    )


def test_shapes_take_a_policy_for_all_or_by_pattern(check: Run) -> None:
    assert check("--model", "nets:bigger").returncode == 1
    assert "2 reshaped: fc3.weight" in check("--model", "nets:bigger", "--shapes", "pad").stdout
    assert check("--model", "nets:bigger", "--shapes", "fc3=pad").returncode == 0
    assert check("--model", "nets:bigger", "--shapes", "other=pad").returncode == 1


def test_the_json_is_the_whole_report(check: Run) -> None:
    report = json.loads(check("--model", "nets:renamed", "--json").stdout)
    assert report["counts"] == {"restored": 8, "missing": 2, "unexpected": 2}
    assert report["written"] is False
    assert any(hint.endswith("pass --rename fc3=classifier") for hint in report["hints"])


def test_remedies_in_the_json_are_those_of_the_shell(check: Run) -> None:
    report = json.loads(check("--model", "nets:double", "--json").stdout)
    details = {problem["detail"] for problem in report["problems"]}
    assert any("pass --cast '*' to convert" in detail for detail in details)
    assert not any("cast=True" in text for text in (*details, *report["hints"]))


def test_the_json_says_that_an_optimizer_is_missed(run: Run, check: Run, tmp_path: Path) -> None:
    statedict.save(statedict.load(tmp_path / "checkpoint.pth")["model_state"], tmp_path / "bare.pth")
    missed = run("check", "bare.pth", "--model", "nets:Net", "--optimizer", "nets:sgd", "--json")
    assert missed.returncode == 1
    assert json.loads(missed.stdout)["error"] == "has no optimizer's state; if it has, name it by --optimizer-at"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nets"), "'nets': expected MODULE:NAME"),
        (("--model", "nothere:Net"), "nothere:Net: ModuleNotFoundError: No module named 'nothere'"),
        (("--model", "nets:Nothing"), "nets:Nothing: AttributeError"),
        (("--model", "nets:broken"), "nets:broken: ValueError: no such data set"),
        (("--model", "nets:Net", "--at", "nowhere"), "nowhere"),
        (("--model", "nets:leaving"), "nets:leaving: SystemExit: 3"),
        (("--model", "nets:nothing"), "nets:nothing: TypeError: makes a dict, not a torch.nn"),
        (("--model", "nets:Net", "--optimizer", "nets:bigger"), "nets:bigger: TypeError"),
        (("--model", "nets:Net", "--rename", "fc3"), "--rename 'fc3': expected OLD=NEW"),
        (("--model", "nets:Net", "--shapes", "cut"), "expected one of error, skip"),
        ((), "Missing option '--model'"),
    ],
)
def test_what_cannot_be_had_is_status_2_and_one_line(check: Run, arguments: tuple[str, ...], message: str) -> None:
    failed = check(*arguments)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_hints_about_shapes_prefixes_and_objects_are_shell(run: Run, check: Run, tmp_path: Path) -> None:
    assert "--shapes fc3.weight=skip --shapes fc3.bias=skip to leave" in check("--model", "nets:bigger").stdout
    hinted = check("--model", "nets:Net", "--at", "model_state", "--prefix", "x.").stdout
    assert "all 10 keys have the names of the target as they are; leave out --prefix to read them so" in hinted
    (tmp_path / "things.py").write_text("class Thing:\n    pass\n")
    program = (
        "import torch, things, nets; net = nets.Net(); o = nets.sgd(net); s = o.state_dict();"
        "s['param_groups'][0]['lr'] = things.Thing();"
        "torch.save({'model': net.state_dict(), 'opt': s}, 'odd.pth')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    done = run("check", "odd.pth", "--model", "nets:Net", "--optimizer", "nets:sgd")
    assert done.returncode == 1
    assert "pass --allow-unexpected opt.param_groups.0.lr to leave it out" in done.stdout
    assert "override" not in done.stdout


def test_the_model_is_found_by_the_names_that_rules_give_it(run: Run, check: Run, tmp_path: Path) -> None:
    state = statedict.load(tmp_path / "checkpoint.pth")
    numbered = {str(number): tensor for number, tensor in enumerate(state["model_state"].values())}
    statedict.save({"epoch": 1, "nets": {"other": {"x": 1}, "model": numbered}}, tmp_path / "odd.pth")
    rules = [text for n, name in enumerate(state["model_state"]) for text in ("--rename", f"{n}={name}")]
    done = run("check", "odd.pth", "--model", "nets:Net", *rules)
    assert done.stdout.startswith("odd.pth at nets.model: would restore 10 of 10 entries"), done.stdout


def test_a_path_that_is_not_in_the_file_names_the_file(check: Run) -> None:
    done = check("--model", "nets:Net", "--at", "nope")
    assert done.returncode == 2
    assert done.stderr.startswith("statedict: checkpoint.pth: no entry 'nope' among ")


def test_of_several_models_that_fit_alike_one_is_to_be_named(run: Run, check: Run, tmp_path: Path) -> None:
    model = statedict.load(tmp_path / "checkpoint.pth")["model_state"]
    statedict.save({"params": model, "params_ema": model.copy(), "x": {}}, tmp_path / "esr.pth")
    done = run("check", "esr.pth", "--model", "nets:Net")
    assert done.returncode == 2
    assert done.stderr.startswith("statedict: esr.pth: 2 models could be meant: params (10 tensors, 62,006 elements)")
    assert "name one by --at params" in done.stderr
    assert run("check", "esr.pth", "--model", "nets:Net", "--at", "params_ema").returncode == 0
    assert run("check", "esr.pth", "--model", "nets:bigger", "--at", "params").returncode == 1


def test_an_empty_dict_is_never_the_model(run: Run, check: Run, tmp_path: Path) -> None:
    state = statedict.load(tmp_path / "checkpoint.pth")["model_state"]
    model = {f"net.{name}": tensor for name, tensor in state.items()}
    del model["net.conv1.weight"]
    saved = {"loops": {"fit_loop": {"state_dict": {}}}, "state_dict": model | {"loss.weight": model["net.fc3.bias"]}}
    statedict.save(saved, tmp_path / "lightning.ckpt")
    assert run("check", "lightning.ckpt", "--model", "nets:renamed").stdout.startswith("lightning.ckpt at state_dict: ")


def test_a_whole_module_is_the_model(run: Run, check: Run, tmp_path: Path) -> None:
    program = "import torch, nets; torch.save({'net': nets.Net(), 'epoch': 1}, 'whole.pth')"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    done = run("check", "whole.pth", "--model", "nets:Net")
    assert done.stdout == "whole.pth at net: would restore 10 of 10 entries\n"
    assert run("check", "whole.pth", "--model", "nets:Net", "--at", "net").returncode == 0
