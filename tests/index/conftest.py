"""A tiny model, and a folder with something of everything."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

COLOURS = ("red", "green", "blue", "orange", "purple", "grey")


@pytest.fixture(scope="session")
def model(thinking):
    return thinking()


@pytest.fixture
def embedded(model, monkeypatch):
    """The inputs that the model was given since the test began."""
    inputs = []
    explain = type(model).explain

    def spy(self, values, **options):
        found = explain(self, values, **options)
        inputs.extend(values)
        return found

    monkeypatch.setattr(type(model), "explain", spy)
    return inputs


def pdf_bytes(*texts):
    """A PDF with a page for each text."""
    pages = range(3, 3 + 2 * len(texts), 2)
    kids = " ".join(f"{page} 0 R" for page in pages)
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Count {len(texts)}/Kids[{kids}]>>"]
    for page, text in zip(pages, texts, strict=True):
        font = "<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents {page + 1} 0 R/Resources{font}>>")
        drawn = f"BT /F 12 Tf 5 20 Td ({text}) Tj ET"
        objects.append(f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream")
    body, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj{one}endobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    trailer = f"trailer<</Size {size}/Root 1 0 R>>\nstartxref\n{len(body)}\n%%EOF"
    return body + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


def write_video(path, colours):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for colour in colours:
            frame = np.asarray(Image.new("RGB", (64, 64), colour))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def media(tmp_path):
    """Six pictures, a video, a PDF of two pages, and a text."""
    folder = tmp_path / "media"
    (folder / "colours").mkdir(parents=True)
    for colour in COLOURS:
        Image.new("RGB", (64, 48), colour).save(folder / "colours" / f"{colour}.png")
    write_video(folder / "clip.mp4", ["red"] * 4 + ["blue"] * 4)
    (folder / "report.pdf").write_bytes(pdf_bytes("The harbour of Lima", "Mountains"))
    (folder / "it's a note.txt").write_text("Rain in the evening", encoding="utf-8")
    return folder
