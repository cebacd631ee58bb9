// Renders GLB files with three.js in a headless browser.
//
// usage: node render.js <job.json>, where job.json holds
//   {chromium, playwright, three, profile, shots: [{file, picture, seconds, size, intrinsics, c2w}]}
// Writes the pictures (PNG) and prints one JSON list, for each shot its animations as the loader read them.
"use strict";

const fs = require("fs");
const path = require("path");

const ORIGIN = "http://viewer.test";
const READY_MS = 60000;
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".glb": "model/gltf-binary" };

// No server: the page's requests are answered from these folders, all others are refused.
function answer(job) {
  return (route) => {
    const url = new URL(route.request().url());
    const place = url.pathname.startsWith("/three/") ? path.join(job.three, url.pathname.slice(7))
      : url.pathname.startsWith("/shot/") ? job.shots[Number(path.basename(url.pathname, ".glb"))].file
      : path.join(__dirname, url.pathname);
    if (url.origin !== ORIGIN || !fs.existsSync(place)) return route.abort();
    return route.fulfill({ path: place, contentType: TYPES[path.extname(place)] });
  };
}

async function main() {
  const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const { chromium } = require(job.playwright);
  const context = await chromium.launchPersistentContext(job.profile, {
    executablePath: job.chromium, headless: true, args: FLAGS,
  });
  try {
    const page = context.pages()[0] || (await context.newPage());
    page.on("pageerror", (error) => console.error(String(error)));
    page.on("console", (message) => message.type() === "error" && console.error(message.text()));
    await page.route("**/*", answer(job));
    await page.goto(`${ORIGIN}/page.html`);
    await page.waitForFunction(() => window.ready, null, { timeout: READY_MS });
    const said = [];
    for (const shot of job.shots) {
      // The same file keeps one address, so that the page reads it once.
      const url = `/shot/${job.shots.findIndex(({ file }) => file === shot.file)}.glb`;
      const { picture, animations } = await page.evaluate((asked) => window.show(asked), { ...shot, url });
      fs.writeFileSync(shot.picture, Buffer.from(picture.split(",")[1], "base64"));
      said.push(animations);
    }
    process.stdout.write(JSON.stringify(said));
  } finally {
    await context.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
