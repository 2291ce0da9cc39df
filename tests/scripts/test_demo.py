"""The demonstration around the models: its table, its folder, its errors, and what is left out without weights."""

import importlib
import json

import pytest
import yaml

from evaluation.gallery import Gallery
from scripts import demo as script
from scripts.demo import MODELS, ROOT, TABLE, Demo, build_parser, main, open_demo
from training.lanes import Lanes, longest_ways, remaining
from videodata.errors import UserError

RECORDS = {"title", "commands", "curves", "grids", "intro", "numbers", "rows", "config"}
COMMAND = {"run", "seconds", "watch", "after", "weights"}
SOURCES = ("digits", "shapes", "folder")
TEN_MINUTES = 600


def demo(folder, source="digits", **options):
    videos = folder / "my videos" if source == "folder" else None
    return Demo(folder, yaml.safe_load(TABLE.read_text()), source, videos, **options)


def all_stages(found):
    """Every command of the table, the preparation first."""
    first = found.stages({"prepare the clips": {**found.words_of_source, "run": found.words_of_source["prepare"]}})
    models = found.table["models"].values()
    return [*first, *(stage for model in models for stage in found.stages(model["commands"], "prepare the clips"))]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """weights/ of the repository, empty."""
    monkeypatch.setattr(script, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_mistakes_are_one_line(tmp_path, capsys):
    """A folder that is not there, and an effort that is none."""
    with pytest.raises(UserError, match="nowhere: no such folder; DATA is digits, shapes or a folder of videos"):
        main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["--effort", "0", "--out", str(tmp_path)])
    assert "--effort" in capsys.readouterr().err


def test_each_source_and_effort_has_a_folder_of_its_own(tmp_path):
    """So that a run is only ever continued with its own settings."""
    (tmp_path / "birds").mkdir()
    words = [[], ["--data", "shapes"], ["--data", str(tmp_path / "birds")], ["--effort", "0.5"]]
    found = [open_demo(build_parser().parse_args(flags)) for flags in words]
    assert [entry.folder.name for entry in found] == ["demo", "demo-shapes", "demo-birds", "demo-effort-0.5"]
    assert [entry.source for entry in found] == ["digits", "shapes", "folder", "digits"]


