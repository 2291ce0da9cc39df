import hashlib
import http.server
import socket
import threading
import urllib.request
from dataclasses import replace

import pytest
import torch

from losses.perceptual import FeatureNetwork
from losses.weights import WEIGHT_FILES, find_lpips_heads, find_weights, read_state_dict
from videodata.errors import UserError

CONTENT = b"made-up weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def entry(monkeypatch, tmp_path):
    """A registered file of known content; all look-up folders are empty ones of this test."""
    entry = replace(
        WEIGHT_FILES["vgg16"], filename="made-up.pth", url="http://127.0.0.1:9/made-up.pth", sha256=DIGEST[:8]
    )
    monkeypatch.setitem(WEIGHT_FILES, "made-up", entry)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("VIDEOGEN_WEIGHTS", raising=False)
    return entry


@pytest.fixture
def server(tmp_path):
    """A loopback server of a folder: (folder, base URL, requested paths)."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}", requests
        httpd.shutdown()


def test_look_up_order(entry, monkeypatch, tmp_path):
    """Named folder, then $VIDEOGEN_WEIGHTS, then the cache folder, then torch hub's."""
    folders = [
        tmp_path / "torch" / "hub" / "checkpoints",
        tmp_path / "home" / ".cache" / "videogen" / "weights",
        tmp_path / "environment",
        tmp_path / "named",
    ]
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(folders[2]))
    folders[3].mkdir()
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / entry.filename).write_bytes(CONTENT)
        assert find_weights("made-up", folders[3], download=False) == folder / entry.filename


def test_a_named_file_is_used_as_it_is_and_a_found_one_is_checked(entry, monkeypatch, tmp_path):
    """The hash guards against damaged files, not against the user's own."""
    file = tmp_path / entry.filename
    file.write_bytes(b"other")
    assert find_weights("made-up", file) == file
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=f"{entry.filename}: damaged or not the published file"):
        find_weights("made-up")
    with pytest.raises(UserError, match="nowhere"):
        find_weights("made-up", tmp_path / "nowhere")


def test_first_use_downloads_once(entry, server, monkeypatch, tmp_path):
    """The file is fetched to the weights folder, checked, and not fetched again."""
    folder, url, requests = server
    (folder / entry.filename).write_bytes(CONTENT)
    monkeypatch.setitem(WEIGHT_FILES, "made-up", replace(entry, url=f"{url}/{entry.filename}"))
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path / "weights"))
    path = find_weights("made-up")
    assert path == tmp_path / "weights" / entry.filename and path.read_bytes() == CONTENT
    assert find_weights("made-up") == path and len(requests) == 1


def test_wrong_content_from_the_server_is_refused(entry, server, monkeypatch, tmp_path):
    """Nothing with another hash stays under the final name, and the line names file, address and folder."""
    folder, url, _ = server
    (folder / entry.filename).write_bytes(b"something else")
    monkeypatch.setitem(WEIGHT_FILES, "made-up", replace(entry, url=f"{url}/{entry.filename}"))
    with pytest.raises(UserError, match="SHA-256"):
        find_weights("made-up")
    assert not list(tmp_path.rglob("home/**/made-up.pth"))


def test_a_file_without_published_hash_must_stay_what_it_was(entry, server, monkeypatch, tmp_path):
    """The hash of the first download is kept beside the file; another content under that name is refused."""
    folder, url, _ = server
    (folder / entry.filename).write_bytes(CONTENT)
    monkeypatch.setitem(WEIGHT_FILES, "made-up", replace(entry, url=f"{url}/{entry.filename}", sha256=""))
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path / "weights"))
    path = find_weights("made-up")
    assert (tmp_path / "weights" / "weights.lock").read_text() == f"{DIGEST}  {entry.filename}\n"
    assert find_weights("made-up") == path
    path.write_bytes(b"other")
    with pytest.raises(UserError, match=f"expected {DIGEST[:8]}"):
        find_weights("made-up")


def test_without_network_one_line_says_what_is_needed(entry, monkeypatch, tmp_path):
    """A refused connection ends soon, in one line: file, purpose, address, folder, and the way without."""

    def refuse(*_, **__):
        raise ConnectionRefusedError("blocked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)
    for download in (True, False):
        with pytest.raises(UserError) as error:
            find_weights("made-up", download=download)
        line = str(error.value)
        assert "\n" not in line
        folder = str(tmp_path / "home" / ".cache" / "videogen" / "weights")
        for part in (entry.filename, entry.purpose, entry.url, folder, "weight to 0"):
            assert part in line


@pytest.mark.posix
def test_processes_that_start_together_download_once(entry, server, monkeypatch):
    """Two processes that need the same missing file: one fetches it, the other waits for it."""
    folder, url, requests = server
    (folder / entry.filename).write_bytes(CONTENT)
    monkeypatch.setitem(WEIGHT_FILES, "x", replace(entry, url=f"{url}/{entry.filename}", sha256=DIGEST))
    both = [torch.multiprocessing.get_context("fork").Process(target=find_weights, args=("x",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(requests) == 1


def test_damaged_and_foreign_files_are_one_line_and_old_ones_load(tmp_path, backbone_files):
    """A cut file, a pickle that would run code, another network's weights: each has its line. The old format loads."""
    cut = tmp_path / "cut.pth"
    cut.write_bytes(backbone_files["alexnet"].read_bytes()[:5000])
    code = tmp_path / "code.pth"
    torch.save({"a": print}, code)
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="cut.pth: not a readable weight file"):
        read_state_dict(cut)
    with pytest.raises(UserError, match="code.pth: not a checkpoint of tensors and plain types"):
        read_state_dict(code)
    old = tmp_path / "old.pth"  # torchvision's files are of the format before torch 1.6
    torch.save({"features.0.weight": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    assert read_state_dict(old)["features.0.weight"].tolist() == [1, 1]
    network = FeatureNetwork("vgg16", ["relu1_2"])
    with pytest.raises(UserError, match=r"other.pth: features.0.weight has shape \(1,\)"):
        network.load_torchvision(other)
    with pytest.raises(UserError, match="holds no features.2.weight"):
        network.load_torchvision(_vgg_without_layer_2(backbone_files, tmp_path))


def _vgg_without_layer_2(backbone_files, tmp_path):
    state = torch.load(backbone_files["vgg16"], weights_only=True)
    path = tmp_path / "holes.pth"
    torch.save({key: value for key, value in state.items() if not key.startswith("features.2.")}, path)
    return path


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_heads_are_those_of_version_01(net):
    """The installed lpips package holds the heads that the results are defined with."""
    assert find_lpips_heads(net).name == f"{net}.pth"
