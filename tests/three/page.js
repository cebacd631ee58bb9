// Shows a GLB at a time from a given camera, with what three.js brings and nothing of ours in between.
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

const NEAR = 0.01, FAR = 100;
const renderer = new THREE.WebGLRenderer({ alpha: true, antialias: false });
const files = new Map();

async function load(url) {
  if (!files.has(url)) files.set(url, await new GLTFLoader().loadAsync(url));
  return files.get(url);
}

// intrinsics: rows of K in pixels; c2w: rows, OpenGL camera axes.
function makeCamera({ intrinsics, c2w, size }) {
  const [[fx, , cx], [, fy, cy]] = intrinsics;
  const camera = new THREE.Camera();
  camera.projectionMatrix.set(
    2 * fx / size, 0, 1 - 2 * cx / size, 0,
    0, 2 * fy / size, 2 * cy / size - 1, 0,
    0, 0, -(FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR),
    0, 0, -1, 0);
  camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
  new THREE.Matrix4().set(...c2w.flat()).decompose(camera.position, camera.quaternion, camera.scale);
  return camera;
}

// Returns the picture as a data URL and what the loader made of the animations.
window.show = async (shot) => {
  const gltf = await load(shot.url);
  const mixer = new THREE.AnimationMixer(gltf.scene);
  for (const clip of gltf.animations) {
    const action = mixer.clipAction(clip).setLoop(THREE.LoopOnce);
    action.clampWhenFinished = true;
    action.play();
  }
  mixer.setTime(shot.seconds);
  const scene = new THREE.Scene();
  scene.add(gltf.scene);
  renderer.setSize(shot.size, shot.size, false);
  renderer.setClearColor(0x000000, 0);
  renderer.render(scene, makeCamera(shot));
  const animations = gltf.animations.map(({ name, duration, tracks }) => ({ name, duration, tracks: tracks.length }));
  return { animations, picture: renderer.domElement.toDataURL("image/png") };
};
window.ready = true;