def test_a_folder_is_of_one_effort_and_one_source(tmp_path, monkeypatch):
    """Another one is refused before anything is run, with what to do; the same goes on."""
    monkeypatch.setattr(Demo, "run", lambda self, gallery: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            main(["--out", str(tmp_path), "--effort", "0.5"])
    for words in (["--effort", "0.25"], ["--effort", "0.5", "--data", "shapes"], []):
        with pytest.raises(UserError, match="holds a demonstration of --data digits --effort 0.5; repeat these, or"):
            main(["--out", str(tmp_path), *words])


def test_steps_and_clips_follow_the_effort(tmp_path):
    """At least two steps, so that there is something to train, and enough clips to divide."""
    found = [demo(tmp_path, effort=effort).words("x {steps:100} {count:4000}")[1:] for effort in (2, 1, 0.25, 0.001)]
    assert found == [["200", "8000"], ["100", "4000"], ["25", "1000"], ["2", "200"]]
    assert demo(tmp_path).words("{steps:1}") == ["1"]


def test_folders_with_spaces_stay_one_word(tmp_path):
    """The folder's name is put in after the command was split into words."""
    found = demo(tmp_path / "my demo", "folder")
    clips = str(tmp_path / "my demo" / "clips.npy")
    assert found.words("main.py {evaluate}")[:3] == ["main.py", "--data", clips]
    assert found.words("x \"('{clips}#train',)\"")[1] == f"('{clips}#train',)"
    assert str(found.videos) in found.words(found.words_of_source["prepare"])


@pytest.mark.parametrize("source", SOURCES)
def test_every_command_of_the_table_is_understood_by_its_script(tmp_path, source, weights, monkeypatch):
    """The parsers of the scripts take the words as they stand, and the table says all that a section needs."""
    monkeypatch.setattr("training.cli.opened", lambda checkpoint: checkpoint)
    monkeypatch.setattr(Demo, "has_weights", lambda self, entry: True)
    found = demo(tmp_path, source)
    assert tuple(found.table["models"]) == MODELS and set(found.table["sources"]) == set(SOURCES)
    for model in found.table["models"].values():
        assert set(model) <= RECORDS and model["numbers"] and model["grids"]
        assert all(set(command) <= COMMAND for command in model["commands"].values())
        assert all(isinstance(kind, str) for grid in model["grids"] for kind in grid["rows"])  # YAML: true is a boolean
    stages = all_stages(found)
    assert len({stage.name for stage in stages}) == len(stages)
    assert {name for stage in stages for name in stage.after} <= {stage.name for stage in stages}
    for stage in stages:
        name, *flags = stage.words
        assert (ROOT / name).is_file()
        importlib.import_module(name.removesuffix(".py").replace("/", ".")).build_parser().parse_args(flags)


@pytest.mark.parametrize("source", SOURCES)
def test_two_cores_need_less_than_ten_minutes(tmp_path, source, weights):
    """By the seconds of the table, with room for the page and for slower machines; every training tells its steps."""
    stages = all_stages(demo(tmp_path, source))
    assert remaining(stages, 2, 0.0) < 0.95 * TEN_MINUTES
    assert all(stage.run_dir and stage.steps for stage in stages if stage.name.startswith("train "))
    assert longest_ways(stages)["prepare the clips"] == max(longest_ways(stages).values())


def test_what_needs_weights_is_left_out_without_them(tmp_path, weights):
    """Commands, rows of clips and numbers; with the file they are there, and nothing waits for them."""
    found = demo(tmp_path)
    commands = found.table["models"]["lvt"]["commands"]
    names = [stage.name for stage in found.stages(commands)]
    grid, number = found.table["models"]["lvt"]["grids"][0], found.table["models"]["lvt"]["numbers"][-1]
    for name in ("lvt.json", "hour/lvt.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        values = {number["score"]: 13.0 + 2 * name.startswith("hour"), number["baseline"]: 9.5}
        (tmp_path / name).write_text(json.dumps({"scores": [{"name": k, "mean": v} for k, v in values.items()]}))
    rows = list(found.grid(grid).rows)
    assert found.number(number).more == "" and found.number(number).value == "13.0 dB"
    (weights / "lvt-digits.safetensors").touch()
    added = [stage for stage in found.stages(commands) if stage.name not in names]
    assert [stage.after for stage in added] == [("prepare the clips",)] and "lvt-digits" in added[0].words
    assert len(found.grid(grid).rows) == len(rows) + 1
    assert found.number(number).more == "after an hour: 15.0 dB"
    assert demo(tmp_path, "shapes").stages(commands)[-1].name == names[-1]


def test_sections_come_as_asked_for_with_a_line_each(tmp_path, weights, monkeypatch):
    """Whatever model is done first; a model is shown as soon as its last command has ended."""
    told = []

    def run(lanes, ended):
        for stage in reversed(lanes.stages.values()):
            told.append((stage.name, ended(stage)))

    monkeypatch.setattr(Lanes, "run", run)
    monkeypatch.setattr(Demo, "look_at_clips", lambda self: None)
    monkeypatch.setattr(
        Demo,
        "show",
        lambda self, name, gallery: str(gallery.add_section(self.table["models"][name]["title"], ""))[:0] + "fine",
    )
    gallery, found = Gallery("page"), demo(tmp_path, models=["vvae", "lvt"])
    assert found.run(gallery) == ["vvae: fine", "lvt: fine"]
    titles = [found.table["models"][name]["title"] for name in ("vvae", "lvt")]
    assert [section.name for section in gallery.sections] == titles
    assert [line for _, line in told if line] == ["lvt: fine", "vvae: fine"] and told[-1][0] == "prepare the clips"


def test_scores_whose_name_says_how_much_was_measured_are_found(tmp_path):
    """By a *; one that may be missing is left out where there were too few clips, any other is an error."""
    found = demo(tmp_path)
    entry = {"report": "r.json", "score": "FD-* from training clips", "of": "clips", "unit": "", "may_be_missing": True}
    entry |= {"baseline": "FD-* from training clips, true clips", "baseline_of": "true clips"}
    names = ("FD-pca3 from training clips, true clips", "FD-pca3 from training clips")
    scores = [{"name": name, "mean": float(place)} for place, name in enumerate(names)]
    (tmp_path / "r.json").write_text(json.dumps({"scores": scores}))
    assert found.was_measured(entry)
    assert found.number(entry).value.strip() == "1.00" and found.number(entry).baseline.strip() == "0.00"
    (tmp_path / "r.json").write_text(json.dumps({"scores": []}))
    assert not found.was_measured(entry) and found.was_measured({**entry, "may_be_missing": False})
