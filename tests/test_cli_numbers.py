"""Numbers on the command line: lists, ranges, and lines that make no sense."""

import math
import shlex

import pytest
from fuzz.command_lines import campaign, options_of

from sv4d2_core.__main__ import COMMANDS, build_parser, main
from sv4d2_core.commands.common import Within


def parsed(*words):
    out = ["--out", "o"]
    command = (
        ["render", "s", *out]
        if words[0] != "--guidance-interval"
        else ["views", "c", "--checkpoint", "tiny", *out]
    )
    return vars(build_parser([command[0]]).parse_args([*command, *words]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--azimuths", "60,120,180"), [60, 120, 180]),
        (("--azimuths", "60,", "120,180"), [60, 120, 180]),
        (("--azimuths=60;120",), [60, 120]),
        (("--azimuths", "60", "120"), [60, 120]),
        (("--elevations", "-30,60"), [-30, 60]),
        (("--elevations", "-30", "-5.5"), [-30, -5.5]),
        (("--elevations", "-.5, 3"), [-0.5, 3]),
        (("--times", "0,0.5,1"), [0, 0.5, 1]),
        (("--guidance-interval", "0.2,80"), [0.2, 80]),
        (("--guidance-interval", "0.2", "80"), [0.2, 80]),
    ],
)
def test_commas_and_blanks_part_numbers(words, expected):
    assert parsed(*words)[words[0].split("=")[0].strip("-").replace("-", "_")] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--azimuths", "60,left"), "'left' in '60,left'"),
        (("--guidance-interval", "1,2,3"), "expected 2 numbers, got 3"),
        (("--times", ","), "expected some numbers, got 0"),
    ],
)
def test_what_is_no_list_of_numbers_is_named(words, message):
    with pytest.raises(ValueError, match=message):
        parsed(*words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_is_within_a_stated_range(command):
    for option in options_of(command):
        assert option.type not in (int, float), f"{option.option_strings} of {command} has no range"
        if isinstance(option.type, Within):
            assert math.isfinite(option.type.least) and math.isfinite(option.type.most)
            assert option.help and str(option.type) in option.help
            assert option.default is None or option.type(str(option.default)) == option.default


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("render s --out o --fps inf", "--fps: expected a number from 0.1 to 1000, got inf"),
        ("train --out o --learning-rate 1e308", "expected a number above 0 and up to 1, got 1e308"),
        ("views c --checkpoint tiny --out o --cfg-max 1e9", "--cfg-max: expected a number from 0 to 100"),
        ("views c --checkpoint tiny --out o --cfg-min nan", "--cfg-min: expected a number from 0 to 100"),
        ("views c --checkpoint tiny --out o --seed=--", "--seed: expected a value, got '--'"),
        ("views c --checkpoint tiny --out o --azimuths 1e300", "from -720 to 720, got 1e+300"),
        ("refine v --out s.safetensors --strength 0.5", "--strength would do nothing without --checkpoint"),
        ("refine v --out s.safetensors --rounds 4", "--rounds would do nothing without --checkpoint or --st"),
        ("refine v --out s.safetensors --stages 2 --rounds 4", "Three kinds are understood"),
        ("refine v --out s.safetensors --stages 2 --rounds 100 --steps 50", "at least 101 steps, one for"),
        (
            "refine v --out s.safetensors --sampling-steps 9 --dtype fp16",
            "--dtype, --sampling-steps would",
        ),
        ("train --out o --base tiny --decoder-steps 5", "--decoder-steps would do nothing with --base"),
        ("train --out o --data d --scenes 5", "--scenes would do nothing with --data"),
        ("curate v --out o --dry-run --size 32", "--size would do nothing with --dry-run"),
        ("demo --out o --options=--frmes=2", "unrecognized arguments: --frmes=2. See sv4d2 views --help"),
        ("demo --out o --options=--size=33", "divisible by"),
        ("demo --out o --options=--device=warp", "a device of this machine"),
        ("demo --out o --options='--out p'", "without input, --out and --checkpoint"),
        ("render s --out s", "apart from the input; s and s are the same or lie in one another"),
        ("render o/s --out o", "apart from the input"),
        ("export s --format dataset --out s/data", "apart from the input"),
        ("metrics a b --out b/report", "apart from the input"),
        ("metrics --methods x=o/a y=b --out o", "apart from the input"),
        ("train --data d --out d/training", "apart from the input"),
        ("refine v --out v/s.safetensors", "apart from the input"),
        ("convert tiny.safetensors tiny.safetensors", "apart from the input"),
    ],
)
def test_senseless_lines_are_refused_before_any_work(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_command_lines_end_in_one_short_message():
    assert campaign(cases=40, seed=0).total() == 40
