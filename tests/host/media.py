"""What the tests feed to ComfyUI: untrained checkpoints, and clips of the procedural world."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of the host's RenderSplat; sharper than 1 is not what was fitted.
SPLAT_LOOK = dict(splat_scale=1.0, sharpen=1.0, headlight_shading=0.0, opacity_threshold=0.0)
SPLAT_LOOK |= dict(render_style="color", background="#FFFFFF")
_REPOSITORY = Path(__file__).parent.parent.parent
_SIZE = 64
_N_FRAMES = 12
_FPS = 8.0
_SIZE_OF_VIEWS = 32
_N_FRAMES_OF_VIEWS = 3


def core(name: str) -> Any:
    """Return a module of `sv4d2_core`, imported without the repository on sys.path."""
    if "sv4d2_core" not in sys.modules:
        folder = _REPOSITORY / "sv4d2_core"
        spec = importlib.util.spec_from_file_location(
            "sv4d2_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules["sv4d2_core"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["sv4d2_core"])
    return importlib.import_module(f"sv4d2_core.{name}")


def random_checkpoint() -> Any:
    """Return the module of the benchmarks that writes checkpoints of random weights."""
    core("diffusion.checkpoint")  # which it imports
    file = _REPOSITORY / "tests" / "bench" / "random_checkpoint.py"
    spec = importlib.util.spec_from_file_location("sv4d2_random_checkpoint", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def micro_config(n_frames: int = 3, n_views: int = 2, vae_levels: int = 2) -> Any:
    """Return the sizes of a two-level model whose forward pass takes milliseconds.

    With two levels of the VAE latents have half the size of the images, with four an eighth.
    """
    config = core("diffusion.config")
    return config.ModelConfig(
        variant="sv4d2_8views" if n_views == 8 else "sv4d2",
        n_frames=n_frames,
        n_views=n_views,
        vector_dims=(32, 48, 48),
        size=32,
        trained=False,
        unet=config.UNetConfig(
            view_mixing="view",
            base=32,
            multipliers=(1, 2),
            res_blocks=1,
            attention_levels=1,
            head_channels=16,
            context_dim=48,
            vector_dim=128,
        ),
        vae=config.VAEConfig(base=32, multipliers=(1, 2, 2, 2)[:vae_levels], res_blocks=1),
        clip=config.CLIPVisionConfig(
            width=64, layers=1, head_width=32, mlp_width=64, patch=28, image_size=56, embed_dim=48
        ),
    )


def write_micro_checkpoint(path: Path, *sizes: int) -> Path:
    """Write an untrained checkpoint of `micro_config` in the official layout and return its path."""
    return random_checkpoint().write_random_checkpoint(path, micro_config(*sizes), seed=3)


def drawn_window(config: Any, size: int, halves: int = 1) -> tuple[Any, dict[str, Any]]:
    """Return noise [halves * T * V, 4, size, size] and the conditions of a window's network, all drawn."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=generator)

    t, v, side = halves * config.n_frames, halves * config.n_views, (4, size, size)
    conds = {
        "frames": draw(t, *side),
        "c_crossattn": draw(halves, config.n_frames, config.unet.context_dim),
        "y": draw(v, config.unet.vector_dim),
        "references": draw(v, *side),
    }
    return draw(t * config.n_views, *side), conds


def write_other_model(path: Path) -> None:
    """Write a few weights by which ComfyUI takes the file for a very small Stable Diffusion 3."""
    import torch
    from safetensors.torch import save_file

    width = 64
    shapes = {
        "x_embedder.proj.weight": (width, 16, 2, 2),
        "y_embedder.mlp.0.weight": (width, 2048),
        "context_embedder.weight": (width, 4096),
        "pos_embed": (1, 4, width),
        "joint_blocks.0.context_block.attn.qkv.weight": (3 * width, width),
        "final_layer.linear.weight": (64, width),
    }
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)


def moving_block(core: Callable[[str], Any], colour: tuple[float, float, float], fps: float) -> Any:
    """Return a scene of a block that moves along x by a sixteenth of its box per frame, three frames long."""
    import torch

    config = core("scene.config").RefineConfig(
        features=2, plane_sizes=(4, 8), hidden=8, samples=48, hull_size=16
    )
    cells = torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    for t in range(3):
        cells[t, 4:12, 4:12, 3 + t : 11 + t] = True
    box = torch.tensor([[-0.4] * 3, [0.4] * 3])
    cameras = core("cameras").Cameras((0, 0), (0, 100))
    occupancy = core("scene.geometry.hull").Occupancy(cells, box)
    scene = core("scene.dynerf.dynerf").DyNeRF(occupancy, cameras, fps, (0.0, 0.5, 1.0), config)
    decoder = scene.field.field.decoder
    with torch.no_grad():
        for parameter in scene.field.parameters():
            parameter.zero_()
        decoder.density.bias.fill_(1 + torch.tensor(200.0 / decoder.density_scale).expm1().log())
        decoder.colour[2].bias.copy_(torch.tensor(colour).logit())
    return scene


def still_gaussians(
    core: Callable[[str], Any], means: Any, scale: float, colours: Any, cameras: Any, fps: float
) -> Any:
    """Return a scene of Gaussians at means [N, 3] in colours [N, 3], still, three frames long."""
    import torch

    gaussians = core("scene.gaussians.gaussians")
    canonical = gaussians.CanonicalGaussians(means, scale, 0.9, colours)
    config = core("scene.config").GaussiansConfig(count=len(means), features=4, plane_sizes=(8,), hidden=8)
    box = torch.tensor([[-0.6] * 3, [0.6] * 3])
    return gaussians.Gaussians(canonical, box, (1e-3, 0.1), cameras, fps, (0.0, 0.5, 1.0), config)


def write_media(folder: Path) -> None:
    """Write a clip on white, a wide one, one on a grey scene with its mask as a video, views, and a scene."""
    import torch

    write_video = core("video.write").write_video
    views = core("world.render").render_views(
        core("world.body").make_creature(5), core("cameras").Cameras.default(4), _N_FRAMES, _SIZE, _FPS
    )
    few = views.at_frames(range(_N_FRAMES_OF_VIEWS)).resized(_SIZE_OF_VIEWS)
    core("data.views_folder").write_views(folder / "creature", few)
    moving_block(core, (0.8, 0.4, 0.2), 1.0).save(folder / "block.safetensors")
    clip, masks = views.images[:, 0], views.masks[:, 0]
    write_video(folder / "clip.mp4", clip, _FPS)
    wide = torch.ones(_N_FRAMES, _SIZE, 2 * _SIZE, 3)
    wide[:, :, _SIZE // 2 : _SIZE // 2 + _SIZE] = clip
    write_video(folder / "wide.mp4", wide, _FPS)
    scene = torch.linspace(0.2, 0.6, _SIZE).expand(_N_FRAMES, _SIZE, _SIZE)[..., None]
    alpha = masks[..., None]
    write_video(folder / "footage.mp4", clip * alpha + scene * (1 - alpha), _FPS)
    write_video(folder / "mask.mp4", alpha.expand(-1, -1, -1, 3), _FPS)
