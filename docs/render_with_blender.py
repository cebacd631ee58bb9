"""For Blender: renders an animated GLB from all cameras of a rig, as a data set like D-NeRF's.

    blender --background --python-exit-code 1 --python docs/render_with_blender.py -- robot.glb robot_views
        [--animation Dance] [--frames 12] [--size 576] [--azimuths 0 60 120 180 240] [--elevations 0]

Azimuths and elevations are degrees, the input view first; a single elevation is that of all cameras. The
object's front is -y in Blender; the rig is placed so that all of it is in every picture at all times.
"""

import argparse
import json
import math
import sys
from pathlib import Path

RADIUS, FOV_DEG = 2.0, 33.8  # of SV3D's and SV4D's cameras
OBJECT_RADIUS = 0.55  # fits into every picture: RADIUS * sin(FOV / 2) is 0.58
TO_LIGHT = (0.45, -0.55, 0.8)  # fixed in the world: the upper right of the input camera


def camera_to_world(azimuth_deg, elevation_deg):
    """Return the rows of a 4 x 4 matrix; world +z up, camera axes x right, y up, z backward."""
    (ca, sa), (ce, se) = ((math.cos(x), math.sin(x)) for x in map(math.radians, (azimuth_deg, elevation_deg)))
    right, up, back = (ca, sa, 0.0), (-se * sa, se * ca, ce), (ce * sa, -ce * ca, se)
    return [[*row, RADIUS * row[2]] for row in zip(right, up, back, strict=True)] + [[0.0, 0.0, 0.0, 1.0]]


def transforms(matrices, n_frames, fps):
    """Return the content of ``transforms_train.json``: all cameras of every frame, times from 0 to 1."""
    last, grid = max(n_frames - 1, 1), [(t, v) for t in range(n_frames) for v in range(len(matrices))]
    keys = ("file_path", "time", "transform_matrix")
    frames = [(f"./frames/view_{v:02d}/{t:05d}", t / last, matrices[v]) for t, v in grid]
    frames = [dict(zip(keys, frame, strict=True)) for frame in frames]
    return {"camera_angle_x": math.radians(FOV_DEG), "fps": fps, "frames": frames}


def choose(owners, name):
    """Move everything as the animation of a name does, "" the file's first; return its frames' range."""
    # The importer stashes each animation as a muted track of its name, and plays the first.
    tracks = [(owner, track) for owner in owners for track in owner.nla_tracks]
    if name and name not in {track.name for _, track in tracks}:
        raise ValueError(f"Expected one of {sorted({track.name for _, track in tracks})}; got {name!r}.")
    for owner in owners if name else ():
        owner.action = None
    for owner, track in tracks:
        if track.name == name:
            owner.action = track.strips[0].action
            if hasattr(owner, "action_slot"):  # Blender 4.4 and newer
                owner.action_slot = track.strips[0].action_slot
    ranges = [owner.action.frame_range for owner in owners if owner.action] or [(0, 0)]
    return min(start for start, _ in ranges), max(end for _, end in ranges)


def main(words):
    """Render all frames from all cameras and write the transforms file last."""
    parser = argparse.ArgumentParser(prog="render_with_blender.py")
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--animation", default="", help="its name in the file, by default the first")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--size", type=int, default=576)
    parser.add_argument("--azimuths", type=float, nargs="+", default=[0, 60, 120, 180, 240])
    parser.add_argument("--elevations", type=float, nargs="+", default=[0])
    args = parser.parse_args(words)
    if not args.file.is_file():
        parser.error(f"Expected an animated GLB; there is no file {args.file}.")
    elevations = args.elevations * (len(args.azimuths) if len(args.elevations) == 1 else 1)
    matrices = [camera_to_world(*angles) for angles in zip(args.azimuths, elevations, strict=True)]

    import bpy
    import numpy as np
    from mathutils import Matrix, Vector

    if not hasattr(np, "bool"):
        np.bool = bool  # Debian's Blender 3.4 asks for what its numpy 1.24 has given up
    out = args.out.resolve()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=str(args.file.resolve()))
    scene, owners = bpy.context.scene, [*bpy.data.objects, *bpy.data.shape_keys]
    first, last = choose([owner.animation_data for owner in owners if owner.animation_data], args.animation)
    out.mkdir(parents=True)
    n_frames = args.frames if last > first else 1
    times = [first + (last - first) * t / max(n_frames - 1, 1) for t in range(n_frames)]

    # Where the object is at all times, for the place and size of the rig.
    points = []
    meshes = [thing for thing in scene.objects if thing.type == "MESH" and thing.visible_get()]
    for time in times:
        scene.frame_set(math.floor(time), subframe=time % 1)
        for thing in meshes:
            there = thing.evaluated_get(bpy.context.evaluated_depsgraph_get())
            vertices, matrix = there.to_mesh().vertices, np.array(there.matrix_world)
            local = np.empty(3 * len(vertices), np.float32)
            vertices.foreach_get("co", local)
            points.append(local.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3])
            there.to_mesh_clear()
    points = np.concatenate(points)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    scale = float(np.linalg.norm(points - centre, axis=1).max()) / OBJECT_RADIUS

    # Cycles needs no display; the colours are the file's own, not filmic.
    scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 64, False
    scene.render.resolution_x = scene.render.resolution_y = args.size
    scene.render.film_transparent, scene.view_settings.view_transform = True, "Standard"
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    scene.world = bpy.data.worlds.new("sky")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.5, 0.5, 0.5, 1.0)
    sun = bpy.data.objects.new("sun", bpy.data.lights.new("sun", "SUN"))
    sun.data.energy, sun.rotation_euler = 2.0, Vector(TO_LIGHT).to_track_quat("Z", "Y").to_euler()
    scene.camera = bpy.data.objects.new("rig", bpy.data.cameras.new("rig"))
    lens = scene.camera.data
    lens.angle, lens.clip_start, lens.clip_end = math.radians(FOV_DEG), scale, 3 * scale
    for thing in (sun, scene.camera):
        scene.collection.objects.link(thing)

    for t, time in enumerate(times):
        scene.frame_set(math.floor(time), subframe=time % 1)
        for v, matrix in enumerate(np.array(matrices)):
            matrix[:3, 3] = centre + scale * matrix[:3, 3]
            scene.camera.matrix_world = Matrix(matrix.tolist())
            scene.render.filepath = str(out / f"frames/view_{v:02d}/{t:05d}.png")
            bpy.ops.render.render(write_still=True)
    fps = (n_frames - 1) * scene.render.fps / (last - first) if n_frames > 1 else 8.0
    content = json.dumps(transforms(matrices, n_frames, fps), indent=1)
    (out / "transforms_train.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--") + 1 :])
