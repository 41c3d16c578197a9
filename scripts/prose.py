"""Measure the prose: words a sentence, long sentences, semicolons, and idioms that are hard for readers with other first languages.

python scripts/prose.py            # the table; exit status 1 if a page misses its limits
python scripts/prose.py --idioms   # every line with an idiom
"""

import argparse
import re
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md")
SOURCES = ("src/**/*.py", "scripts/*.py", "examples/*.py", "conf/**/*.yaml")

LONGEST_MEAN, LONG, MOST_LONG, MOST_SEMICOLONS, MOST_IDIOMS, WIDEST = 18, 35, 0.05, 0.5, 2, 120
"""Words a sentence; words of a long sentence; share of these; semicolons in 100 words; uses of an idiom; characters a line."""

IDIOMS = {
    "go on": r"\b(go|goes|going|went) on\b",
    "beside": r"\bbeside\b",
    "stand": r"\bstands?\b(?! for\b)",
    "of its own": r"\bof (its|their|one's|your) own\b",
    "in place of": r"\bin place of\b",
    "where there is": r"\bwhere there (is|are)\b",
    "lie": r"\b(lies|lie|lay)\b",
    "fell": r"\b(fell|felled)\b",
    "spare": r"\bspared?\b",
    "flatter": r"\bflatters?\b",
    "hand in": r"\bhand(s|ed)? (in|on)\b",
    "mend": r"\bmend(s|ed)?\b",
}


def plain(page: str) -> str:
    """The running text of a Markdown page, without code, tables, headings, formulas and targets of links."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    page = re.sub(r"\$\$.*?\$\$|<!--.*?-->", "", page, flags=re.S)
    lines = [line for line in page.splitlines() if not line.lstrip().startswith(("|", "#", "!["))]
    lines = [re.sub(r"^\s*([-*]|\d+\.)\s+", "\n", line) for line in lines]  # an item counts as a paragraph
    text = "\n".join(lines)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`]*`", "code", text)


def sentences(text: str) -> list[list[str]]:
    """The sentences of running text as lists of words. An abbreviation does not end a sentence."""
    text = re.sub(r"\b(e\.g|i\.e|et al|cf|vs)\.", r"\1", text)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?:])[)\"']?\s+(?=[A-Z(\"'`*]|code)", " ".join(paragraph.split())):
            words = re.findall(r"[^\W_][\w'’.,/×-]*", sentence)
            if words:
                found.append(words)
    return found


def comments(source: str) -> str:
    """The comments and quoted text of a source."""
    return "\n".join(re.findall(r'#[^\n]*|"""(?:.*?)"""|"[^"\n]*"', source, flags=re.S))


def measure(page: str) -> dict[str, float]:
    """Statistics of a Markdown page: sentences, mean words, share of long ones, semicolons in 100 words, wide lines."""
    text = plain(page)
    lengths = [len(words) for words in sentences(text)] or [0]
    total = max(1, sum(lengths))
    prose = [line for line in re.sub(r"^```.*?^```|\$\$.*?\$\$", "", page, flags=re.M | re.S).splitlines() if not line.startswith("|")]
    return {
        "sentences": len(lengths),
        "words": mean(lengths),
        "long": sum(length > LONG for length in lengths) / len(lengths),
        "semicolons": 100 * text.count(";") / total,
        "wide": sum(len(line) > WIDEST and "http" not in line for line in prose),
    }


def files(patterns: tuple[str, ...]) -> list[Path]:
    """The files that match the patterns, without generated files."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if "__pycache__" not in path.parts}
    return sorted(found - {Path(__file__).resolve()})  # this file lists the idioms


def main() -> int:
    """Print the tables. Return 1 if something is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idioms", action="store_true", help="print every line with an idiom")
    arguments = parser.parse_args()
    failed = False
    print(f"{'page':32}{'sentences':>10}{'words':>8}{'long':>8}{'; in 100':>10}{'wide':>6}")
    for path in files(PAGES):
        found = measure(path.read_text(encoding="utf-8"))
        over = found["words"] > LONGEST_MEAN or found["long"] > MOST_LONG or found["semicolons"] >= MOST_SEMICOLONS or found["wide"] > 0
        failed |= over
        numbers = f"{found['sentences']:>10}{found['words']:>8.1f}{found['long']:>8.1%}{found['semicolons']:>10.2f}{found['wide']:>6}"
        print(f"{path.relative_to(ROOT)!s:32}{numbers}{'  over a limit' if over else ''}")
    texts = {path: path.read_text(encoding="utf-8") for path in files(PAGES + SOURCES)}
    said = {path: text if path.suffix == ".md" else comments(text) for path, text in texts.items()}
    print(f"\n{'idiom':32}{'uses':>10}")
    for name, pattern in IDIOMS.items():
        hits = [(path, line.strip()) for path, text in said.items() for line in text.splitlines() if re.search(pattern, line, re.I)]
        failed |= len(hits) > MOST_IDIOMS
        print(f"{name:32}{len(hits):>10}{'  over a limit' if len(hits) > MOST_IDIOMS else ''}")
        if arguments.idioms:
            print(*(f"    {path.relative_to(ROOT)}: {line}" for path, line in hits), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
