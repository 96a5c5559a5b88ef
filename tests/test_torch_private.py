"""What PyTorch may drop or change: its private names are asked for in one place, and each can be missing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import statedict
import statedict.torch
from statedict import torch_private
from statedict.errors import is_failure_of_code
from statedict.pickles.machine import load
from statedict.pickles.objects import Global

ROOT = Path(str(statedict.__file__)).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "torch_private.py")

# loads, saves and restores where `look_up` finds none of the names in a list, as in a release that has dropped them;
# prints what comes out otherwise than it should
EVERYTHING = """if True:
    import io, sys, traceback, warnings
    import numpy, torch
    from statedict import torch_private
    import statedict, statedict.torch
    from statedict.pickles import torch_unpickler
    from torch.serialization import skip_data
    from torch._subclasses.fake_tensor import FakeTensorMode

    warnings.simplefilter("ignore")
    path, *lists = sys.argv[1:]
    look_up = torch_private.look_up

    base = torch.arange(6.0)
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.ones(2), (3,))
    tree = {
        "w": base, "view": base[2:], "same": base, "p": torch.nn.Parameter(torch.ones(2)), "numbers": [1, 2.5, "x"],
        "array": numpy.arange(3), "sparse": sparse, "bf16": torch.ones(2, dtype=torch.bfloat16), "empty": torch.ones(0),
        "storage": torch.arange(3).storage(),
    }
    plain = {"w": base, "b": torch.ones(2)}

    def same(one, other):
        if isinstance(one, torch.Tensor):
            return type(one) is type(other) and torch.equal(one.to_dense(), other.to_dense())
        if isinstance(one, numpy.ndarray):
            return numpy.array_equal(one, other)
        if isinstance(one, (torch.storage.TypedStorage, torch.UntypedStorage)):
            return list(one) == list(other)
        return one == other

    class Odd(torch.nn.Linear):
        def _load_from_state_dict(self, state, prefix, *rest):
            state[prefix + "weight"] = state.pop(prefix + "kernel").t()
            super()._load_from_state_dict(state, prefix, *rest)

    def everything(hidden):
        for zipped in (True, False):
            statedict.torch.save(tree, path, _use_new_zipfile_serialization=zipped)
            for options in ({}, {"mmap": True}, {"map_location": {"cpu": "cpu"}}, {"encoding": "latin1"}):
                if options.get("mmap") and not zipped:
                    continue
                got = statedict.torch.load(path, **options)
                for name in tree:
                    if not same(tree[name], got[name]):
                        print(hidden, "differs", zipped, options, name, got[name])
                if got["view"].data_ptr() != got["w"].data_ptr() + 8:
                    print(hidden, "shares no memory", zipped, options)
            peer = torch.load(path, weights_only=False)
            if not all(same(tree[name], peer[name]) for name in tree):
                print(hidden, "torch reads something else", zipped)

        statedict.torch.save(plain, path)
        if {t.device.type for t in statedict.torch.load(path, map_location="meta").values()} != {"meta"}:
            print(hidden, "not meta")
        with FakeTensorMode():
            if any(type(t) is torch.Tensor for t in statedict.torch.load(path).values()):
                print(hidden, "not fake")
        with skip_data():
            file = io.BytesIO()
            statedict.torch.save({"w": torch.full((64,), 3.0)}, file)
        if torch.full((64,), 3.0).numpy().tobytes() in file.getvalue():
            print(hidden, "data was not left out")

        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        calls = []
        other.register_load_state_dict_post_hook(lambda *_: calls.append(1))
        statedict.restore(other, statedict.capture(model))
        if not all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values())):
            print(hidden, "restored something else")
        if not calls:
            print(hidden, "a hook was not called")
        if not any(name.startswith("nn.Module") for name in hidden):
            odd = torch.nn.Sequential(Odd(2, 3))
            statedict.restore(odd, {"0.kernel": torch.ones(2, 3), "0.bias": torch.zeros(3)})
            if odd[0].weight.sum() != 6:
                print(hidden, "its own way of loading was not used")

    for hidden in lists:
        names = hidden.split()
        torch_private.look_up = lambda name, owner=None: None if name in names else look_up(name, owner)
        torch_private.unpickler_works.cache_clear()
        torch_unpickler._make_unpickler.cache_clear()
        try:
            everything(names)
        except Exception:
            print(hidden)
            traceback.print_exc(file=sys.stdout)
"""


def test_everything_works_with_and_without_each_private_name(tmp_path: Path) -> None:
    lists = ["", *torch_private.NAMES, " ".join(torch_private.NAMES)]
    command = [sys.executable, "-c", EVERYTHING, str(tmp_path / "x.pth"), *lists]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def private_names(path: Path) -> list[str]:
    """Private names below `torch` that a module writes down as code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    inside = re.compile(r"(torch|nn|Module)\b.*\._[a-z]|.*\._(load|save)_(from|to)_state_dict|.*\._load_state_dict_p")
    return [name for name in found if inside.match(name)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_asks_for_a_private_name(path: Path) -> None:
    assert not private_names(path)


def test_a_private_name_that_is_not_in_the_table_is_not_looked_up() -> None:
    with pytest.raises(LookupError, match="_C is not in the table"):
        torch_private.look_up("_C")


@pytest.mark.parametrize(
    ("fail", "of_code"),
    [
        (lambda: torch.a_name_that_is_gone, True),
        (lambda: torch.Tensor.a_name_that_is_gone, True),
        (lambda: numpy.zeros(1, no_such_argument=1), True),
        (lambda: a_name_that_is_gone, True),  # type: ignore[name-defined]  # noqa: F821
        (lambda: __import__("a_module_that_is_gone"), True),
        (lambda: (1).shape, False),  # type: ignore[attr-defined]
        (lambda: {}["key"], False),
        (lambda: len(3), False),  # type: ignore[arg-type]
    ],
)
def test_a_failure_of_code_is_told_from_damage(fail: object, of_code: bool) -> None:
    with pytest.raises((AttributeError, TypeError, LookupError, NameError, ImportError)) as caught:
        fail()  # type: ignore[operator]
    assert is_failure_of_code(caught.value) is of_code


def test_code_that_fails_while_it_reads_is_not_called_damage_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="a_name_that_is_gone"):
        load(b"\x80\2cm\nf\n)R.", {"m f": Global("m.f", lambda: torch.a_name_that_is_gone)})
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(2)}, path)
    code = """if True:
        import sys, torch, statedict.torch
        from statedict import torch_private
        assert torch_private.unpickler_works()
        del torch.storage.TypedStorage, torch._utils._rebuild_tensor
        try:
            statedict.torch.load(sys.argv[1])
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout.startswith("AttributeError module 'torch"), done.stdout + done.stderr
