// Runs a prompt in ComfyUI's page whose last node shows a 3D file, plays it, and takes pictures of the viewer.
//
// usage: node viewer.js <job.json>, where job.json holds
//   {url, newNodes, chromium, profile, prompt, node, still: [files], moving: [files], every_ms, page: file}
// prompt is in the API's format, node the number of the viewer in it.
// Prints one JSON object: {status, message}.
"use strict";

const fs = require("fs");
const { openPage, RUN_MS } = require("./shot.js");

// Of the canvas, without the controls that lie on its edges.
const MIDDLE = { left: 0.15, top: 0.25, width: 0.7, height: 0.5 };
const LOADED_MS = 3000;

async function run(page, job) {
  await page.evaluate(async ({ prompt, node }) => {
    await app.loadApiJson(prompt, "viewer");
    const viewer = app.graph.getNodeById(node);
    viewer.pos = [0, 0];
    viewer.setSize([700, 800]);
    for (const other of app.graph.nodes) if (other !== viewer) other.pos = [-2000, 0];
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [300, 100];
    app.canvas.setDirty(true, true);
    window.ended.length = 0;
  }, job);
  await page.waitForTimeout(LOADED_MS);
  await page.evaluate(() => app.queuePrompt(0, 1));
  await page.waitForFunction(() => window.ended.length > 0, null, { timeout: RUN_MS });
  const end = await page.evaluate(() => window.ended[0]);
  if (end.kind !== "execution_success") return { status: end.kind, message: end.exception_message || "" };

  const play = page.getByRole("button", { name: /^play/i }).first();
  await play.waitFor({ timeout: RUN_MS });
  await page.waitForTimeout(LOADED_MS);
  const box = await play.evaluate((button) => {
    let viewer = button;
    while (!viewer.querySelector("canvas")) viewer = viewer.parentElement;
    const { x, y, width, height } = viewer.querySelector("canvas").getBoundingClientRect();
    return { x, y, width, height };
  });
  const clip = {
    x: box.x + MIDDLE.left * box.width, y: box.y + MIDDLE.top * box.height,
    width: MIDDLE.width * box.width, height: MIDDLE.height * box.height,
  };
  for (const path of job.still) await page.screenshot({ path, clip });
  await play.click();
  for (const path of job.moving) {
    await page.waitForTimeout(job.every_ms);
    await page.screenshot({ path, clip });
  }
  return { status: end.kind, message: "" };
}

async function main() {
  const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const { context, page } = await openPage(job);
  try {
    process.stdout.write(JSON.stringify(await run(page, job)));
  } finally {
    await page.screenshot({ path: job.page });
    await context.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
