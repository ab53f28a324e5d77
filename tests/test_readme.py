"""README's examples run as they are printed."""

import pathlib
import re


def readme(pattern: str) -> list[str]:
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    return re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE)


def test_readme_examples_run():
    """The Python blocks of README are what a newcomer pastes first, one after the other."""
    names: dict = {}
    for block in readme(r"^```python\n(.*?)^```"):
        exec(compile(block, "README.md", "exec"), names)


def test_readme_first_block_is_two_commands():
    lines = [
        line
        for line in readme(r"^```sh\n(.*?)^```")[0].splitlines()
        if line and not line.startswith("#")
    ]
    assert len(lines) == 2
    assert lines[0].endswith("dynvid run")
    assert "pytest" in lines[1]
