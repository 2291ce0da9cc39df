"""UCF101: where it is, how large it is, and what its file names say. Soomro et al., 2012, arXiv:1212.0402."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from videodata.errors import UserError


@dataclass(frozen=True)
class Download:
    """One place to get the videos from."""

    url: str
    file_name: str
    size: int  # bytes
    sha256: str | None


SOURCES = {
    "official": Download(
        "https://www.crcv.ucf.edu/data/UCF101/UCF101.rar", "UCF101.rar", 6_932_971_618, None
    ),  # no checksum is published
    "mirror": Download(
        "https://storage.googleapis.com/thumos14_files/UCF101_videos.zip",
        "UCF101_videos.zip",
        6_960_400_115,
        "dabf56f573cd19c79e096563529fec8126a2a34e18e10c72eb621dd687532b0d",
    ),
}
MIRROR_HINT = "--source mirror takes a zip of the same videos, with a known SHA-256, that needs no rar program"

VIDEOS = 13_320
FRAMES = 2_483_295
_CLASS_NAMES = """
    ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball
    BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling BoxingPunchingBag
    BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling CricketShot CuttingInKitchen
    Diving Drumming Fencing FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl GolfSwing Haircut Hammering
    HammerThrow HandstandPushups HandstandWalking HeadMassage HighJump HorseRace HorseRiding HulaHoop IceDancing
    JavelinThrow JugglingBalls JumpingJack JumpRope Kayaking Knitting LongJump Lunges MilitaryParade Mixing
    MoppingFloor Nunchucks ParallelBars PizzaTossing PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar
    PlayingPiano PlayingSitar PlayingTabla PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting
    RockClimbingIndoor RopeClimbing Rowing SalsaSpin ShavingBeard Shotput SkateBoarding Skiing Skijet SkyDiving
    SoccerJuggling SoccerPenalty StillRings SumoWrestling Surfing Swing TableTennisShot TaiChi TennisSwing ThrowDiscus
    TrampolineJumping Typing UnevenBars VolleyballSpiking WalkingWithDog WallPushups WritingOnBoard YoYo
"""
CLASSES = tuple(_CLASS_NAMES.split())

_NAME = re.compile(r"v_(?P<label>\w+)_g(?P<group>\d+)_c\d+", re.IGNORECASE)
# The files of HandstandPushups are called v_HandStandPushups_*: classes are compared without regard to case.
_BY_LOWER_CASE = {name.lower(): name for name in CLASSES}


@dataclass(frozen=True)
class ClipName:
    """What `v_<Class>_gGG_cCC` says. Clips of one group were cut from the same film: never divide them."""

    label: str
    group: str


def parse_name(path: str | PurePath) -> ClipName | None:
    """Class and group of a UCF101 clip from its file name, None for other files."""
    match = _NAME.fullmatch(PurePath(path).stem)
    if match is None:
        return None
    label = _BY_LOWER_CASE.get(match["label"].lower(), match["label"])
    return ClipName(label, f"v_{label}_g{match['group']}")


def check_classes(names: Sequence[str]) -> list[str]:
    """The classes in their official spelling. Raises UserError with the nearest name for one that does not exist."""
    for name in names:
        if name.lower() not in _BY_LOWER_CASE:
            near = difflib.get_close_matches(name, CLASSES, n=1, cutoff=0.0)
            raise UserError(f"--classes: UCF101 has no class {name!r}, the nearest is {near[0]!r}")
    return [_BY_LOWER_CASE[name.lower()] for name in names]


def read_split_file(path: str | Path) -> set[str]:
    """Lower-case file stems of a list such as trainlist01.txt (`Class/v_Class_g08_c01.avi 1` per line, CRLF or LF)."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of videos ({error})") from error
    stems = {PurePath(line.split()[0]).stem.lower() for line in lines if line.strip()}
    if not stems:
        raise UserError(f"{path}: the list is empty")
    return stems
