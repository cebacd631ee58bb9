"""ComfyUI loads this file; everything else is imported when ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension that lists our nodes."""
    from .nodes import SV4D2Extension

    return SV4D2Extension()
