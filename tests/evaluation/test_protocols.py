"""Named protocols: what they set, what counts as a departure, and what a command prints of them."""

from __future__ import annotations

import json
import re
import shlex
from fractions import Fraction
from pathlib import Path

import pytest

import flow_pred.evaluate
import video_vae.evaluate
import vvae.evaluate
from evaluation.protocol import Chosen
from evaluation.protocols import BY_ID, named
from evaluation.subject import Subject
from scripts.evaluate import build_parser, main
from videodata.clips import open_clips
from videodata.errors import UserError

DOCS = Path(__file__).resolve().parents[2] / "docs"
IDS = (
    *("bair-1-15", "bair-2-14", "bair-2-28", "k600-5-11", "k600-5-11-128", "kth-10-30", "kth-10-40", "kth-4-36"),
    *("clevrer-4-12", "ucf101-class", "ucf101-rfvd", "davis", "mcl-jcv", "moving-mnist-10-10"),
)


def chosen_by(*flags: str):
    argv, parser = ["flow_pred", "--checkpoint", "run", "--data", "clips", *flags], build_parser()
    args = parser.parse_args(argv)
    return Chosen.of(args, parser, argv), args


def test_every_protocol_is_there_by_its_name():
    assert set(BY_ID) == set(IDS)
    for name, protocol in BY_ID.items():
        assert protocol.id == name and protocol.published
        assert protocol.given == 0 if protocol.task != "prediction" else 0 < protocol.given < protocol.frames


def test_a_protocol_sets_what_no_flag_says():
    chosen, args = chosen_by("--protocol", "bair-1-15")
    assert (args.split, args.windows, args.num_clips, args.samples, args.frames) == ("test", "first", 256, 100, 16)
    assert args.given == 1 and args.metrics == ["fvd", "psnr", "ssim", "lpips"]
    assert chosen.departures == {} and chosen.id == "bair-1-15"


@pytest.mark.parametrize("order", [0, 1])
def test_a_typed_flag_stays_and_changes_the_name(order):
    """Whatever the order of the flags; one that says what the protocol says changes nothing, nor do other metrics."""
    flags = [["--protocol", "bair-1-15"], ["--samples", "4"]]
    chosen, args = chosen_by(*flags[order], *flags[1 - order])
    assert args.samples == 4 and args.num_clips == 256
    assert chosen.id == "bair-1-15+changed" and chosen.departures == {"samples": [100, 4]}
    chosen, args = chosen_by("--protocol", "bair-1-15", "--samples", "100", "--metrics", "psnr")
    assert chosen.id == "bair-1-15" and args.metrics == ["psnr"]


def test_clips_and_models_of_another_kind_change_the_name():
    protocol = named("bair-1-15")
    assert protocol.departures(16, 1, [64, 64], 1, 256) == {}
    assert protocol.departures(16, 1, [32, 32], 2, 200) == {
        "size": [[64, 64], [32, 32]], "given": [1, 2], "clips": [256, 200],
    }  # fmt: skip
    assert named("davis").departures(49, 1, [480, 854], 0, 90) == {}  # of its films' own size, and all of them


class Still(Subject):
    """The last given frame for ever, or the clips themselves."""

    made = 0

    def __init__(self, paired: bool = True, context: int = 0, classes: tuple[str, ...] = ()) -> None:
        self.paired, self.context, self.classes = paired, context, classes
        self.random = not paired

    def make(self, batch):
        Still.made += 1
        return batch.clips


@pytest.mark.parametrize(
    "model, name, subject, what, others",
    [
        ("river", "ucf101-rfvd", Still(context=2), "flow_pred does here is prediction", "bair-1-15, bair-2-14, "),
        ("vvae", "bair-1-15", Still(), "vvae does here is reconstruction", "ucf101-rfvd, davis, mcl-jcv"),
        ("video_vae", "k600-5-11", Still(paired=False), "video_vae does here is generation", "ucf101-class"),
        ("video_vae", "ucf101-class", Still(), "video_vae does here is reconstruction", "ucf101-rfvd, davis, mcl-jcv"),
    ],
)
def test_a_model_of_another_task_is_refused(model, name, subject, what, others, monkeypatch, tmp_path):
    """In one line that says what there is for it, before anything is computed or written."""
    folder = {"river": flow_pred, "vvae": vvae, "video_vae": video_vae}[model]
    monkeypatch.setattr(folder.evaluate, "open_subject", lambda args: subject.made_for(16, (32, 32)))
    Still.made = 0
    with pytest.raises(UserError) as refused:
        main([model, "--checkpoint", "none", "--data", "shapes:9", "--protocol", name, "--out", str(tmp_path / "a")])
    line = f"--protocol {name} is of {BY_ID[name].task}; what {what}, of which there is {others}"
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value) and not Still.made and not list(tmp_path.iterdir())


