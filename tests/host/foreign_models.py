"""Prints what small models of other makers sample in ComfyUI, first without our pack and then with it.

usage: foreign_models.py <ComfyUI's folder> <our folder>. A line per model: WITHOUT or WITH, the family it is
of, the family that ComfyUI takes it for, and a hash of the sampled latents.
"""

import asyncio
import hashlib
import sys

comfyui, pack = sys.argv[1:]
sys.path.insert(0, comfyui)
from comfy.cli_args import args

args.cpu = True

import comfy.model_detection as detection
import comfy.ops
import comfy.sd
import comfy.supported_models as supported
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

import nodes

torch.set_num_threads(1)

# A prime number of them, so that the rows of a weight differ.
DRAWN = 0.05 * torch.randn(999_983, generator=torch.Generator().manual_seed(0))


def keys_of_unet(**sizes):
    """Return the tensors of a UNet without their contents."""
    sizes |= dict(image_size=32, model_channels=320, out_channels=4, transformer_depth_middle=1, legacy=False)
    sizes |= dict(use_spatial_transformer=True, num_head_channels=64)
    return UNetModel(**sizes, device="meta", operations=comfy.ops.disable_weight_init).state_dict()


def keys_of_video_unet(vector_dim):
    """Return the tensors of a video UNet that is as deep as the official ones; the host asks for that."""
    return keys_of_unet(
        in_channels=8,
        context_dim=1024,
        num_classes="sequential",
        adm_in_channels=vector_dim,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 1, 1, 1],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        use_linear_in_transformer=True,
        extra_ff_mix_layer=True,
        use_spatial_context=True,
        merge_strategy="learned_with_images",
        merge_factor=0.0,
        video_kernel_size=[3, 1, 1],
        use_temporal_resblock=True,
        use_temporal_attention=True,
        disable_temporal_crossattention=False,
    )


def keys(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


# Enough of each family's tensors that the host knows it and its sizes; older hosts take Flux for 3072 wide.
FAMILIES = {
    "SD15": keys_of_unet(
        in_channels=4,
        context_dim=768,
        num_res_blocks=[1],
        channel_mult=[1],
        transformer_depth=[1],
        transformer_depth_output=[1, 1],
        use_linear_in_transformer=False,
    ),
    "SVD_img2vid": keys_of_video_unet(768),
    "SV3D_u": keys_of_video_unet(256),
    "SV3D_p": keys_of_video_unet(1280),
    "SD3": keys(
        {
            "x_embedder.proj.weight": (64, 16, 2, 2),
            "y_embedder.mlp.0.weight": (64, 2048),
            "context_embedder.weight": (64, 4096),
            "pos_embed": (1, 16, 64),
            "joint_blocks.0.context_block.attn.qkv.weight": (192, 64),
            "final_layer.linear.weight": (64, 64),
        }
    ),
    "Flux": keys(
        {
            "img_in.weight": (3072, 64),
            "txt_in.weight": (3072, 4096),
            "vector_in.in_layer.weight": (3072, 768),
            "guidance_in.in_layer.weight": (3072, 256),
            "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
        }
    ),
    "WAN21_T2V": keys(
        {
            "head.modulation": (1, 2, 128),
            "head.head.weight": (64, 128),
            "patch_embedding.weight": (128, 16, 1, 2, 2),
            "blocks.0.ffn.0.weight": (128, 128),
        }
    ),
}


def drawn_weights(known):
    """Return all weights of the network that the host builds for some of its tensors."""
    network = detection.model_config_from_unet(known, "").get_model(known, "", device="meta").diffusion_model
    weights = {}
    for key, tensor in network.state_dict().items():
        n = tensor.numel()
        weights[key] = DRAWN.repeat(n // len(DRAWN) + 1)[:n].reshape(tensor.shape).bfloat16()
    return weights


def sampled(patcher):
    """Return latents after a step of the host's KSampler."""
    sizes, latents = patcher.model.model_config.unet_config, patcher.model.latent_format
    video = (1, latents.latent_channels, 1, 8, 8)
    shape = video if latents.latent_dimensions == 3 else (3, latents.latent_channels, 8, 8)
    pooled = sizes.get("vec_in_dim") or sizes.get("adm_in_channels") or 1
    more = {"pooled_output": torch.ones(1, pooled), "concat_latent_image": torch.ones(3, 4, 8, 8)}
    cond = [[torch.ones(1, 4, sizes.get("context_dim") or 4096), more]]
    noise = {"samples": torch.zeros(shape)}
    with torch.inference_mode():
        return nodes.KSampler().sample(patcher, 1, 1, 1.0, "euler", "simple", cond, cond, noise)[0]["samples"]


def run(label):
    for family, known in FAMILIES.items():
        patcher = comfy.sd.load_diffusion_model_state_dict(drawn_weights(dict(known)))
        latents = sampled(patcher)
        assert latents.isfinite().all() and latents.std() > 0.1, family
        found = type(patcher.model.model_config).__name__
        print(label, family, found, hashlib.sha256(latents.numpy().tobytes()).hexdigest())


run("WITHOUT")
assert asyncio.run(nodes.load_custom_node(pack))
assert supported.models[0].__name__ == "SV4D2"
run("WITH")
