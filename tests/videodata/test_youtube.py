"""Clips from YouTube: the ledger, trimming, retries and refusals, with a stand-in for yt-dlp or with the real one."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from scripts import convert_kinetics, download_kinetics, prepare_data
from tests.videodata.miniatures import miniature, video
from tests.videodata.tree_server import tree_server
from videodata import open_clips, probe
from videodata.datasets.youtube import Clip, YouTube, classify, cut_video, read_ledger
from videodata.errors import UserError, VideoError
from videodata.video import count_frames

IDS = ("aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc")
CLIPS = [Clip("making a cake", IDS[0], 0, 1), Clip("a/b", IDS[1], 1, 2), Clip(None, IDS[2], 0, 2)]
QUICK = YouTube(trim=True, wait=0.0, retries=2)


@pytest.fixture
def youtube(monkeypatch):
    """A module in the place of yt-dlp. answers: by id, what comes next: an error sentence, or else the video."""

    class DownloadError(Exception):
        pass

    class YoutubeDL:
        def __init__(self, options):
            stand_in.options = options

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def extract_info(self, url, download):
            id = url[-11:]
            stand_in.asked.append(id)
            answers = stand_in.answers.get(id, [])
            answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else None
            if isinstance(answer, str):
                raise DownloadError(f"ERROR: [youtube] {id}: {answer}")
            path = Path(stand_in.options["outtmpl"]["default"].replace("%(ext)s", "mp4"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(video(1, ".mp4", frames=60) if answer is None else answer)
            return {"requested_downloads": [{"filepath": str(path)}]}

    stand_in = types.ModuleType("yt_dlp")
    stand_in.YoutubeDL, stand_in.answers, stand_in.asked = YoutubeDL, {}, []
    stand_in.utils = types.SimpleNamespace(DownloadError=DownloadError)
    monkeypatch.setitem(sys.modules, "yt_dlp", stand_in)
    return stand_in


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_trimmed_clips_and_their_ledger(youtube, tmp_path):
    """Each clip is cut to its seconds and filed under its label; the second run asks for nothing."""
    for _ in range(2):
        assert QUICK.download(CLIPS, tmp_path)["ok"] == 3
    assert files(tmp_path) == [
        "a_b/bbbbbbbbbbb_000001_000002.mp4",
        "ledger.jsonl",
        "making a cake/aaaaaaaaaaa_000000_000001.mp4",
        "unlabelled/ccccccccccc_000000_000002.mp4",
    ]
    assert len(youtube.asked) == 3
    assert [count_frames(tmp_path / name) for name in files(tmp_path) if name.endswith("mp4")] == [25, 25, 50]


def test_what_is_gone_is_not_asked_for_again(youtube, tmp_path):
    """Removed and private videos are noted once; failures are tried again at once, and by the next run."""
    youtube.answers = {IDS[0]: ["Video unavailable. This video has been removed"], IDS[1]: ["HTTP Error 503: x"]}
    with pytest.raises(UserError, match="1 of 3 clips failed; see .*ledger.jsonl, run the same command again"):
        QUICK.download(CLIPS, tmp_path)
    assert sorted(youtube.asked) == [IDS[0], IDS[1], IDS[1], IDS[2]]
    assert set(read_ledger(tmp_path / "ledger.jsonl").values()) == {"gone", "failed", "ok"}
    youtube.answers[IDS[1]] = []
    youtube.asked.clear()
    assert QUICK.download(CLIPS, tmp_path) == {"gone": 1, "ok": 2} and youtube.asked == [IDS[1]]


def test_a_retry_that_succeeds(youtube, tmp_path):
    """A fault of the network, then a file that cannot be decoded, then the video."""
    youtube.answers = {IDS[0]: ["timed out", b"no video", video(1, ".mp4", frames=60), ""]}
    assert YouTube(trim=True, wait=0.0, retries=3).download(CLIPS[:1], tmp_path)["ok"] == 1


def test_a_blocked_machine_stops(youtube, tmp_path):
    """Five requests to sign in, in a row, end the run with one line; nothing is marked as gone."""
    clips = [Clip("x", f"{number:011d}", 0, 1) for number in range(9)]
    youtube.answers = {clip.youtube_id: ["Sign in to confirm you’re not a bot"] for clip in clips}
    with pytest.raises(UserError, match="sign-in.*--cookies"):
        QUICK.download(clips, tmp_path)
    assert len(youtube.asked) == 5
    youtube.answers.clear()
    assert QUICK.download(clips, tmp_path)["ok"] == 9


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("ERROR: Sign in to confirm you’re not a bot.", "blocked"),
        ("ERROR: Sign in to confirm your age", "gone"),
        ("ERROR: Private video. Sign in if you've been granted access", "gone"),
        ("ERROR: This video is no longer available due to a copyright claim", "gone"),
        ("ERROR: HTTP Error 503: Service Unavailable", "failed"),
        ("ERROR: Unable to download webpage: timed out", "failed"),
    ],
)
def test_sentences(said, status):
    """What YouTube says decides between stopping, giving up on a clip, and trying again."""
    assert classify(said) == status


def test_a_killed_run_continues(youtube, tmp_path):
    """A torn line of the ledger, a lost file and a half-written one: these clips are fetched again, the others not."""
    QUICK.download(CLIPS, tmp_path)
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    torn = next(line for line in lines if IDS[0] in line)
    kept = [line for line in lines if line != torn]
    (tmp_path / "ledger.jsonl").write_text("\n".join([*kept, torn[:20]]))
    (tmp_path / "a_b" / f"{CLIPS[1].stem}.mp4").rename(tmp_path / "a_b" / f".{CLIPS[1].stem}.mp4.7.partial")
    youtube.asked.clear()
    assert QUICK.download(CLIPS, tmp_path)["ok"] == 3 and sorted(youtube.asked) == [IDS[0], IDS[1]]
    assert all(json.loads(line)["status"] == "ok" for line in (tmp_path / "ledger.jsonl").read_text().splitlines()[-2:])
    assert set(read_ledger(tmp_path / "ledger.jsonl")) == {clip.stem for clip in CLIPS}


def test_settings_reach_the_library(youtube, tmp_path):
    """Rate limit, pauses, cookies and retries are passed on; without --trim the whole video stays."""
    settings = YouTube(rate_limit=500_000, sleep=2.0, cookies="c.txt", retries=7)
    settings.download(CLIPS[:1], tmp_path)
    assert {"ratelimit": 500_000, "sleep_interval": 2.0, "cookiefile": "c.txt", "retries": 7}.items() <= (
        youtube.options.items()
    )
    assert count_frames(tmp_path / "making a cake" / f"{CLIPS[0].stem}.mp4") == 60


def test_missing_library(monkeypatch, tmp_path):
    """Without yt-dlp: one line that says how to get it."""
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(UserError, match="pip install yt-dlp"):
        QUICK.download(CLIPS, tmp_path)


def test_cutting_keeps_the_right_frames(tmp_path, clips):
    """Seconds 2 to 4 of a film with numbered frames are its frames 60 to 119; a film that ends before is an error."""
    source = clips / "synthetic" / "longgop_176x144_150f.mp4"
    cut = cut_video(source, tmp_path / "cut.mp4", 2, 4)
    frames = open_clips(cut, 60, None, dtype="uint8")[0]
    bits = frames[0, :, 9, 7::14][:, :12].numpy() > 127
    assert (bits * (1 << np.arange(12))).sum(axis=1).tolist() == list(range(60, 120))
    assert probe(cut).fps == probe(source).fps
    with pytest.raises(VideoError, match="ends before second 9"):
        cut_video(source, tmp_path / "none.mp4", 9, 10)


def test_the_documented_commands(youtube, tmp_path, monkeypatch, capsys):
    """download_kinetics.py, then convert_kinetics.py: frames of the centre square; what is missing is listed."""
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"{clip.label or ''},{clip.youtube_id},{clip.start},{clip.end},train" for clip in CLIPS)
    Path("list.csv").write_text("label,youtube_id,time_start,time_end,split\n" + rows)
    youtube.answers = {IDS[2]: ["Private video"]}
    download_kinetics.main(["list.csv", "videos", "--trim", "--num-jobs", "2"])
    assert "videos: 2 of 3 clips, 1 are gone" in capsys.readouterr().out
    convert = ["--video_dir", "videos", "--output_dir", "frames", "--img_size", "16", "--num_jobs", "2"]
    convert_kinetics.main(convert)
    assert files(Path("frames"))[:2] == [f"a_b/{CLIPS[1].stem}/{number}.png" for number in (1, 10)]
    assert open_clips("frames", 25, None)[0].shape == (3, 25, 16, 16)
    convert_kinetics.main([*convert[:1], "videos", "--output_dir", "x", "--input_csv", "list.csv"])
    assert Path("remaining_last.csv").read_text().splitlines()[1:] == [f",{IDS[2]},0,2"] and not Path("x").exists()
    Path("names.txt").write_text("a_b\n")
    convert_kinetics.main(["--video_dir", "videos", "--output_dir", "few", "--lables", "names.txt", "--img_size", "8"])
    assert len(files(Path("few"))) == 25
    Path("videos/a_b/broken.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="1 videos were left out"):
        convert_kinetics.main(convert)


def test_prepare_from_youtube(youtube, tmp_path):
    """prepare_data.py kinetics600 --source youtube: the clips of the published list, to sequences with labels."""
    with tree_server() as server:
        server.files = dict(miniature("kinetics600").files)
        command = ["kinetics600", "--source", "youtube", "--root", str(tmp_path), "--url_root", server.url]
        youtube.answers = {"ddddddddddd": ["Private video"], "ccccccccccc": [video(2, ".mp4", frames=2000)]}
        prepare_data.main([*command, "--split", "val", "--out", str(tmp_path / "out"), "--num_frames", "4"])
    sidecar = json.loads((tmp_path / "out" / "val.json").read_text())
    assert [(entry["id"], entry["label"]) for entry in sidecar["videos"]] == [
        ("playing chess/ccccccccccc_000070_000080", "playing chess")
    ]
    assert (sidecar["published"], sidecar["found"], sidecar["missing"]) == (2, 1, ["ddddddddddd_000001_000011"])


def test_with_the_real_library(tmp_path):
    """yt-dlp itself, on a video of a loopback server; a missing one counts as gone."""
    pytest.importorskip("yt_dlp", reason="yt-dlp is optional and not installed")
    with tree_server() as server:
        server.files = {f"/{IDS[0]}.mp4": video(1, ".mp4", frames=60)}
        settings = YouTube(trim=True, wait=0.0, retries=1, address=server.url + "/{id}.mp4")
        assert settings.download(CLIPS[:2], tmp_path) == {"ok": 1, "gone": 1}
    assert count_frames(tmp_path / "making a cake" / f"{CLIPS[0].stem}.mp4") == 25
