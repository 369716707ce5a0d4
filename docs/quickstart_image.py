"""Put the contact sheets of `lbgen quickstart` side by side: docs/images/quickstart.jpg.

lbgen quickstart --out lbgen-quickstart
python docs/quickstart_image.py lbgen-quickstart
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TITLES = {"-base": "base model", "": "lbGen", "-context-swap": "lbGen, context-swap alignment"}
MARGIN, HEADING = 24, 40


def main(out: Path) -> None:
    sheets = {title: Image.open(out.with_name(out.name + end) / "contact_sheet.jpg") for end, title in TITLES.items()}
    width, height = next(iter(sheets.values())).size
    page = Image.new("RGB", (len(sheets) * (width + MARGIN) - MARGIN, height + HEADING), "white")
    for column, (title, sheet) in enumerate(sheets.items()):
        left = column * (width + MARGIN)
        page.paste(sheet, (left, HEADING))
        ImageDraw.Draw(page).text((left + 4, 8), title, fill="black", font=ImageFont.load_default(22))
    page.thumbnail((1600, 1600))
    page.save(Path(__file__).parent / "images" / "quickstart.jpg", quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
