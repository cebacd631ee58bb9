"""Real animated assets among the benchmark's scenes; their pictures come with the tests."""

from dataclasses import dataclass, replace
from pathlib import Path

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.clips import read_clips
from sv4d2_core.stored import read_json_object
from sv4d2_core.views import ViewGrid

ASSETS = Path(__file__).parents[1] / "data/assets"
ASSET_NAMES = ("robot",)


@dataclass(frozen=True)
class AssetScene:
    """An animated asset as far as it was rendered: true views of two rigs only, and no shape."""

    name: str

    @property
    def held_out(self) -> Cameras:
        """The cameras that a method is judged on, in place of the suite's `HELD_OUT`."""
        return read_set(self.name, "held_out").cameras

    def views(self, cameras: Cameras, size: int) -> ViewGrid:
        """Return the true views at the frame times; ValueError for cameras that were not rendered."""
        for kind in ("train", "held_out"):
            grid = read_set(self.name, kind)
            if grid.cameras == cameras and size <= grid.images.shape[2]:
                return grid.resized(size)
        raise ValueError(
            f"Expected the cameras of {self.name}'s training or held-out views and at most 64 pixels; got "
            f"azimuths {cameras.azimuths_deg} and {size}. Leave {self.name} out, or use --rig sv4d2."
        )

    def between(self, cameras: Cameras, size: int) -> ViewGrid:
        """Return the true held-out views half-way between the frames."""
        grid = read_set(self.name, "held_out_between")
        if grid.cameras != cameras:
            raise ValueError(f"Expected the held-out cameras of {self.name}; got {cameras.azimuths_deg}.")
        return grid.resized(size)


def read_set(name: str, kind: str) -> ViewGrid:
    """Return the views of an asset: ``train``, ``held_out`` or ``held_out_between``."""
    folder = ASSETS / name / kind
    stored = read_json_object(folder / "cameras.json", "cameras")
    return replace(read_clips(folder, Cameras.from_json(stored)), times=stored.times("times"))
