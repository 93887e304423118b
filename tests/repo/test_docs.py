"""What the pages promise is there."""

import os
import re
import subprocess
import sys

import pytest
from source_tree import ROOT, relative

from oracle import packages

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(path):
    """The names that a browser gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{relative(page)} links to {target}"
        assert not anchor or anchor in anchors(path), f"{relative(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:csrc|python|tests|tools|docs|cmake|\.ci)/[\w./\-]+)`", page.read_text(encoding="utf-8"))
    if relative(page) != "CHANGELOG.md":
        assert not [name for name in named if not (ROOT / name).exists()]


def test_the_map_shows_every_room():
    page = (ROOT / "docs/map.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()]
    rooms += [path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("__")]
    assert not [room for room in rooms if f"{room}/" not in page]


def test_continuous_integration_runs_the_readme_s_test_command():
    assert "tools/test.sh" in "".join(blocks(README, "bash"))
    assert "tools/test.sh" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    for name in ("tools/test.sh", "tools/format.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), f"{name} can't be run"


def commands():
    """Every `halfbyte ...` line of the README's shell blocks, and of docs/."""
    shell = [block for page in PAGES for block in blocks(page.read_text(encoding="utf-8"), "bash")]
    lines = "\n".join(shell).splitlines()
    return sorted({match.group(1) for line in lines if (match := re.search(r"(?:^|&& |\$ )(halfbyte .+)", line))})


def test_there_are_commands():
    named = {command.split()[1] for command in commands()}
    assert {"generate", "chat", "encode", "info", "bench"} <= named


@pytest.mark.parametrize("command", commands())
def test_commands_and_their_options_exist(command):
    words = command.split(" #")[0].split()
    subcommand = [words[1]] if not words[1].startswith("-") else []
    done = subprocess.run(
        [sys.executable, "-m", "halfbyte", *subcommand, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    assert not [option for option in options if not re.search(rf"(?<!\S){option}\b", done.stdout)]


@pytest.mark.parametrize(
    ("language", "compiler", "standard"), [("c", ["gcc", "-x", "c"], "c11"), ("cpp", ["g++", "-x", "c++"], "c++17")]
)
def test_the_programs_of_the_embedding_page_run(language, compiler, standard, build, tmp_path):
    (source,) = blocks((ROOT / "docs/embedding.md").read_text(encoding="utf-8"), language)
    build.make("halfbyte_core")
    library = build.folder / "libhalfbyte_core.a"
    command = [*compiler, "-", "-x", "none", f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command += [
        f"-I{ROOT / 'csrc/include'}",
        str(library),
        "-lstdc++",
        "-lm",
        "-lpthread",
        "-o",
        str(tmp_path / "program"),
    ]
    subprocess.run(command, input=source, text=True, check=True)
    done = subprocess.run(
        [str(tmp_path / "program"), str(packages.smollm2())], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.split()[0] == "7042", "Paris"


def test_the_first_lines_of_the_readme_run(capsys):
    block = blocks(README, "python")[0]
    assert len(block.strip().splitlines()) <= 12
    exec(compile(block.replace("path/to/model", str(packages.smollm2())), "README.md", "exec"), {})
    assert "Paris" in capsys.readouterr().out
