"""Archives from anywhere: extracted whole and verified, or refused with one line and nothing written outside."""

import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
import rarfile

from videodata import archive as archive_rar
from videodata.archive import extract
from videodata.errors import UserError

CONTENT = {"a/one.bin": b"1" * 3000, "a/b/two.bin": bytes(range(256)) * 9, "three ü.txt": b"three"}


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as opened:
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = len(data) if isinstance(data, bytes) else 0
            opened.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def refused(archive: Path, match: str) -> None:
    """Extraction fails with a matching line, and nothing appeared beside the archive."""
    before = tree(archive.parent.parent)
    with pytest.raises(UserError, match=match):
        extract(archive, archive.parent / "out")
    assert not (archive.parent / "out").exists()
    assert tree(archive.parent.parent) == before


@pytest.fixture
def box(tmp_path) -> Path:
    """A folder one level below tmp_path, so that a step upwards can be seen."""
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_zip_and_tar(box, kind):
    """All members arrive with their bytes; an existing folder is left as it is."""
    if kind == "zip":
        archive = make_zip(box / "data", CONTENT)
    else:
        archive = make_tar(box / "data", CONTENT, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[kind])
    assert tree(extract(archive, box / "out")) == CONTENT
    (box / "out" / "mark").touch()
    assert (extract(archive, box / "out") / "mark").exists()
    assert sorted(os.listdir(box)) == ["data", "out"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_interrupted_extraction_continues(box, kind):
    """Complete members of a former run are kept, half-written ones are made again."""
    archive = make_zip(box / "data", CONTENT) if kind == "zip" else make_tar(box / "data", CONTENT)
    partial = box / "out.partial" / "a"
    partial.mkdir(parents=True)
    (partial / "one.bin").write_bytes(CONTENT["a/one.bin"])
    os.utime(partial / "one.bin", (1, 1))
    (box / "out.partial" / "three ü.txt").write_bytes(b"th")
    (box / "out.partial" / ".unfinished").mkdir()
    (box / "out.partial" / ".unfinished" / "member").write_bytes(b"hal")
    assert tree(extract(archive, box / "out")) == CONTENT
    assert (box / "out" / "a" / "one.bin").stat().st_mtime == 1


@pytest.mark.parametrize("kind", ["zip", "tar", "rar"])
def test_a_folder_of_the_user_stays_as_it_is(box, clips, kind):
    """Nothing is written between somebody's files, and none of them is removed; an empty folder is as good as none."""
    if kind == "rar":
        archive = shutil.copyfile(clips / "rar" / "seektest.rar", box / "data")
    else:
        archive = make_zip(box / "data", CONTENT) if kind == "zip" else make_tar(box / "data", CONTENT)
    (box / "out.partial").mkdir()
    (box / "out.partial" / "mine.txt").write_text("mine")
    refused(archive, "out.partial: is there already, and no extraction was at work in it; move it away")
    (box / "out.partial" / "mine.txt").rename(box / "mine.txt")
    (box / "out.partial").rmdir()
    (box / "mine.txt").rename(box / "out.partial")
    refused(archive, "out.partial: is there already")
    if kind != "rar" or archive_rar.available_tools():
        (box / "out.partial").unlink()
        (box / "out.partial").mkdir()
        assert tree(extract(archive, box / "out"))


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_members_may_have_any_name_but_one(box, make):
    """Names of unfinished files elsewhere in the house, before and behind what they would be those of."""
    names = ("a.mp4.partial", "a.mp4", "a.mp4.tmp", "b/.unfinished", "member", "a/member", "c", "c.partial")
    members = {name: name.encode() for name in names}
    assert tree(extract(make(box / "data", members), box / "out")) == members
    shutil.rmtree(box / "out")
    refused(make(box / "data", {".unfinished/x": b"1"}), "has the name of what is not finished")


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_name_that_is_no_text_is_one_line(box, place):
    """In the header of the member, and in the directory at the end, where the flag says UTF-8."""
    data = make_zip(box / "data", {"drei ü.txt": b"three"}).read_bytes()
    name = "ü".encode()
    at = data.index(name) if place == "first" else data.rindex(name)
    (box / "data").write_bytes(data[:at] + b"\xc3\x28" + data[at + 2 :])
    with pytest.raises(UserError, match="cannot be extracted") as raised:
        extract(box / "data", box / "out")
    assert "\n" not in str(raised.value) and os.listdir(box) == ["data"]


@pytest.mark.parametrize("end", [-60, -200])
def test_what_a_damaged_archive_leaves_is_said(box, clips, end):
    """Members that are whole are kept for the next run, in one line; without one there is no folder either."""
    members = {"a/one": bytes(range(256)) * 20, "b/two": b"2" * 900}
    data = make_zip(box / "data", members, zipfile.ZIP_STORED).read_bytes()
    (box / "data").write_bytes(data.replace(b"2" * 900, b"3" * 900))
    with pytest.raises(UserError, match="b/two.*; what is extracted so far is kept for the next run"):
        extract(box / "data", box / "out")
    assert (box / "out.partial/a/one").is_file()
    shutil.rmtree(box / "out.partial")
    whole = (clips / "rar" / "seektest.rar").read_bytes()
    (box / "data").write_bytes(whole[:end])
    with pytest.raises(UserError) as raised:
        extract(box / "data", box / "out")
    assert (box / "out.partial").exists() == ("kept for the next run" in str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "C:/x", "a\\..\\..\\x"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_paths_that_leave_are_refused(box, make, name):
    """Absolute names, drive letters, steps upwards and backslashes."""
    refused(make(box / "data", {"good": b"1", name: b"2"}), "would be written outside")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"up": special(tarfile.SYMTYPE, ".."), "up/x": b"evil"}, "leads out of the folder"),
        ({"up": special(tarfile.SYMTYPE, "/etc/passwd")}, "leads out of the folder"),
        ({"a/up": special(tarfile.SYMTYPE, "../..")}, "leads out of the folder"),
        ({"hard": special(tarfile.LNKTYPE, "../x")}, "leads out of the folder"),
        ({"in": special(tarfile.SYMTYPE, "."), "in/x": b"1"}, "leads through the file or link"),
        ({"dev": special(tarfile.CHRTYPE)}, "no plain file"),
        ({"pipe": special(tarfile.FIFOTYPE)}, "no plain file"),
        ({"Same": b"1", "same": b"2"}, "two members are called"),
        ({"file": b"1", "file/x": b"2"}, "leads through the file"),
    ],
)
def test_evil_tar_members_are_refused(box, members, match):
    """Links that leave, files through links, devices, pipes and doubles stop the extraction before it begins."""
    refused(make_tar(box / "data", members), match)


