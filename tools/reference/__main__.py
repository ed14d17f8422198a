"""``python -m tools.reference`` writes the pages of ``docs/reference/``, from any working directory."""

from pathlib import Path

from tools.reference.names import names_page
from tools.reference.page import page

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGES = {"config.md": page, "python.md": names_page}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, make_page in PAGES.items():
        (FOLDER / name).write_text(make_page(), encoding="utf-8")
        print(f"written: {FOLDER / name}")
