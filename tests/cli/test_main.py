"""What all commands have in common."""

import pytest

import dynvid.__main__
from dynvid.cli import main
from tests.cli.helpers import refused


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "--nonsense"], "nonsense"),
        (["run", "--threshold", "much"], "much"),
        (["encode", "street.mp4"], "--model"),
        (["walk"], "walk"),
    ],
)
def test_unknown_arguments_are_refused_in_one_line(capsys, arguments, word):
    refused(capsys, arguments, word)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dynvid {dynvid.__version__}\n"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "run",
            "--model --task --head --pixels --names --conf --iou --classes --size --stride --save "
            "--no-video --no-inset --quiet --limits --system --settings --set --threshold "
            "--truncation --target --audit --max-frames --compare-dense --out SOURCE",
        ),
        (
            "tune",
            "--model --task --head --pixels --limits --target --frames --trials --seed SOURCE",
        ),
        ("explain", "--model --task --head --pixels --size --limits"),
        (
            "encode",
            "--levels --key-levels --group-of-pictures --block --dead-zone --key-dead-zone --stage "
            "--calibrate --max-frames --limits",
        ),
    ],
)
def test_help_names_every_option_and_gives_an_example(capsys, command, options):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for option in options.split():
        assert option in text
    assert f"\ndynvid {command} " in text
    assert text.count("(default: ") == len(options.split())


def test_module_runs_as_the_command():
    """`python -m dynvid` and the console script are the same function."""
    assert dynvid.__main__.main is main
