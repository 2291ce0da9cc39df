"""The package on its own: its README runs, it needs nothing optional, and its names do not get in the way."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.interpreter import python_for_shells
from vvae import instantiate_from_config, load_config
from vvae.src.errors import VVAEError
from vvae.src.video_io import write_video

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "vvae"
SMALLER = (("config_16z.yaml", "config_tiny.yaml"), ("256, 256", "32, 32"), ("64, 64", "32, 32"))


@pytest.fixture(scope="module")
def python():
    with python_for_shells() as program:
        yield program


def run_python(python: Path | str, code: str, folder: Path, *arguments: str) -> str:
    """Output of an interpreter that starts in `folder` and knows nothing of the project."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [python, "-c", code, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_code_blocks_of_the_readme_run_in_a_copied_folder(tmp_path, python):
    """Every Python block works as written, one after the other, with a smaller configuration and smaller clips."""
    shutil.copytree(PACKAGE, tmp_path / "vvae", ignore=shutil.ignore_patterns("__pycache__"))
    frames = np.random.default_rng(0).integers(0, 256, (18, 40, 36, 3), dtype=np.uint8)
    write_video(tmp_path / "input.mp4", frames, "30000/1001")
    blocks = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 8
    kept = [block for block in blocks if "import decord" not in block or _is_installed("decord")]
    code = "\n".join(kept)
    for large, small in SMALLER:
        assert large in code
        code = code.replace(large, small)
    checks = """
assert drawn.shape == (2, 3, 32, 32) and latent.shape == (2, 16, 1, 4, 4)
own = [m.__file__ for name, m in sys.modules.items() if name.startswith(("src.", "utils."))]
assert len(own) > 20 and all(os.path.realpath(path).startswith(os.path.realpath("vvae")) for path in own), own
assert not {"training", "losses", "videodata", "evaluation"} & set(sys.modules)
print("all blocks ran")
"""
    code = f"import os\n{code}"
    assert "all blocks ran" in run_python(python, code + checks, tmp_path)
    assert np.load(tmp_path / "latent.npy").shape == (5, 16, 5, 5)


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.mark.slow
def test_the_example_runs_from_any_folder(tmp_path, python):
    """example.py finds its configuration wherever it is started, and prints shapes and compression."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = (str(PACKAGE / "example.py"), "--config", "configs/config_tiny.yaml", "--size", "32", "--device", "cpu")
    output = run_python(python, code, tmp_path, *arguments)
    assert "latent          (1, 16, 2, 4, 4)" in output and "48 values to 1" in output


@pytest.mark.slow
def test_import_and_build_need_nothing_optional_and_no_network(tmp_path):
    """Building the published model works without Lightning, LPIPS, T5 and PyAV, and opens no connection."""
    code = f"""
import socket, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"av", "h5py", "lpips", "torchvision", "transformers", "pytorch_lightning", "taming",
                                  "ftfy", "bs4", "PIL", "cv2", "decord", "training", "losses", "videodata"}}:
            raise ImportError(name + " must not be imported")
sys.meta_path.insert(0, Refuse())
def refuse(*arguments): raise OSError("no network")
socket.socket.connect = refuse
sys.path.append({str(PACKAGE)!r})
import torch
from utils.common_utils import instantiate_from_config, load_config
with torch.device("meta"):
    model = instantiate_from_config(load_config("configs/config_16z.yaml").model)
assert sum(p.numel() for p in model.parameters()) == 386_574_803
"""
    assert "THE WEIGHTS ARE RANDOM" in run_python(sys.executable, code, tmp_path)


@pytest.mark.slow
def test_another_package_called_src_does_not_matter(tmp_path, python):
    """The sources beside common_utils.py are used even when another `src` was imported first."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("stranger = True\n")
    code = f"""
import src, sys
assert src.stranger
sys.path.append({str(PACKAGE)!r})
from utils.common_utils import instantiate_from_config, load_config
model = instantiate_from_config(load_config("config_tiny.yaml").model)
assert type(model).__module__ == "vvae.src.models.autoencoder2plus1d_1dcnn"
"""
    run_python(python, code, tmp_path)


def test_configuration_nodes_are_data():
    """A node needs a known target; sentinels give None; a target outside the package is never imported."""
    assert instantiate_from_config("__is_first_stage__") is None
    with pytest.raises(KeyError, match="target"):
        instantiate_from_config({"params": {}})
    with pytest.raises(VVAEError, match="unknown target 'os.system'"):
        instantiate_from_config({"target": "os.system", "params": {"command": "true"}})
    node = load_config("config_tiny.yaml").model
    node.params.ddconfig.num_res_block = 2
    with pytest.raises(VVAEError, match="unknown key 'num_res_block'; did you mean num_res_blocks"):
        instantiate_from_config(node)


def test_a_quantised_model_without_embed_dim_is_named():
    """The configuration of which the original's inference file lacks a key says which key that is."""
    params = load_config("config_4z_cap.yaml").model.params
    del params.embed_dim
    with pytest.raises(VVAEError, match="use_quant_conv needs embed_dim"):
        instantiate_from_config({"target": load_config("config_4z_cap.yaml").model.target, "params": params})


def test_configurations_name_the_folder_that_the_documents_name():
    """README and docs say where published weights are put: weights/."""
    configs = sorted((PACKAGE / "configs").glob("config_*z*.yaml"))
    assert len(configs) == 6
    for path in configs:
        assert load_config(path).model.params.ckpt_path.startswith("weights/sota-4-"), path.name