def test_new_clips_are_asked_for_where_the_protocol_is_of_them():
    """--generate by itself; of other protocols reconstructions."""
    parser = build_parser()
    for name, new in (("ucf101-class", True), ("ucf101-rfvd", False)):
        argv = ["video_vae", "--checkpoint", "run", "--data", "clips", "--protocol", name]
        args = parser.parse_args(argv)
        assert Chosen.of(args, parser, argv).id == name and args.generate is new


def test_a_model_is_found_by_the_name_that_papers_give_it():
    words = ["--checkpoint", "run", "--data", "clips", "--given", "2"]
    for name in ("river", "neural_sde", "flow_pred"):
        assert build_parser().parse_args([name, *words]).given == 2


BAIR = {
    "format": "videodata-npy", "dataset": "bair", "camera": "image_aux1", "split": "test", "num_frames": 30,
    "stride": 1, "height": 64, "width": 64, "found": 256, "published": 256, "videos": [{"sequences": 1}] * 256,
}  # fmt: skip
PARTS = {"format": "videodata-parts", "content": "videodata-npy", "videos": 256, "sequences": 256}
KTH = {
    "format": "videodata-folder", "dataset": "kth", "protocol": "prediction", "split": "test", "resize": "squeeze",
    "unit": "sub-sequences of 00sequences.txt", "height": 64, "width": 64, "found": 863, "published": 863,
}  # fmt: skip
NOTHING = "my.npy (nothing says which data set it is)"


@pytest.mark.parametrize(
    "name, said, departures",
    [
        ("bair-1-15", BAIR, {}),
        ("bair-1-15", {}, {"data": ["BAIR robot pushing, test", NOTHING]}),
        ("bair-1-15", KTH, {"data": ["BAIR robot pushing, test", "my.npy (kth)"]}),
        ("bair-1-15", BAIR | {"camera": "image_main"}, {"prepared camera": ["image_aux1", "image_main"]}),
        ("bair-1-15", BAIR | {"split": "train"}, {"prepared split": ["test", "train"]}),
        ("bair-1-15", BAIR | {"stride": 2}, {"prepared stride": [1, 2]}),
        ("bair-1-15", BAIR | {"height": 32, "width": 32}, {"prepared size": [[64, 64], [32, 32]]}),
        ("bair-1-15", BAIR | PARTS, {}),
        ("kth-10-30", KTH, {}),
        ("kth-10-30", KTH | {"split": None}, {}),
        ("kth-10-30", KTH | {"protocol": "svg", "found": 9},
         {"prepared protocol": ["prediction", "svg"], "videos": [863, 9]}),
        ("kth-10-30", KTH | {"format": "videodata-npy", "num_frames": 40, "videos": [{"sequences": 2}]},
         {"prepared windows": ["whole videos", "windows of 40 frames"]}),
        ("kth-4-36", KTH | {"format": "videodata-npy", "num_frames": 40, "videos": [{"sequences": 1}]},
         {"prepared windows": ["whole videos", "windows of 40 frames"]}),
        ("davis", {"dataset": "davis"}, {}),
    ],
)  # fmt: skip
def test_data_says_itself_what_it_is(name, said, departures):
    """Another set, another division or camera, a smaller size, fewer videos, windows in place of films; or nothing."""
    assert named(name).departures_of_data("my.npy", [said]) == departures


def test_films_of_their_own_size_and_rate():
    davis, mcl = named("davis"), named("mcl-jcv")
    assert davis.departures_of_films({(480, 854)}, {None}, (480, 854)) == {}
    assert davis.departures_of_films({(480, 854)}, {None}, (216, 216)) == {"size": ["the films' own", [216, 216]]}
    assert "size" in davis.departures_of_films({(480, 854), (480, 910)}, {None}, (480, 854))
    assert mcl.departures_of_films(set(), {Fraction(30), Fraction(30000, 1001)}, (256, 256)) == {}
    assert mcl.departures_of_films(set(), {Fraction(30), Fraction(25), None}, (256, 256)) == {
        "rate": [30, ["25", "30", "unknown"]]
    }


