"""TFRecord files without TensorFlow, and the BAIR records in them."""

import numpy as np
import pytest
from google_crc32c import value as crc32c

from scripts import convert_bair, prepare_data
from tests.videodata.miniatures import bair_record
from videodata import open_clips
from videodata.datasets.bair import BairRecords, find_records, read_record
from videodata.errors import UserError, VideoError
from videodata.frame_folder import FrameFolder


@pytest.fixture
def records(tmp_path):
    """A file of three records."""
    folder = tmp_path / "bair" / "softmotion30_44k" / "train"
    folder.mkdir(parents=True)
    (folder / "traj_0_to_255.tfrecords").write_bytes(b"".join(map(bair_record, range(3))))
    return folder / "traj_0_to_255.tfrecords"


def test_checksum():
    """The published value of CRC-32C, and the long way of computing it equals the short one."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    rng = np.random.default_rng(0)
    table = [0] * 256
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table[byte] = value
    for length in (0, 1, 511, 512, 513, 5000, 70_001):
        data, crc = rng.bytes(length), 0xFFFFFFFF
        for byte in data:
            crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
        assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_records_are_found_and_read(records):
    """Pictures of the camera that is asked for, actions and gripper positions, any stretch of frames."""
    source = BairRecords(records.parent)
    assert [source.id(index) for index in range(len(source))] == [f"traj_0_to_255/{k}" for k in range(3)]
    assert source.read(2).shape == (30, 64, 64, 3) and source.read(2, 5, 3, 4)[:, 0, 0, 0].tolist() == [7, 11, 15]
    assert BairRecords(records.parent, "image_main").read(1, 0, 2).mean() == 11
    action, state = source.motions(1)
    assert action.shape == (30, 4) and np.allclose(action[:, 0], 1 + np.arange(30) / 100) and state.mean() == 1


@pytest.mark.parametrize("position", [0.5, 0.7, 0.99])
def test_a_flipped_byte_is_reported(records, position):
    """Any damage to the data of the second record is noticed; the others are read."""
    data = bytearray(records.read_bytes())
    size = len(data) // 3
    data[size + int(position * size)] ^= 1
    records.write_bytes(data)
    first, second, third = find_records(records)
    with pytest.raises(VideoError, match="damaged"):
        read_record(records, second)
    assert len(read_record(records, first)) == len(read_record(records, third))


@pytest.mark.parametrize("cut", [10, 1000])
def test_a_file_that_is_cut_off(records, cut):
    """What is there is read; the rest is one entry that says where it broke off."""
    records.write_bytes(records.read_bytes()[:-cut])
    source = BairRecords(records.parent)
    assert len(source) == 3 and source.read(1).shape[0] == 30
    with pytest.raises(VideoError, match="damaged or cut off at byte"):
        source.read(2)


def test_a_damaged_length(records):
    """The length is checked before it is believed."""
    data = bytearray(records.read_bytes())
    data[3] ^= 0x40
    records.write_bytes(data)
    with pytest.raises(VideoError, match="cut off at byte 0"):
        BairRecords(records.parent).read(0)


def test_damage_is_in_the_report(records, tmp_path):
    """A damaged record is left out of array and actions, and listed with its reason."""
    data = bytearray(records.read_bytes())
    data[len(data) // 2] ^= 1
    records.write_bytes(data)
    command = ["bair", "--root", str(tmp_path), "--out", str(tmp_path / "out"), "--split", "train", "--keep_going"]
    prepare_data.main(command)
    assert len(open_clips(tmp_path / "out" / "train.npy", 30, 64)) == 2
    motions = np.load(tmp_path / "out" / "train.actions.npz")
    assert motions["id"].tolist() == ["traj_0_to_255/0", "traj_0_to_255/2"]
    assert motions["action"][1, 3, 0] == np.float32(2.03) and motions["endeffector_pos"].shape == (2, 30, 3)
    assert "traj_0_to_255/1" in (tmp_path / "out" / "train.json").read_text().split('"skipped"')[1]


def test_convert_bair(records, tmp_path, capsys):
    """Frames as processed_data/<split>/<file>/<k>/<i>.png, k from 1, i from 0; done again it adds nothing."""
    (records.parent.parent / "test").mkdir()
    (records.parent.parent / "test" / "traj_0_to_255.tfrecords").write_bytes(bair_record(9))
    for _ in range(2):
        convert_bair.main(["--data_dir", str(tmp_path / "bair"), "--num_jobs", "2"])
    out = tmp_path / "bair" / "processed_data"
    assert sorted(path.name for path in out.iterdir()) == ["test", "test.actions.npz", "train", "train.actions.npz"]
    frames = FrameFolder(out / "train")
    assert [frames.id(index) for index in range(3)] == [f"traj_0_to_255/{k}" for k in (1, 2, 3)]
    assert np.array_equal(frames.read(1), BairRecords(records.parent).read(1))
    assert (out / "test/traj_0_to_255/1/29.png").exists() and "3 of 3 records" in (printed := capsys.readouterr().out)
    assert f"""PR-DVQVAE2.yaml DATASETS.TRAIN "('{out}#train',)" DATASETS.TEST "('{out}#test',)\"""" in printed
    with pytest.raises(UserError, match="prepare_data.py bair"):
        convert_bair.main(["--data_dir", str(tmp_path)])


def test_records_of_the_real_kind(clips, tmp_path):
    """Files with the 120 features of the published ones go through all formats."""
    (tmp_path / "bair").symlink_to(clips / "tfds_fake" / "bair_robot_pushing_small")
    for form in ("npy", "hdf5", "frames"):
        out = tmp_path / form
        prepare_data.main(["bair", "--root", str(tmp_path), "--out", str(out), "--format", form, "--keep_going"])
        source = BairRecords(tmp_path / "bair" / "softmotion30_44k" / "test")
        made = open_clips(out, 30, 64, split="test", windows="first", dtype="uint8").source
        assert np.array_equal(made.read(0), source.read(0)) and (out / "test.actions.npz").exists()
