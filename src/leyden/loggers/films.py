"""Films: one frame per logged step in `samples/<name>/step-<step>.png`, and all frames in `samples/<name>.gif`.

A film is rendered from the frames on disk, so the film of a resumed run also has the earlier frames.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leyden.figures.image_files import open_image
from leyden.files import write_atomically

FRAMES = "step-" + "[0-9]" * 9 + ".png"
MAX_FRAMES = 100  # frames of a GIF; longer films are thinned out evenly
SECONDS = 6.0  # duration of a film, unless a frame would be shown for less than 1/20 s or more than 1/2 s
LAST_SECONDS = 2.0  # duration of the last frame


def gif_path(run_dir: Path, name: str) -> Path:
    """Return the path of the film `name`."""
    return run_dir / "samples" / f"{name}.gif"


def write_png(path: Path, pixels: np.ndarray, description: str) -> None:
    """Write uint8 pixels (H, W) or (H, W, 3) atomically to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info, file = PngInfo(), BytesIO()
    info.add_itxt("Description", description)
    Image.fromarray(pixels).save(file, format="png", pnginfo=info)
    write_atomically(path, file.getvalue())


def add_frame(run_dir: Path, name: str, pixels: np.ndarray, step: int) -> None:
    """Add a frame, and render the GIF again; a long GIF is rendered only when it has grown by a tenth."""
    path = gif_path(run_dir, name)
    write_png(path.with_suffix("") / f"step-{step:09d}.png", pixels, f"{name} at step {step}")
    count = len(_frames(path))
    if count % max(1, count // 10) == 0:  # rendering 100 frames takes a second
        render(path)


def truncate(run_dir: Path, step: int) -> None:
    """Drop the frames of steps after `step`."""
    late_frames = [path for path in (run_dir / "samples").rglob(FRAMES) if int(path.stem.removeprefix("step-")) > step]
    for path in late_frames:
        path.unlink()
    for folder in {path.parent for path in late_frames}:
        render(folder.with_name(folder.name + ".gif"))


def render(path: Path) -> None:
    """Render the GIF at `path` from its frames; remove it if there are none."""
    frames = _frames(path)
    if not frames:
        path.unlink(missing_ok=True)
        return
    indices = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int)
    first, *others = (_with_256_colors(frames[k]) for k in indices)
    milliseconds = [int(1000 * min(0.5, max(0.05, SECONDS / len(indices))))] * len(others) + [int(1000 * LAST_SECONDS)]
    file = BytesIO()
    first.save(file, format="gif", save_all=True, append_images=others, duration=milliseconds, loop=0)
    write_atomically(path, file.getvalue())


def _frames(path: Path) -> list[Path]:
    return sorted(path.with_suffix("").glob(FRAMES))


def _with_256_colors(path: Path) -> Image.Image:
    with open_image(path) as frame:
        if frame.mode == "L":
            return frame.copy()
        return frame.quantize(method=Image.Quantize.FASTOCTREE)  # takes a tenth of the default method's time
