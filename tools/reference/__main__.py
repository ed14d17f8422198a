"""``python -m tools.reference`` writes the page anew, from the repository's root or elsewhere."""

from pathlib import Path

from tools.reference.page import page

FILE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "config.md"

if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(page(), encoding="utf-8")
    print(f"written: {FILE}")
