"""The jobs that make one model of several. Those of mergekit take the environment of `make peers-mergekit`."""

from __future__ import annotations

from benchmarks.changes import GONE, SYNC_OUT
from benchmarks.harness import HERE, Row, Side

_THREE = """
import os
above = os.path.dirname(path)
files = [os.path.join(above, f'{name}.safetensors') for name in ('large', 'twin', 'altered')]
"""
_LOOP = """
with ExitStack() as stack:
    opened = [stack.enter_context(safe_open(file, 'pt')) for file in files]
    state = {}
    for name in opened[0].keys():
        total = opened[0].get_tensor(name).float()
        for other in opened[1:]:
            total += other.get_tensor(name)
        state[name] = (total / len(opened)).bfloat16()
    save_file(state, out)
del state, total
"""
_OURS = """
from statedict.api.combine import average_files
"""
_PYTHON = HERE.parent / ".venv-mergekit" / "bin" / "python"
_MAKE = """
import os, sys, torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=16,
    num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False, dtype='bfloat16')
with torch.device('meta'):
    shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
config.architectures = ['LlamaForCausalLM']
torch.manual_seed(0)
base = {name: torch.randn(shape).mul_(0.02).bfloat16() for name, shape in shapes.items()}
for at, model in enumerate(('base', 'a', 'b')):
    folder = os.path.join(sys.argv[1] + '.part', model)
    config.save_pretrained(folder)
    state = base if not at else {k: v + torch.randn(v.shape).mul_(0.002).bfloat16() for k, v in base.items()}
    save_file(state, os.path.join(folder, 'model.safetensors'), metadata={'format': 'pt'})
os.rename(sys.argv[1] + '.part', sys.argv[1])
"""
_MEASURE = """
import contextlib, os, subprocess, sys, time

def anonymous(process):
    total = 0
    with contextlib.suppress(OSError):  # ended meanwhile
        total += sum(int(line.split()[1]) for line in open(f'/proc/{process}/status') if line.startswith('RssAnon'))
        for task in os.listdir(f'/proc/{process}/task'):
            total += sum(map(anonymous, open(f'/proc/{process}/task/{task}/children').read().split()))
    return total

def measure(*command):
    # a command's peak anonymous memory and that of the processes below it, in megabytes; mapped files do not count
    child, peak = subprocess.Popen(command, stdout=2), 0
    while child.poll() is None:
        peak = max(peak, anonymous(child.pid))
        time.sleep(0.01)
    if child.returncode:
        raise SystemExit(f'{command[0]} failed')
    return peak / 1024
"""
# models are made in another process: what is left here is small
_LLAMAS = (
    _MEASURE
    + f"""
above = os.path.join(os.path.dirname(path), 'llamas')
if not os.path.exists(above):
    subprocess.run([{str(_PYTHON)!r}, '-c', {_MAKE!r}, above], check=True, stdout=2)
base, a, b = (os.path.join(above, name) for name in ('base', 'a', 'b'))
recipe = out + '.yml'
open(recipe, 'w').write(RECIPE.format(base=base, a=a, b=b))
"""
)
_RECIPES = {
    "slerp": "merge_method: slerp\nbase_model: {base}\nmodels: [{{model: {base}}}, {{model: {a}}}]\n"
    "parameters: {{t: 0.3}}\n",
    "ties": "merge_method: ties\nbase_model: {base}\n"
    "models: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{weight: 0.5, density: 0.3}}\n",
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: {base}\n"
    "models: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{weight: 0.5}}\n",
}
_MERGEKIT = str(_PYTHON.with_name("mergekit-yaml"))
_PEER = f"megabytes = measure({_MERGEKIT!r}, recipe, out, '--lazy-unpickle', '--no-copy-tokenizer')"
_MERGE = "megabytes = measure(sys.executable, '-m', 'statedict', 'merge', recipe, '-o', out)"

_ADAPT = """
import json, os, shutil, sys
sys.modules['torchvision'] = None  # without CUDA, its wheel does not import
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
part = sys.argv[1] + '.part'
shutil.rmtree(part, ignore_errors=True)
config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=16,
    num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False, dtype='bfloat16')
with torch.device('meta'):
    shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
config.architectures = ['LlamaForCausalLM']
config.save_pretrained(os.path.join(part, 'base'))
os.mkdir(os.path.join(part, 'adapter'))
torch.manual_seed(0)
base = {name: torch.randn(shape).mul_(0.02).bfloat16() for name, shape in shapes.items()}
save_file(base, os.path.join(part, 'base', 'model.safetensors'), metadata={'format': 'pt'})
factors = {}
for name, shape in shapes.items():
    if '_proj' in name:
        one = 'base_model.model.' + name.removesuffix('weight') + 'lora_{}.weight'
        factors[one.format('A')] = torch.randn(16, shape[1]) * 0.02
        factors[one.format('B')] = torch.randn(shape[0], 16) * 0.02
save_file(factors, os.path.join(part, 'adapter', 'adapter_model.safetensors'))
modules = sorted({name.split('.')[-2] for name in shapes if '_proj' in name})
about = {'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'r': 16, 'lora_alpha': 32, 'target_modules': modules}
json.dump(about, open(os.path.join(part, 'adapter', 'adapter_config.json'), 'w'))
os.rename(part, sys.argv[1])
"""
_ADAPTED = (
    _MEASURE
    + f"""
above = os.path.join(os.path.dirname(path), 'adapted')
if not os.path.exists(above):
    subprocess.run([sys.executable, '-c', {_ADAPT!r}, above], check=True, stdout=2)
base, adapter = os.path.join(above, 'base'), os.path.join(above, 'adapter')
"""
)
_MERGE_AND_UNLOAD = """
import os, sys
sys.modules['torchvision'] = None
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype='bfloat16')
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
for name in os.listdir(out):
    fd = os.open(os.path.join(out, name), os.O_RDWR); os.fsync(fd); os.close(fd)
"""
_UNLOAD = f"megabytes = measure(sys.executable, '-c', {_MERGE_AND_UNLOAD!r}, base, adapter, out)"
_APPLY = "megabytes = measure(sys.executable, '-m', 'statedict', 'lora', 'apply', base, adapter, '-o', out + '/')"

COMBINING: list[Row] = [
    Row(
        "average three files of 2 GB in bfloat16",
        "altered.safetensors",
        Side(
            "a loop over safe_open, fsync",
            _LOOP + SYNC_OUT,
            "from contextlib import ExitStack\nimport torch\nfrom safetensors import safe_open\n"
            "from safetensors.torch import save_file" + _THREE,
            GONE,
        ),
        Side("average", "average_files(files, out, format='safetensors')", _OURS + _THREE, GONE),
        4,
        most=100,
    ),
    *(
        Row(
            f"merge models of 2.4 GB by {method}, as a command",
            "small-1000.safetensors",
            Side("mergekit-yaml", _PEER, f"RECIPE = {recipe!r}" + _LLAMAS, GONE),
            Side("statedict merge", _MERGE, f"RECIPE = {recipe!r}" + _LLAMAS, GONE),
            3,
            leaner=4,
        )
        for method, recipe in _RECIPES.items()
    ),
    Row(
        "lora: apply an adapter of rank 16 to a model of 2.4 GB, as a command",
        "small-1000.safetensors",
        Side("peft merge_and_unload, save, fsync", _UNLOAD, _ADAPTED, GONE),
        Side("statedict lora apply", _APPLY, _ADAPTED, GONE),
        3,
        leaner=4,
    ),
]
