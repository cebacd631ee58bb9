"""Lists of numbers on the command line, parted by blanks or commas."""

import pytest

from sv4d2_core.__main__ import build_parser


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
def test_what_is_no_list_of_numbers_is_named(words, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*words)
    assert message in capsys.readouterr().err