def test_the_table_names_data_that_is_not_the_protocols(monkeypatch, tmp_path, capsys):
    """Generated videos in place of a data set, a model without classes; published rows stand beneath it."""
    monkeypatch.setattr(video_vae.evaluate, "open_subject", lambda args: Still(False).made_for(16, (32, 32)))
    command = ["video_vae", "--checkpoint", "none", "--data", "digits:40,frames=16", "--protocol", "ucf101-class"]
    main([*command, "--generated", "9", "--metrics", "fd-pca", "--device", "cpu", "--out", str(tmp_path / "out.json")])
    told, _, rows = capsys.readouterr().out.partition("protocol ucf101-class+changed: ")[2].partition("\n")
    assert told == (
        "generated 9 in place of 10000, size [32, 32] in place of [128, 128], "
        "data digits:40,frames=16 (generated videos) in place of UCF101, split 1, "
        "classes none, which the model was trained without in place of that of each clip"
    )
    assert rows.startswith("published for ucf101-class, not measured here:\n  W.A.L.T-XL  FVD 36 +- 2  (arXiv")
    stored = json.loads((tmp_path / "out.json").read_text())
    assert stored["published"][0] == {"method": "W.A.L.T-XL", "values": "FVD 36 +- 2", "source": "arXiv 2312.06662"}
    (score,) = stored["scores"]
    assert score["sizes"] == {"real": 32, "generated": 9}  # all that is declared train, and what was asked for


def test_without_a_protocol_nothing_is_set():
    chosen, args = chosen_by()
    assert chosen is None and args.num_clips == 64 and args.windows == "random"


def test_all_are_listed_with_their_published_rows(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["flow_pred", "--protocol", "list"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(f"{name}: " in printed for name in IDS)
    assert "LVT              FVD 125.76 +- 2.90  (arXiv 2006.10704)" in printed


def test_an_unknown_name_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["flow_pred", "--checkpoint", "run", "--data", "clips", "--protocol", "bair"])
    assert stopped.value.code == 2
    assert "--protocol bair: there is bair-1-15, " in capsys.readouterr().err
    with pytest.raises(UserError, match="--protocol list describes them"):
        named("bair")


def test_clips_drawn_with_replacement_come_again_with_other_windows():
    """As many as asked for, more than there are; each draw has its own window, and a seed its own draws."""
    options = {"frames": 4, "size": 16, "total_videos": 40, "replacement": True}
    clips = open_clips("shapes:8,frames=16,size=16", **options)
    facts = [clips.describe(item) for item in range(len(clips))]
    assert len(facts) == 40 and len({fact["id"] for fact in facts}) <= 8
    assert len({(fact["id"], fact["start"]) for fact in facts}) > 16
    assert facts == [clips.describe(item) for item in range(40)]
    others = open_clips("shapes:8,frames=16,size=16", **options, seed=1)
    assert facts != [others.describe(item) for item in range(40)]
    assert clips.items_of(clips.provenance()["ids"]) == 40


def evaluations(page: Path) -> dict[str, list[str]]:
    """The documented commands that name a protocol, by its id; of several the last."""
    text = page.read_text().replace("\\\n", " ")
    found = [shlex.split(command) for command in re.findall(r"python scripts/evaluate\.py ([^`#\n]+)", text)]
    return {words[words.index("--protocol") + 1]: words for words in found if "--protocol" in words}


@pytest.mark.parametrize("name", ["protocols.md", "results.md"])
def test_each_protocol_has_a_documented_command_that_keeps_to_it(name):
    """It parses, and no flag of it is a departure; the published rows stand on both pages."""
    parser = build_parser()
    found, text = evaluations(DOCS / name), (DOCS / name).read_text()
    assert set(found) == {*BY_ID, "list"} if name == "protocols.md" else set(BY_ID)
    for asked, words in found.items():
        if asked != "list":
            assert Chosen.of(parser.parse_args(words), parser, words).id == asked
    for protocol in BY_ID.values():
        assert all(row.method in text and row.values in text for row in protocol.published)
        assert name == "results.md" or f"\n{protocol.prepare}" in text