def test_harmless_links(box):
    """A symbolic link inside the folder is left out; a hard link becomes a file with the same content."""
    members = {"a/x": b"data", "soft": special(tarfile.SYMTYPE, "a/x"), "hard": special(tarfile.LNKTYPE, "a/x")}
    assert tree(extract(make_tar(box / "data", members), box / "out")) == {"a/x": b"data", "hard": b"data"}


def test_zip_link_that_leaves_is_refused(box):
    """A zip keeps the target of a link as content."""
    info = zipfile.ZipInfo("up")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(box / "data", "w") as opened:
        opened.writestr(info, "../../etc")
    refused(box / "data", "leads out of the folder, to '../../etc'")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs_are_refused(box, make):
    """40 MB of zeros in 40 kB are not unpacked."""
    refused(make(box / "data", {"zeros": bytes(40_000_000)}), "archive bombs")


@pytest.mark.parametrize("damage", ["flip", "cut", "text"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_damaged_archives_are_one_line(box, make, damage):
    """A flipped byte, a missing end and a file that is no archive."""
    archive = make(box / "data", {"one": os.urandom(100_000), "two": b"2"})
    data = bytearray(archive.read_bytes())
    data[50_000] ^= 255
    archive.write_bytes({"flip": data, "cut": data[:60_000], "text": b"Not found"}[damage])
    with pytest.raises(UserError, match="data: (cannot be extracted|member 'one' is damaged|is no zip)"):
        extract(archive, box / "out")
    assert not (box / "out").exists()


def test_disk_too_small_is_told_before(box, monkeypatch):
    """Free space is compared with the declared sizes before the first member."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    refused(make_zip(box / "data", CONTENT), "unpacks to 5.3 kB, but 1 bytes are free")


# --- rar -------------------------------------------------------------------------------------------------------------

RAR_TOOLS = ["unrar", "unar", "bsdtar", archive_rar.CFFI]
# What a tool alone cannot do, as its authors know.
WEAK = {
    "unar": {"rar5-solid", "rar5-subdirs"},
    "bsdtar": {"rar2-unix-owner", "rar3-owner", "rar3-solid", "unicode", "rar3-vols.part1", "rar5-vols.part1"},
}
EVIL = ["rar5-evil-symlink-traversal", "rar3-symlink-unix", "rar5-symlink-unix"]
INCOMPLETE = ["rar3-old", "rar5-psw", "rar3-vols.part2", "rar5-vols.part3"]
GOOD = ["rar2-unix-owner", "rar3-owner", "rar3-readonly-unix", "rar3-solid", "rar3-subdirs", "rar3-versions"]
GOOD += ["rar3-vols.part1", "rar5-vols.part1", "rar5-blake", "rar5-crc", "rar5-dups", "rar5-hlink", "rar5-solid"]
GOOD += ["rar5-subdirs", "seektest", "unicode", "unicode2"]


def md5s(folder: Path) -> dict[str, str]:
    return {name: hashlib.md5(data).hexdigest() for name, data in tree(folder).items()}


def expected_md5s(clips: Path, name: str) -> dict[str, str]:
    members = json.loads((clips / "rar" / "EXPECTED.json").read_text())[f"{name}.rar"]["members"]
    duplicate = next((m["md5"] for m in members.values() if "md5" in m), None)  # of members kept as a reference
    return {key: m.get("md5", duplicate) for key, m in members.items() if not m["dir"]}


@pytest.mark.parametrize("name", GOOD)
def test_rar_with_whatever_is_installed(clips, tmp_path, name):
    """Every sound archive comes out with the published checksums: one tool supplies what another one cannot."""
    tools = archive_rar.available_tools()
    if not tools or all(name in WEAK.get(tool, ()) for tool in tools):
        pytest.skip(f"no installed program extracts {name} (found: {tools})")
    out = extract(clips / "rar" / f"{name}.rar", tmp_path / "out")
    assert md5s(out) == expected_md5s(clips, name)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("tool", RAR_TOOLS)
def test_rar_with_each_tool_alone(clips, tmp_path, monkeypatch, tool):
    """Each tool does all archives but those that it is known not to do, and says so in one line for these."""
    if tool not in archive_rar.available_tools():
        pytest.skip(f"{tool} is not installed")
    monkeypatch.setattr(archive_rar, "available_tools", lambda: [tool])
    for name in GOOD:
        try:
            assert md5s(extract(clips / "rar" / f"{name}.rar", tmp_path / name)) == expected_md5s(clips, name), name
        except UserError as error:
            assert name in WEAK.get(tool, ()) and f"({tool}: exit status" in str(error), error


@pytest.mark.parametrize("name", EVIL + INCOMPLETE)
def test_rar_that_must_not_be_extracted(clips, tmp_path, name):
    """Links that leave, missing volumes, passwords and later volumes: one line, no question, nothing written."""
    (tmp_path / "box").mkdir()
    archive = tmp_path / "box" / f"{name}.rar"
    shutil.copyfile(clips / "rar" / f"{name}.rar", archive)
    refused(archive, "refused: link|is incomplete|password|later volume|could not be extracted|no program")


@pytest.mark.parametrize("version", ["rar3", "rar5"])
def test_rar_with_a_missing_volume(clips, tmp_path, version):
    """The second of three volumes, or the last one, is absent: noticed without starting a tool that might wait."""
    for missing in (2, 3):
        box = tmp_path / str(missing) / "box"
        box.mkdir(parents=True)
        for part in {1, 2, 3} - {missing}:
            name = f"{version}-vols.part{part}.rar"
            shutil.copyfile(clips / "rar" / name, box / name)
        refused(box / f"{version}-vols.part1.rar", "is incomplete: .*volume")


def test_rar_without_any_tool(clips, tmp_path, monkeypatch):
    """With an empty PATH the line names the packages to install and the other source of the data."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(archive_rar.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="no program that extracts rar.*apt install unar libarchive-tools.*; or the zip"
    ):
        extract(clips / "rar" / "seektest.rar", tmp_path / "out", hint="or the zip")
    assert os.listdir(tmp_path) == []


def test_stored_members_need_no_tool(clips, tmp_path, monkeypatch):
    """Members without compression come out with no program at all; what is compressed still needs one."""
    monkeypatch.setattr(archive_rar, "available_tools", lambda: [])
    for name in ("unicode2", "rar3-owner", "rar3-vols.part1", "rar5-subdirs"):
        out = extract(clips / "rar" / f"{name}.rar", tmp_path / name)
        assert md5s(out) == expected_md5s(clips, name)
    (tmp_path / "box").mkdir()
    shutil.copyfile(clips / "rar" / "seektest.rar", tmp_path / "box" / "seektest.rar")
    refused(tmp_path / "box" / "seektest.rar", "no program that extracts rar is installed")


def test_characters_beyond_the_first_plane(clips, tmp_path):
    """A library that hands over the two halves of such a character: they are joined, alone or among other names."""
    assert archive_rar.joined_surrogates("a\ud835\udc00b\U0001d401é") == "a\U0001d400b\U0001d401é"
    pytest.importorskip("unrar.cffi", reason="unrar2-cffi is optional and not installed")
    archive_rar.unpack_with_cffi(str(clips / "rar" / "unicode2.rar"), str(tmp_path))
    assert md5s(tmp_path) == expected_md5s(clips, "unicode2")


def test_names_of_the_greatest_length(box):
    """A member whose name fills what a file system takes, in letters of three bytes as well."""
    members = {"x" * 251 + ".mp4": b"long", "あ" * 83 + ".mp4": b"letters"}
    assert tree(extract(make_zip(box / "data", members), box / "out")) == members


def test_rar_that_was_interrupted(clips, tmp_path):
    """What a killed tool left behind is verified: good members stay, half ones and foreign files go."""
    if not archive_rar.available_tools():
        pytest.skip("no program that extracts rar is installed")
    partial = tmp_path / "out.partial"
    (partial / ".unfinished").mkdir(parents=True)
    whole = extract(clips / "rar" / "seektest.rar", tmp_path / "whole")
    shutil.copyfile(whole / "stest1.txt", partial / "stest1.txt")
    (partial / "stest2.txt").write_bytes(b"half")
    (partial / "stranger").symlink_to("/etc/passwd")
    out = extract(clips / "rar" / "seektest.rar", tmp_path / "out")
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_that_was_cut_off_between_two_members(box, mode, caplog):
    """Warned of: Python takes the end of the file for that of the archive."""
    plain = make_tar(box / "plain", CONTENT, "w").read_bytes()
    extract(make_tar(box / "data", CONTENT, mode), box / "whole")
    assert "has no end" not in caplog.text
    packed = {"w": bytes, "w:gz": gzip.compress, "w:xz": lzma.compress}[mode]
    end = 512 + 3072  # of the first member, with its header
    for content in (plain[:end], plain[: end + 100], plain[:end] + b"damaged" + plain[end + 7 :]):
        caplog.clear()
        (box / "data").write_bytes(packed(content))
        assert tree(extract(box / "data", box / "out")) == {"a/one.bin": CONTENT["a/one.bin"]}
        assert "data: has no end" in caplog.text
        shutil.rmtree(box / "out")


@pytest.mark.parametrize("name", ["seektest", "rar3-owner", "rar5-crc", "rar2-unix-owner"])
def test_a_rar_that_was_cut_off_between_two_members(clips, box, name, caplog):
    """Refused by the fifth version, warned of for the third, in which the end may have been stripped off."""
    whole, headers = clips / "rar" / f"{name}.rar", []
    with rarfile.RarFile(whole, info_callback=headers.append):
        pass
    archive_rar._listing(whole)
    assert "has no end" not in caplog.text
    for header in headers[2:]:
        caplog.clear()
        (box / "data").write_bytes(whole.read_bytes()[: header.header_offset])
        with pytest.raises(UserError, match="is incomplete") if "rar5" in name else contextlib.nullcontext():
            archive_rar._listing(box / "data")
        assert ("has no end" in caplog.text) == (name in ("seektest", "rar3-owner"))


def test_hanging_tool_is_stopped(clips, tmp_path, monkeypatch):
    """A tool that waits for something is killed after its time and named."""
    monkeypatch.setattr(archive_rar, "LEAST_SECONDS", 0.2)
    monkeypatch.setattr(archive_rar, "available_tools", lambda: ["unar"])
    monkeypatch.setitem(archive_rar.TOOLS, "unar", lambda archive, folder: ["sh", "-c", "sleep 60 & sleep 60"])
    with pytest.raises(UserError, match="unar: hung and was stopped"):
        extract(clips / "rar" / "seektest.rar", tmp_path / "out")
