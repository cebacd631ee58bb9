import json, copy, time
from pathlib import Path

D = Path("/work/main/tests/data/prompts")


def base(settings, **kw):
    g = json.loads((D / "01 novel views from a video.json").read_text())
    for n in g.values():
        for k, v in settings.get(n["class_type"], {}).items():
            n["inputs"][k] = v
    return g


def num(g, k):
    return next(i for i, n in g.items() if n["class_type"] == k)


def test_x(server, tiny_settings):
    st = tiny_settings("01")

    def go(name, f, timeout=120):
        g = base(st)
        f(g)
        t = time.time()
        try:
            o = server.prompt(g, timeout)
            print(
                "##",
                name,
                "|",
                o.status,
                "|",
                round(time.time() - t, 2),
                "|",
                [e.data.get("exception_type") for e in o.events if e.kind == "execution_error"],
                "|",
                o.message,
            )
        except Exception as e:
            print("##", name, "EXC", e)

    def inp(g, k):
        return g[num(g, k)]["inputs"]

    def sampler(g):
        return inp(g, "SV4D2Sampler")

    def add(g, i, t, **k):
        g[i] = {"class_type": t, "inputs": k}

    def wrong_model(g):
        add(g, "90", "UNETLoader", unet_name="other.safetensors", weight_dtype="default")
        sampler(g)["model"] = ["90", 0]

    go("other model", wrong_model)

    def wrong_file(g):
        add(g, "90", "SV4D2UNETLoader", unet_name="other.safetensors", variant="auto", weight_dtype="default")
        sampler(g)["model"] = ["90", 0]

    go("other file in unet loader", wrong_file)

    def stock_unet(g):
        add(g, "90", "UNETLoader", unet_name="sv4d2_unet.safetensors", weight_dtype="default")
        sampler(g)["model"] = ["90", 0]

    go("stock unet loader", stock_unet)

    def ring3(g):
        inp(g, "SV4D2CameraOrbit").update(preset="ring", n_views=3)

    go("ring 3", ring3)

    def eight(g):
        inp(g, "SV4D2CameraOrbit").update(preset="8 views (sv4d2_8views)")

    go("eight cameras on 4 view", eight)

    def four_on8(g):
        inp(g, "SV4D2CheckpointLoader").update(ckpt_name="sv4d2_8views.safetensors")

    go("four cameras on 8 view", four_on8)

    def one(g):
        inp(g, "SV4D2PrepareClip").update(frames=1)

    go("one frame", one)

    def many(g):
        add(g, "90", "GetVideoComponents", video=[num(g, "LoadVideo"), 0])
        add(g, "91", "RepeatImageBatch", image=["90", 0], amount=42)
        inp(g, "SV4D2PrepareClip").update(clip=["91", 0], frames=500)
        sampler(g).update(steps=1)

    go("500 frames", many, 300)

    def wide(g):
        inp(g, "LoadVideo").update(file="wide.mp4")

    go("wide", wide)

    def direct(w, h, b=3):
        def f(g):
            add(g, "90", "EmptyImage", width=w, height=h, batch_size=b, color=0xFF0000)
            s = sampler(g)
            s["clip"] = ["90", 0]
            s.pop("mask")
            s["fps"] = 8.0

        return f

    go("non square direct", direct(64, 32))
    go("odd size direct", direct(40, 40))
    go("30", direct(30, 30))

    def rgba(g):
        add(g, "90", "GetVideoComponents", video=[num(g, "LoadVideo"), 0])
        add(g, "92", "SolidMask", value=0.0, width=64, height=64)
        add(g, "91", "JoinImageWithAlpha", image=["90", 0], alpha=["92", 0])
        inp(g, "SV4D2PrepareClip").update(clip=["91", 0])

    go("rgba prepare", rgba)

    def rgba_direct(g):
        rgba(g)
        s = sampler(g)
        s["clip"] = ["91", 0]
        s.pop("mask")

    go("rgba direct", rgba_direct)

    def mask(v, w, h):
        def f(g):
            add(g, "90", "SolidMask", value=v, width=w, height=h)
            inp(g, "SV4D2PrepareClip").update(mask=["90", 0])

        return f

    go("mask other size", mask(1.0, 16, 20))
    go("empty mask", mask(0.0, 64, 64))
    go("full mask", mask(1.0, 64, 64))

    def mixed(g):
        add(g, "90", "EmptyImage", width=64, height=64, batch_size=7, color=0xFFFFFF)
        add(g, "91", "ImageToMask", image=["90", 0], channel="red")
        inp(g, "SV4D2PrepareClip").update(mask=["91", 0])

    go("7 masks for 12 frames", mixed)

    def mixed2(g):
        add(g, "90", "SolidMask", value=1.0, width=32, height=32)
        sampler(g).update(mask=["90", 0])

    go("sampler mask 1", mixed2)

    def refs(g):
        add(g, "90", "EmptyImage", width=32, height=32, batch_size=3, color=0xFFFFFF)
        sampler(g).update(reference_views=["90", 0])

    go("3 reference views", refs)

    def size(n):
        def f(g):
            inp(g, "SV4D2PrepareClip").update(size=n)

        return f

    go("size 33", size(33))
    go("size 40", size(40))
    go("size 24", size(24))

    def blank(g):
        add(g, "90", "EmptyImage", width=64, height=64, batch_size=5, color=0xFFFFFF)
        inp(g, "SV4D2PrepareClip").update(clip=["90", 0])

    go("blank clip", blank)

    def startbeyond(g):
        inp(g, "SV4D2PrepareClip").update(start=50)

    go("start beyond", startbeyond)

    def den(g):
        sampler(g).update(denoise=0.5)

    go("denoise without init", den)

    def badlist(g):
        inp(g, "SV4D2CameraOrbit").update(preset="custom", azimuths_deg="60, abc")

    go("bad list", badlist)

    def lv(g):
        add(g, "90", "SV4D2LoadViews", folder="../../etc")
        inp(g, "SV4D2ViewsGridVideo").update(views=["90", 0])

    go("load views outside", lv)

    def lv2(g):
        add(g, "90", "SV4D2LoadViews", folder="sv4d2/nothing")
        inp(g, "SV4D2ViewsGridVideo").update(views=["90", 0])

    go("load views nothing", lv2)
    # interrupt
    g = base(st)
    inp(g, "SV4D2PrepareClip").update(frames=12)
    sampler(g).update(steps=40, seed=777)
    s = num(g, "SV4D2Sampler")
    o = server.prompt(
        g, 120, lambda e: e.kind == "progress" and e.data["node"] == s and e.data["value"] >= 90
    )
    p = o.progress(s)
    print("##INT", o.status, o.interrupt_seconds, p[:1], p[-1:], len(p))
    t = time.time()
    o = server.prompt(g, 120)
    p = o.progress(s)
    print("##RE", o.status, p[:3], p[-1:], len(p), o.cached_nodes, time.time() - t, o.message)
    print(server.log[-3000:])
    print(server.get("/system_stats")["system"]["comfyui_version"])
