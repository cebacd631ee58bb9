"""The Triton kernels: under Triton's interpreter against the naive reference, and through its compiler.

The interpreter is chosen when a kernel is defined, so each way runs in a process of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))
try:
    from test_scene_splatting import SCENES, assert_agrees
finally:
    sys.path.pop(0)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _run(task: str, folder: Path, **environment: str) -> dict[str, str]:
    """Return what this file, started as a program, finds wrong per name ('' is nothing)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder), **environment}
    done = subprocess.run(
        [sys.executable, __file__, task], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return _run("agree", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("name", SCENES)
def test_interpreted_kernels_agree_with_the_reference(interpreted, name):
    assert interpreted[name] == ""


@needs_triton
def test_the_kernels_compile_for_a_gpu(tmp_path):
    environment = {"TRITON_INTERPRET": "0"}
    assert _run("compile", tmp_path, **environment) == {"_forward": "", "_backward": ""}


@pytest.mark.gpu
@needs_triton
@needs_cuda
@pytest.mark.parametrize("name", SCENES)
def test_kernels_agree_with_the_reference_on_a_gpu(name):
    assert_agrees("triton", name, torch.float32, device="cuda")


def _agree() -> dict[str, str]:
    torch.set_num_threads(1)
    found = {}
    for name in SCENES:
        try:
            assert_agrees("triton", name, torch.float32)
            found[name] = ""
        except AssertionError as error:
            found[name] = str(error) or "failed"
    return found


def _compile() -> dict[str, str]:
    """Compile both kernels to machine code of compute capability 8.0; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sv4d2_core.scene.gaussians import splat_triton

    constants = {k: v for k, v in splat_triton.CONSTANTS.items() if k != "num_warps"}
    found = {}
    for kernel in (splat_triton._forward, splat_triton._backward):
        types = dict.fromkeys(kernel.arg_names, "*fp32")
        types |= {"list_splats": "*i64", "starts": "*i64", "size": "i32", "across": "i32"}
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        options = {"num_warps": splat_triton.CONSTANTS["num_warps"]}
        built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        found[kernel.__name__] = "" if built.asm["cubin"] else "no machine code"
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"agree": _agree, "compile": _compile}[sys.argv[1]]()))
