"""The source tree, read as text: what the tests of this folder share."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"

_COMMENT_OR_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def sources(folder: Path = CSRC) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".h", ".hpp", ".cpp", ".cuh", ".cu", ".c"})


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code(path: Path) -> str:
    """The text without comments; texts in quotes are left empty, except those of #include."""

    def keep_lines(match: re.Match[str]) -> str:
        start = match.string.rfind("\n", 0, match.start()) + 1
        if match.string[start : match.start()].lstrip().startswith("#"):
            return match.group() if match.group()[0] == '"' else ""
        return ('""' if match.group()[0] in 'R"' else "") + "\n" * match.group().count("\n")

    return _COMMENT_OR_TEXT.sub(keep_lines, path.read_text(encoding="utf-8"))


def texts(path: Path) -> str:
    """The code with its quoted texts, without comments."""
    return _COMMENT_OR_TEXT.sub(
        lambda match: "\n" * match.group().count("\n") if match.group()[0] == "/" else match.group(),
        path.read_text(encoding="utf-8"),
    )


def includes(path: Path) -> list[str]:
    """Files of this project that it includes, relative to csrc/ ("simd.h": beside the instruction set)."""
    return re.findall(r'^\s*#\s*include\s*"([^"]+)"', code(path), re.MULTILINE)


def found(pattern: str, text: str) -> list[str]:
    """Every line that matches, with its number."""
    expression = re.compile(pattern)
    return [f"{n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if expression.search(line)]
